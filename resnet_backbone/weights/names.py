"""The parameter names of ResNets in other frameworks, and their translation to canonical names.

A naming scheme is recognized by its anchor, the key of the first convolution in the first block; whatever precedes the
anchor in a key is the prefix of that network. Translation has two steps:

1. ``NamingScheme.rename``, a pure function of one key: ``stem.conv1``, ``layer1.0.conv1``, ``layer1.0.norm1``,
   ``layer1.0.downsample.0``.
2. ``canonical_names`` uses the shapes of all tensors for what a single key does not show: which layer of a shortcut is
   the convolution, which of the stem's norm layers ``bn1`` is, and which stage a block belongs to if the numbers of
   blocks run through all stages.

A backbone's own names are translated in the same way.

To add a scheme, add its anchor and its templates to ``SCHEMES``.
"""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

__all__ = [
    "SCHEMES",
    "NamingScheme",
    "PrefixMatch",
    "Shape",
    "canonical_names",
    "find_prefixes",
    "module_names",
    "source_name",
    "strip_wrappers",
]

Shape = tuple[int, ...]

# Wrappers that do not change the weights: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class NamingScheme(NamedTuple):
    """A naming scheme of a ResNet's parameters.

    Attributes:
        name: The framework that uses it.
        anchor: The key of the first convolution in the first block.
        rename: Maps a key, without the network's prefix, to the name of step 1. Unknown keys, such as a classifier's,
            stay the same.
        is_own: Whether networks of this package use it.
    """

    name: str
    anchor: str
    rename: Callable[[str], str]
    is_own: bool = False


class PrefixMatch(NamedTuple):
    """A ResNet among the keys of a file: the prefix of its keys, and their naming scheme."""

    prefix: str
    scheme: NamingScheme


def strip_wrappers(key: str) -> str:
    """Remove the names of wrapping modules, such as ``_orig_mod.``, from a key."""
    return _WRAPPERS.sub("", key)


def find_prefixes(keys: Iterable[str]) -> list[PrefixMatch]:
    """Find every ResNet among the keys of a state dict, in the order of the keys."""
    anchors = tuple(scheme.anchor for scheme in SCHEMES)
    found = []
    for key in keys:
        if not key.endswith(anchors):
            continue
        for scheme in SCHEMES:
            prefix = key[: -len(scheme.anchor)]
            if key.endswith(scheme.anchor) and (not prefix or prefix[-1] in "./_"):
                found.append(PrefixMatch(prefix, scheme))
                break
    return found


def canonical_names(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Map the names of step 1 to names that do not depend on the kind of stem or shortcut.

    Args:
        shapes: Shape of each tensor by its name of step 1.

    Returns:
        The canonical name of each: ``stem.norm`` becomes ``stem.norm1`` or, in a deep stem, ``stem.norm3``;
        ``downsample.0`` becomes ``downsample.conv`` or ``downsample.norm``; ``block.3`` becomes ``layer2.0`` if the
        first stage has three blocks, that is, if the fourth block has the second projection.
    """
    # The numbers of PaddleClas' blocks run through all stages; the first block of each later stage has a projection.
    firsts = sorted({0} | _numbers(r"block\.(\d+)\.downsample\.", shapes))
    # pytorchvideo numbers poolings with its stages.
    stages = sorted(_numbers(r"stage\.(\d+)\.", shapes))
    last_of_stem = max(_numbers(r"stem\.conv(\d)\.", shapes), default=1)

    def canonical(name: str) -> str:
        if match := re.match(r"stage\.(\d+)(?=\.)", name):
            return f"layer{stages.index(int(match[1])) + 1}{name[match.end() :]}"
        if match := re.match(r"block\.(\d+)(?=\.)", name):
            stage = bisect.bisect(firsts, int(match[1]))
            return f"layer{stage}.{int(match[1]) - firsts[stage - 1]}{name[match.end() :]}"
        if match := re.match(r"(layer[\w.]*?\.downsample\.\d+)\.", name):
            # The weight of a convolution has three dimensions or more, that of a norm layer has one.
            kind = "conv" if len(shapes.get(f"{match[1]}.weight", ())) >= 3 else "norm"
            return f"{match[1].rpartition('.')[0]}.{kind}.{name[match.end() :]}"
        return re.sub(r"^stem\.norm\.", f"stem.norm{last_of_stem}.", name)

    return {name: canonical(name) for name in shapes}


def _numbers(pattern: str, names: Iterable[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def module_names(shapes: Mapping[str, Shape]) -> tuple[dict[str, str], dict[str, Shape]]:
    """Return the canonical name of each tensor of a module's own state dict, and the shapes by the names of step 1."""
    renamed = {name: _torchvision_name(strip_wrappers(name)) for name in shapes}
    step1 = {renamed[name]: shape for name, shape in shapes.items()}
    names = canonical_names(step1)
    return {name: names[renamed[name]] for name in shapes}, step1


def _torchvision_name(key: str) -> str:
    """Rename torchvision's, timm's and mmdet's keys, with any kind of stem."""
    # paddle.vision's statistics; and the public reference of MultiScaleResNet1d, whose branches are separate stages.
    key = re.sub(r"\._(mean|variance)$", lambda match: f".{_LEAVES[f'_{match[1]}']}", key)
    key = re.sub(r"^layer([357])x\1_(\d)\.", lambda match: f"layer{match[2]}.branches.{int(match[1]) // 2 - 1}.", key)
    # Poolings and activations with weights are of another stem: ResNet-RS', ArcFace's.
    key = re.sub(r"^(maxpool|prelu|relu|act1)\.", r"stem.\1.", key)
    # timm's deep stem is called conv1, followed by bn1; mmpretrain's and mmpose's consists of mmcv's ConvModules.
    if match := re.match(r"stem\.(\d)\.(conv|bn|gn|norm)\.", key):
        kind = "conv" if match[2] == "conv" else "norm"
        return f"stem.{kind}{int(match[1]) + 1}.{key[match.end() :]}"
    if match := re.match(r"(?:stem|conv1)\.(\d)\.", key):
        index = int(match[1])
        return f"stem.{'norm' if index % 3 else 'conv'}{index // 3 + 1}.{key[match.end() :]}"
    if match := re.match(r"(conv1|(?:bn|gn|in|ln|norm|norm_layer)1)\.", key):
        return f"stem.{'conv1' if match[1] == 'conv1' else 'norm'}.{key[match.end() :]}"
    # timm's squeeze-and-excitation; mmpretrain's is named like the plugin SELayer.
    key = re.sub(r"^(layer\d+\.\d+\.)se\.fc([12])\.", r"\1se_layer.conv\2.conv.", key)
    # In detectron2, and in mmdet before mmcv 2, the offsets of a deformable convolution are next to it.
    key = re.sub(r"^(layer\d+\.\d+\.conv\d)_offset\.", r"\1.conv_offset.", key)
    return re.sub(r"^(layer\d+\.(?:branches\.\d+\.)?\d+\.)(?:bn|gn|in|ln|norm|norm_layer)(\d)(?=\.)", r"\1norm\2", key)


# The words of templates. A template is a regular expression in which a dot means a dot.
_WORDS = {
    "stage": r"(?P<stage>\d+)",
    # Numbers that also count poolings.
    "stage_or_pooling": r"(?P<stage_or_pooling>\d+)",
    "block": r"(?P<block>\d+)",
    # a, b, c, ... or, in long stages, a, b1, b2, ...
    "lettered_block": r"(?P<block>[a-z]\d*)",
    # Layers of a block or the stem, from 1, a and 0.
    "layer": r"(?P<layer>\d)",
    "letter": r"(?P<layer>[abc])",
    "index": r"(?P<index>\d)",
    # Whether a layer is a convolution or its norm layer.
    "kind": r"(?P<kind>_?conv|convolution|bn|norm|normalization|_batch_norm)",
    "position": r"(?P<kind>[01])",
    "norm": r"(?P<norm>norm\.|bn_|gn_|_bn)?",
    # A shortcut's projection is its second layer if it pools first.
    "pooled": r"(?P<pooled>\.1|\.conv)?",
    "leaf": r"(?P<leaf>.+)",
    # A training's file also has the momentum of each weight.
    "blob": r"(?P<leaf>[a-z]+|running_mean|running_var)",
    # The rest is named as in torchvision.
    "rest": r"(?P<rest>.+)",
}
_NORMS = ("bn", "norm", "normalization", "_batch_norm", "1")
_LEAVES = {
    **dict.fromkeys(("w", "s", "gamma", "weights", "scale"), "weight"),
    **dict.fromkeys(("b", "beta", "offset"), "bias"),
    **dict.fromkeys(("rm", "mean", "_mean"), "running_mean"),
    **dict.fromkeys(("riv", "variance", "_variance"), "running_var"),
}


def _scheme(name: str, anchor: str, *templates: str, shows_pooling: bool = True) -> NamingScheme:
    """Build a naming scheme from templates of its keys. Keys that match none are named as in torchvision.

    The anchor shows the first number of stages and blocks. ``shows_pooling`` is whether the name of a shortcut's
    projection shows if it pools first.
    """
    patterns = [re.compile(template.replace(".", r"\.").format(**_WORDS)) for template in templates]
    first = next(match.groupdict() for pattern in patterns if (match := pattern.fullmatch(anchor)))
    return NamingScheme(name, anchor, functools.partial(_rename, patterns, first, shows_pooling))


def _rename(patterns: list[re.Pattern[str]], first: Mapping[str, str], shows_pooling: bool, key: str) -> str:
    match = next((match for pattern in patterns if (match := pattern.fullmatch(key))), None)
    if match is None:
        return _torchvision_name(key)
    words = match.groupdict()
    block = _place(words, first)
    if "rest" in words:
        return _torchvision_name(f"{block}.{words['rest']}")
    norm = bool(words.get("norm")) or words.get("kind") in _NORMS
    kind = "norm" if norm else "conv"
    if layer := words.get("layer"):
        layer = f"{kind}{'abc'.index(layer) + 1 if layer.isalpha() else layer}"
    elif index := words.get("index"):
        layer = f"{kind}{int(index) + 1}"
    elif block == "stem":
        layer = f"{kind}1"
    else:
        layer = f"downsample.{bool(words.get('pooled')) + norm if shows_pooling else kind}"
    return f"{block}.{layer}.{_LEAVES.get(words['leaf'], words['leaf'])}"


def _place(words: Mapping[str, str], first: Mapping[str, str]) -> str:
    if "block" not in words:
        return "stem"
    block = _block_index(words["block"]) - _block_index(first["block"])
    if "stage_or_pooling" in words:
        return f"stage.{words['stage_or_pooling']}.{block}"
    return f"layer{int(words['stage']) - int(first['stage']) + 1}.{block}" if "stage" in words else f"block.{block}"


def _block_index(block: str) -> int:
    return int(block.lstrip("abcdefghijklmnopqrstuvwxyz") or ord(block) - ord("a"))


SCHEMES: tuple[NamingScheme, ...] = (
    NamingScheme("torchvision", "layer1.0.conv1.weight", _torchvision_name, is_own=True),
    _scheme(
        "detectron2",
        "res2.0.conv1.weight",
        # With 1_, ResNeSt's authors.
        "stem.conv(1_)?{layer}.{norm}{leaf}",
        "res{stage}.{block}.(conv{layer}|shortcut).{norm}{leaf}",
        "res{stage}.{block}.{rest}",
    ),
    _scheme(
        "Caffe2",
        "res2_0_branch2a_w",
        "(res_)?conv1_{norm}{blob}",
        "res{stage}_{block}_branch(2{letter}|1)_{norm}{blob}",
    ),
    _scheme(
        "pycls",
        "s1.b1.f.a.weight",
        "stem.{kind}.{leaf}",
        "s{stage}.b{block}.(f.{letter}{norm}|proj|{kind}).{leaf}",
    ),
    _scheme(
        "timm RegNet",
        "s1.b1.conv1.conv.weight",
        "stem.{kind}.{leaf}",
        "s{stage}.b{block}.(conv{layer}|downsample).{kind}.{leaf}",
    ),
    _scheme(
        "torchvision RegNet",
        "trunk_output.block1.block1-0.f.a.0.weight",
        "stem.{position}.{leaf}",
        r"trunk_output.block{stage}.block\d-{block}.(f.{letter}|proj).{position}.{leaf}",
    ),
    # Including its RT-DETR backbone, which has a deep stem and pools in shortcuts.
    _scheme(
        "transformers",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
        "embedder.embedder.({index}.)?{kind}.{leaf}",
        "encoder.stages.{stage}.layers.{block}.(layer.{index}|shortcut{pooled}).{kind}.{leaf}",
    ),
    # Its blocks consist of mmcv's ConvModules.
    _scheme(
        "mmaction2",
        "layer1.0.conv1.conv.weight",
        "conv1.{kind}.{leaf}",
        "layer{stage}.{block}.(conv{layer}|downsample).{kind}.{leaf}",
        shows_pooling=False,
    ),
    # Their blocks consist of Sequential(conv, norm, relu).
    _scheme(
        "torchvision's video ResNets", "layer1.0.conv1.0.weight", "layer{stage}.{block}.conv{layer}.{position}.{leaf}"
    ),
    _scheme(
        "pytorchvideo",
        "blocks.1.res_blocks.0.branch2.conv_a.weight",
        "blocks.0.{kind}.{leaf}",
        "blocks.{stage_or_pooling}.res_blocks.{block}.branch(2.|1_){kind}(_{letter})?.{leaf}",
        shows_pooling=False,
    ),
    # Its authors' PResNet.
    _scheme(
        "RT-DETR",
        "res_layers.0.blocks.0.branch2a.conv.weight",
        "conv1.conv1_{layer}.{kind}.{leaf}",
        "res_layers.{stage}.blocks.{block}.(branch2{letter}|short{pooled}).{kind}.{leaf}",
    ),
    _scheme(
        "PaddleDetection",
        "res2.res2a.branch2a.conv.weight",
        "conv1.conv1(_{layer})?.{kind}.{leaf}",
        r"res{stage}.res\d{lettered_block}.(branch2{letter}|short{pooled}).{kind}.{leaf}",
    ),
    # Since version 2.2, and before.
    _scheme(
        "PaddleClas",
        "blocks.0.conv0.conv.weight",
        "conv(1_{layer})?.{kind}.{leaf}",
        "blocks.{block}.(conv{index}|short).{kind}.{leaf}",
        shows_pooling=False,
    ),
    _scheme(
        "PaddleClas",
        "bb_0_0.conv0._conv.weight",
        "conv(1_{layer})?.{kind}.{leaf}",
        "bb_{stage}_{block}.(conv{index}|short).{kind}.{leaf}",
        shows_pooling=False,
    ),
    # Parameters have names of their own there.
    _scheme(
        "Paddle, static graph",
        "res2a_branch2a_weights",
        "((?P<norm>bn)_)?conv1(_{layer})?_{leaf}",
        "(?P<norm>bn)v1_{layer}_{leaf}",
        "(res|(?P<norm>bn)){stage}{lettered_block}_branch(2{letter}|1)_{leaf}",
        shows_pooling=False,
    ),
    _scheme("NVIDIA", "layers.0.0.conv1.weight", "layers.{stage}.{block}.{rest}"),
    # Many self-supervised projects build their encoders so.
    _scheme(
        "nn.Sequential of torchvision's layers",
        "4.0.conv1.weight",
        "{position}.{leaf}",
        "(?P<stage>[4-7]).{block}.{rest}",
    ),
    NamingScheme("resnet_backbone's MultiScaleResNet1d", "layer1.branches.0.0.conv1.weight", _torchvision_name, True),
    NamingScheme("Multi-Scale-1D-ResNet", "layer3x3_1.0.conv1.weight", _torchvision_name),
)
# Who writes torchvision's names: parts of keys that only one project has.
_SIGNS = {
    "encoder_q": "MoCo",
    "base_encoder": "MoCo v3",
    "prototypes": "SwAV",
    "last_layer": "DINO",
    "expander": "Barlow Twins or VICReg",
    "projector": "Barlow Twins or VICReg",
}


def source_name(match: PrefixMatch, keys: Iterable[str]) -> str:
    """Return the framework whose names the keys of a state dict are, given the network found in it."""
    if match.scheme.name != "torchvision":
        return match.scheme.name
    keys = set(keys)
    parts = {part for key in keys for part in key.split(".")}
    prefix = match.prefix.removeprefix("module.")
    stem = {f"{match.prefix}stem.0.weight", f"{match.prefix}stem.0.conv.weight"}
    signs = (
        *((part in parts, name) for part, name in _SIGNS.items()),
        (prefix.startswith("backbone.bottom_up."), "detectron2"),
        (prefix.startswith("backbone.body."), "torchvision's detectors"),
        (prefix.startswith("backbone.") or bool(stem & keys), "mmdet, mmpretrain or mmseg"),
        (f"{match.prefix}conv1.0.weight" in keys, "timm, deep stem"),
    )
    return next((name for found, name in signs if found), "torchvision or timm")

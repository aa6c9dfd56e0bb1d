"""How frameworks name the parameters of a ResNet, and the canonical names that all of them are translated to.

A naming scheme is recognised by its anchor, the key of the first convolution in the first block; what precedes the
anchor in a file's keys is the prefix of that network. Translation has two steps:

1. ``NamingScheme.rename``, a pure function of one key: ``stem.conv1``, ``layer1.0.conv1``, ``layer1.0.norm1``,
   ``layer1.0.downsample.0``.
2. ``canonical_names`` settles what one key cannot tell and the shapes of all can: which layer of a shortcut is the
   convolution, which of the stem's norm layers ``bn1`` is, and which stage a block belongs to where blocks are
   numbered through.

A backbone's own names go through the same two steps, so both sides meet in the middle.

To add a scheme, write a function of a key, or a table of patterns for ``_by_rules``, and add it to ``SCHEMES``.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

__all__ = [
    "SCHEMES",
    "NamingScheme",
    "PrefixMatch",
    "canonical_names",
    "find_prefixes",
    "module_names",
    "source_name",
    "strip_wrappers",
]

Shape = tuple[int, ...]
Rename = Callable[[str], str]

# Modules that wrap others and leave their weights as they are: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class NamingScheme(NamedTuple):
    """A way to name a ResNet's parameters.

    Attributes:
        name: Who uses it.
        anchor: The key of the first convolution in the first block.
        rename: Maps one of a network's keys, without the network's prefix, to the names of step 1. What it does not
            know, a classifier for example, it returns as it is.
        is_own: Whether the networks of this package are named so.
    """

    name: str
    anchor: str
    rename: Rename
    is_own: bool = False


class PrefixMatch(NamedTuple):
    """A ResNet found among the keys of a file.

    Attributes:
        prefix: What precedes its names.
        scheme: How it names its parameters.
    """

    prefix: str
    scheme: NamingScheme


def strip_wrappers(key: str) -> str:
    """Remove the names of wrapping modules, such as ``_orig_mod.``, from a key."""
    return _WRAPPERS.sub("", key)


def find_prefixes(keys: Iterable[str]) -> list[PrefixMatch]:
    """Find every ResNet among the keys of a state dict.

    Args:
        keys: The keys.

    Returns:
        Prefix and naming scheme of each, in the order of the keys.
    """
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
        ``downsample.0`` becomes ``downsample.conv`` or ``downsample.norm``; ``block.3`` becomes ``layer2.0`` where the
        first stage has three blocks, that is, where the fourth has the next projection.
    """
    # PaddleClas numbers its blocks through; the first of every stage but the first one has a projection.
    firsts = sorted({0} | _numbers(r"block\.(\d+)\.downsample\.", shapes))
    # pytorchvideo numbers poolings with its stages.
    stages = sorted(_numbers(r"stage\.(\d+)\.", shapes))
    last = max((int(match[1]) for name in shapes if (match := re.match(r"stem\.conv(\d)\.", name))), default=1)
    projections = {
        match[0]
        for name, shape in shapes.items()
        # The weight of a convolution has three dimensions or more, that of a norm layer has one.
        if (match := _DOWNSAMPLE.match(name)) and name.endswith(".weight") and len(shape) >= 3
    }
    return {name: _canonical_name(_staged(name, firsts, stages), last, projections) for name in shapes}


def _numbers(pattern: str, names: Iterable[str]) -> set[int]:
    return {int(match[1]) for name in names if (match := re.match(pattern, name))}


def _staged(name: str, firsts: list[int], stages: list[int]) -> str:
    if match := re.match(r"stage\.(\d+)(?=\.)", name):
        return f"layer{stages.index(int(match[1])) + 1}{name[match.end() :]}"
    match = re.match(r"block\.(\d+)(?=\.)", name)
    if not match:
        return name
    stage = bisect.bisect(firsts, int(match[1]))
    return f"layer{stage}.{int(match[1]) - firsts[stage - 1]}{name[match.end() :]}"


_DOWNSAMPLE = re.compile(r"layer[\w.]*?\.downsample\.\d+(?=\.)")


def _canonical_name(name: str, last_stem_layer: int, projections: set[str]) -> str:
    if name.startswith("stem.norm."):
        return f"stem.norm{last_stem_layer}{name.removeprefix('stem.norm')}"
    if match := _DOWNSAMPLE.match(name):
        layer = "conv" if match[0] in projections else "norm"
        return f"{match[0].rpartition('.')[0]}.{layer}{name[match.end() :]}"
    return name


def module_names(shapes: Mapping[str, Shape]) -> tuple[dict[str, str], dict[str, Shape]]:
    """Translate the names of a module's own state dict, wrappers' names removed.

    Args:
        shapes: Shape of each tensor by its name.

    Returns:
        The canonical name of each tensor, and the shapes by the names of step 1.
    """
    renamed = {name: _torchvision_name(strip_wrappers(name)) for name in shapes}
    step1 = {renamed[name]: shape for name, shape in shapes.items()}
    names = canonical_names(step1)
    return {name: names[renamed[name]] for name in shapes}, step1


def _by_rules(*rules: tuple[str, str]) -> Rename:
    """Make a rename function of patterns: the first that matches from the beginning of a key is replaced."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(key: str) -> str:
        return next((pattern.sub(repl, key, count=1) for pattern, repl in compiled if pattern.match(key)), key)

    return rename


def _plus(number: str, offset: int) -> int:
    return int(number) + offset


def _statistics(key: str) -> str:
    """Paddle calls a norm layer's running statistics ``_mean`` and ``_variance``."""
    return re.sub(r"\._(mean|variance)$", lambda match: _PADDLE_STATISTICS[match[1]], key)


_PADDLE_STATISTICS = {"mean": ".running_mean", "variance": ".running_var"}


def _torchvision_name(key: str) -> str:
    """Torchvision's, timm's and mmdet's names, with any of the stems that are in use; paddle.vision's statistics."""
    key = _statistics(key)
    # timm's deep stem is called conv1, with bn1 behind it; mmpretrain's and mmpose's is made of mmcv's ConvModules.
    if match := re.match(r"stem\.(\d)\.(conv|bn|gn|norm)\.", key):
        kind = "conv" if match[2] == "conv" else "norm"
        return f"stem.{kind}{_plus(match[1], 1)}.{key[match.end() :]}"
    if match := re.match(r"(?:stem|conv1)\.(\d)\.", key):
        index = int(match[1])
        return f"stem.{'norm' if index % 3 else 'conv'}{index // 3 + 1}.{key[match.end() :]}"
    if match := re.match(r"(conv1|(?:bn|gn|in|ln|norm|norm_layer)1)\.", key):
        return f"stem.{'conv1' if match[1] == 'conv1' else 'norm'}.{key[match.end() :]}"
    # timm's squeeze-and-excitation; mmpretrain's is the plugin SELayer, as ours.
    key = re.sub(r"^(layer\d+\.\d+\.)se\.fc([12])\.", r"\1se_layer.conv\2.conv.", key)
    # mmdet's checkpoints of before mmcv's version 2 have the offsets of a deformable convolution beside it.
    key = re.sub(r"^(layer\d+\.\d+\.conv\d)_offset\.", r"\1.conv_offset.", key)
    return re.sub(r"^(layer\d+\.(?:branches\.\d+\.)?\d+\.)(?:bn|gn|in|ln|norm|norm_layer)(\d)(?=\.)", r"\1norm\2", key)


def _detectron2_name(key: str) -> str:
    """The names of detectron2, and of ResNeSt's authors in their copy of it: a deep stem, and layers within conv2."""
    if match := re.fullmatch(r"stem\.conv(?:1_)?(\d)\.(norm\.)?(\w+)", key):
        number, norm, rest = match.groups()
        return f"stem.{'norm' if norm else 'conv'}{number}.{rest}"
    if match := re.match(r"res(\d)\.(\d+)\.conv2\.(?=(?:conv|bn[01]|fc[12])\.)", key):
        return f"layer{_plus(match[1], -1)}.{match[2]}.conv2.{key[match.end() :]}"
    match = re.fullmatch(r"res(\d)\.(\d+)\.(\w+)\.(norm\.)?(\w+)", key)
    if not match:
        return key
    stage, block, layer, norm, rest = match.groups()
    if layer == "shortcut":
        layer = f"downsample.{int(norm is not None)}"
    elif layer.endswith("_offset"):
        # The offsets of a deformable convolution lie beside it in detectron2, inside it in mmcv.
        layer = f"{layer.removesuffix('_offset')}.conv_offset"
    elif norm:
        layer = layer.replace("conv", "norm")
    return f"layer{_plus(stage, -1)}.{block}.{layer}.{rest}"


_CAFFE2_STATISTICS = {
    "s": "weight",
    "gamma": "weight",
    "b": "bias",
    "beta": "bias",
    "rm": "running_mean",
    "running_mean": "running_mean",
    "riv": "running_var",
    "running_var": "running_var",
}
_CAFFE2_LAYERS = {"2a": "1", "2b": "2", "2c": "3"}


def _caffe2_name(key: str) -> str:
    if match := re.fullmatch(r"conv1_([wb])", key):
        return f"stem.conv1.{'weight' if match[1] == 'w' else 'bias'}"
    if match := re.fullmatch(r"(?:res_)?conv1_(?:bn|gn)_(\w+)", key):
        return f"stem.norm1.{_CAFFE2_STATISTICS.get(match[1], match[1])}"
    match = re.fullmatch(r"res(\d)_(\d+)_branch(1|2a|2b|2c)_(?:(bn|gn)_)?(\w+)", key)
    if not match:
        return key
    stage, block, branch, norm, rest = match.groups()
    kind = "norm" if norm else "conv"
    layer = f"downsample.{int(norm is not None)}" if branch == "1" else f"{kind}{_CAFFE2_LAYERS[branch]}"
    rest = _CAFFE2_STATISTICS.get(rest, rest) if norm else {"w": "weight", "b": "bias"}.get(rest, rest)
    return f"layer{_plus(stage, -1)}.{block}.{layer}.{rest}"


_REGNET_LAYERS = {
    **{f"f.{letter}": f"conv{number}" for number, letter in enumerate("abc", 1)},
    **{f"f.{letter}_bn": f"norm{number}" for number, letter in enumerate("abc", 1)},
    **{f"conv{number}.conv": f"conv{number}" for number in (1, 2, 3)},
    **{f"conv{number}.bn": f"norm{number}" for number in (1, 2, 3)},
    "proj": "downsample.0",
    "bn": "downsample.1",
    "downsample.conv": "downsample.0",
    "downsample.bn": "downsample.1",
}


def _regnet_name(key: str) -> str:
    """The names of pycls, and timm's for the same networks."""
    if match := re.fullmatch(r"stem\.(conv|bn)\.(\w+)", key):
        return f"stem.{'conv1' if match[1] == 'conv' else 'norm1'}.{match[2]}"
    match = re.fullmatch(r"s(\d)\.b(\d+)\.([\w.]+)\.(\w+)", key)
    if not match or match[3] not in _REGNET_LAYERS:
        return key
    return f"layer{match[1]}.{_plus(match[2], -1)}.{_REGNET_LAYERS[match[3]]}.{match[4]}"


def _torchvision_regnet_name(key: str) -> str:
    if match := re.fullmatch(r"stem\.([01])\.(\w+)", key):
        return f"stem.{'norm1' if match[1] == '1' else 'conv1'}.{match[2]}"
    match = re.fullmatch(r"trunk_output\.block(\d)\.block\d-(\d+)\.(?:proj|f\.([abc]))\.([01])\.(\w+)", key)
    if not match:
        return key
    stage, block, letter, norm, rest = match.groups()
    layer = f"downsample.{norm}" if letter is None else f"{'norm' if norm == '1' else 'conv'}{' abc'.index(letter)}"
    return f"layer{stage}.{block}.{layer}.{rest}"


def _transformers_name(key: str) -> str:
    """The names of transformers' ResNet and of its RT-DETR backbone, which has a deep stem and pools in shortcuts."""
    if match := re.fullmatch(r"embedder\.embedder\.(?:(\d)\.)?(convolution|normalization)\.(\w+)", key):
        number = _plus(match[1] or "0", 1)
        return f"stem.{'conv' if match[2] == 'convolution' else 'norm'}{number}.{match[3]}"
    match = re.fullmatch(
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.(?:layer\.(\d)|shortcut(\.1)?)\.(convolution|normalization)\.(\w+)", key
    )
    if not match:
        return key
    stage, block, index, pooled, kind, rest = match.groups()
    norm = kind == "normalization"
    shortcut = f"downsample.{bool(pooled) + norm}"
    layer = shortcut if index is None else f"{'norm' if norm else 'conv'}{_plus(index, 1)}"
    return f"layer{_plus(stage, 1)}.{block}.{layer}.{rest}"


def _conv_module_name(key: str) -> str:
    """The names of mmaction2, whose blocks are made of mmcv's ConvModules."""
    if match := re.match(r"conv1\.(conv|bn)\.", key):
        return f"stem.{match[1].replace('bn', 'norm')}1.{key[match.end() :]}"
    if match := re.match(r"(layer\d+\.\d+)\.(?:conv(\d)|downsample)\.(conv|bn)\.", key):
        block, number, kind = match.groups()
        kind = kind.replace("bn", "norm")
        return f"{block}.{f'downsample.{kind}' if number is None else f'{kind}{number}'}.{key[match.end() :]}"
    return _torchvision_name(key)


def _video_name(key: str) -> str:
    """The names of torchvision's video ResNets, whose blocks are made of ``Sequential(conv, norm, relu)``."""
    if match := re.match(r"(layer\d+\.\d+)\.conv(\d)\.([01])\.", key):
        return f"{match[1]}.{'conv' if match[3] == '0' else 'norm'}{match[2]}.{key[match.end() :]}"
    return _torchvision_name(key)


def _pytorchvideo_name(key: str) -> str:
    if match := re.match(r"blocks\.0\.(conv|norm)\.", key):
        return f"stem.{match[1]}1.{key[match.end() :]}"
    match = re.match(r"blocks\.(\d)\.res_blocks\.(\d+)\.(?:branch2\.(conv|norm)_([abc])|branch1_(conv|norm))\.", key)
    if not match:
        return key
    stage, block, kind, letter, shortcut = match.groups()
    layer = f"downsample.{shortcut}" if letter is None else f"{kind}{'abc'.index(letter) + 1}"
    return f"stage.{stage}.{block}.{layer}.{key[match.end() :]}"


def _branch_layer(branch: str, kind: str) -> str:
    """Translate a layer of RT-DETR's and PaddleDetection's blocks: ``branch2a``, ``short`` or ``short.conv``."""
    norm = kind == "norm"
    if branch.startswith("short"):
        # The pooling before a projection is the first layer of a Sequential.
        return f"downsample.{(branch != 'short') + norm}"
    return f"{'norm' if norm else 'conv'}{'abc'.index(branch[-1]) + 1}"


_PRESNET_LAYER = r"(branch2[abc]|short\.conv|short)\.(conv|norm)\."


def _presnet_name(key: str) -> str:
    """The names of the PResNet of RT-DETR's authors."""
    if match := re.match(r"conv1\.conv1_(\d)\.(conv|norm)\.", key):
        return f"stem.{match[2]}{match[1]}.{key[match.end() :]}"
    if match := re.match(rf"res_layers\.(\d)\.blocks\.(\d+)\.{_PRESNET_LAYER}", key):
        layer = _branch_layer(match[3], match[4])
        return f"layer{_plus(match[1], 1)}.{match[2]}.{layer}.{key[match.end() :]}"
    return key


def _paddledetection_name(key: str) -> str:
    """The names of PaddleDetection, whose blocks are ``res2a``, ``res2b``, ... or, in long stages, ``res4b1``, ..."""
    key = _statistics(key)
    if match := re.match(r"conv1\.conv1(?:_(\d))?\.(conv|norm)\.", key):
        return f"stem.{match[2]}{match[1] or 1}.{key[match.end() :]}"
    if match := re.match(rf"res(\d)\.res\d([a-z])(\d*)\.{_PRESNET_LAYER}", key):
        block = match[3] or ord(match[2]) - ord("a")
        return f"layer{_plus(match[1], -1)}.{block}.{_branch_layer(match[4], match[5])}.{key[match.end() :]}"
    return key


def _paddleclas_name(key: str) -> str:
    """The names of PaddleClas, whose blocks are ``blocks.0``, ... or, before its version 2.2, ``bb_0_0``, ..."""
    key = _statistics(key).replace("._batch_norm.", ".bn.").replace("._conv.", ".conv.")
    if match := re.match(r"conv(?:1_(\d))?\.(conv|bn)\.", key):
        return f"stem.{match[2].replace('bn', 'norm')}{match[1] or 1}.{key[match.end() :]}"
    if match := re.match(r"(?:blocks\.(\d+)|bb_(\d)_(\d+))\.(?:conv(\d)|short)\.(conv|bn)\.", key):
        block, stage, of_stage, number, kind = match.groups()
        kind = kind.replace("bn", "norm")
        # Whether a shortcut pools before it projects does not show in its name.
        layer = f"downsample.{kind}" if number is None else f"{kind}{_plus(number, 1)}"
        place = f"block.{block}" if stage is None else f"layer{_plus(stage, 1)}.{of_stage}"
        return f"{place}.{layer}.{key[match.end() :]}"
    return _torchvision_name(key)


_PADDLE_LEAVES = {
    "weights": "weight",
    "scale": "weight",
    "offset": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}


def _paddle_parameter_name(key: str) -> str:
    """The names of Paddle's static graphs, where parameters have names of their own: ``bn2a_branch2b_scale``."""
    if match := re.fullmatch(r"(?:bn_conv1|conv1(?:_(\d))?|bnv1_(\d))_(weights|scale|offset|mean|variance)", key):
        kind = "conv" if match[3] == "weights" else "norm"
        return f"stem.{kind}{match[1] or match[2] or 1}.{_PADDLE_LEAVES[match[3]]}"
    match = re.fullmatch(r"(?:res|bn)(\d)([a-z])(\d*)_branch(1|2[abc])_(weights|scale|offset|mean|variance)", key)
    if not match:
        return key
    stage, letter, number, branch, leaf = match.groups()
    kind = "conv" if leaf == "weights" else "norm"
    layer = f"downsample.{kind}" if branch == "1" else f"{kind}{_CAFFE2_LAYERS[branch]}"
    return f"layer{_plus(stage, -1)}.{number or ord(letter) - ord('a')}.{layer}.{_PADDLE_LEAVES[leaf]}"


def _nvidia_name(key: str) -> str:
    if match := re.match(r"layers\.(\d)\.(?=\d+\.)", key):
        key = f"layer{_plus(match[1], 1)}.{key[match.end() :]}"
    return _torchvision_name(key)


def _sequential_name(key: str) -> str:
    """``nn.Sequential(*resnet.children())``, as many self-supervised projects build their encoder."""
    if match := re.match(r"([01])\.", key):
        return f"stem.{'norm1' if match[1] == '1' else 'conv1'}.{key[match.end() :]}"
    if match := re.match(r"([4-7])\.(?=\d+\.)", key):
        return _torchvision_name(f"layer{_plus(match[1], -3)}.{key[match.end() :]}")
    return key


# Three branches, of kernel size 3, 5 and 7, each stage of each a layer of its own.
_branches = _by_rules(
    *((rf"layer{size}x{size}_(\d)\.", rf"layer\1.branches.{index}.") for index, size in enumerate((3, 5, 7)))
)


def _multi_scale_name(key: str) -> str:
    return _torchvision_name(_branches(key))


SCHEMES: tuple[NamingScheme, ...] = (
    NamingScheme("torchvision", "layer1.0.conv1.weight", _torchvision_name, is_own=True),
    NamingScheme("detectron2", "res2.0.conv1.weight", _detectron2_name),
    NamingScheme("Caffe2", "res2_0_branch2a_w", _caffe2_name),
    NamingScheme("pycls", "s1.b1.f.a.weight", _regnet_name),
    NamingScheme("timm RegNet", "s1.b1.conv1.conv.weight", _regnet_name),
    NamingScheme("torchvision RegNet", "trunk_output.block1.block1-0.f.a.0.weight", _torchvision_regnet_name),
    NamingScheme("transformers", "encoder.stages.0.layers.0.layer.0.convolution.weight", _transformers_name),
    NamingScheme("mmaction2", "layer1.0.conv1.conv.weight", _conv_module_name),
    NamingScheme("torchvision's video ResNets", "layer1.0.conv1.0.weight", _video_name),
    NamingScheme("pytorchvideo", "blocks.1.res_blocks.0.branch2.conv_a.weight", _pytorchvideo_name),
    NamingScheme("RT-DETR", "res_layers.0.blocks.0.branch2a.conv.weight", _presnet_name),
    NamingScheme("PaddleDetection", "res2.res2a.branch2a.conv.weight", _paddledetection_name),
    NamingScheme("PaddleClas", "blocks.0.conv0.conv.weight", _paddleclas_name),
    NamingScheme("PaddleClas", "bb_0_0.conv0._conv.weight", _paddleclas_name),
    NamingScheme("Paddle, static graph", "res2a_branch2a_weights", _paddle_parameter_name),
    NamingScheme("NVIDIA", "layers.0.0.conv1.weight", _nvidia_name),
    NamingScheme("nn.Sequential of torchvision's layers", "4.0.conv1.weight", _sequential_name),
    NamingScheme("resnet_backbone's MultiScaleResNet1d", "layer1.branches.0.0.conv1.weight", _torchvision_name, True),
    NamingScheme("Multi-Scale-1D-ResNet", "layer3x3_1.0.conv1.weight", _multi_scale_name),
)

# Who writes torchvision's names with others beside them, told by a part of a key.
_SIGNS = {
    "encoder_q": "MoCo",
    "base_encoder": "MoCo v3",
    "prototypes": "SwAV",
    "last_layer": "DINO",
    "expander": "Barlow Twins or VICReg",
    "projector": "Barlow Twins or VICReg",
}


def source_name(match: PrefixMatch, keys: Iterable[str]) -> str:
    """Return who names parameters as a file does.

    Args:
        match: The network found.
        keys: All keys of its state dict.
    """
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

"""Whose names a checkpoint uses, told by its keys alone, and how they become ours.

Every family of names has an anchor: what it calls the first convolution of the first block. Whatever precedes the
anchor in a file's keys is the prefix of that network. Each family's rename function leads to torchvision's names, and
``canonical`` from there to names that no longer depend on how a network is put together: ``norm1`` for ``bn1`` and
``gn1``, ``downsample.conv`` for ``downsample.0`` and ``downsample.1``, ``stem.3`` for the second convolution of a deep
stem. A backbone's own names go through the same function, so the two sides meet in the middle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

__all__ = ["FAMILIES", "Candidate", "Family", "canonical", "find_candidates", "label", "strip_wrappers"]

Shape = tuple[int, ...]
Rules = tuple[tuple[str, str], ...]

# Modules that wrap others without a say in the weights: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class Family(NamedTuple):
    """A way to name a ResNet's parameters.

    Attributes:
        name: Who uses it.
        anchor: The key of the first convolution in the first block.
        rename: Maps a network's keys, freed of their prefix, to torchvision's names.
    """

    name: str
    anchor: str
    rename: Callable[[Iterable[str]], dict[str, str]]


class Candidate(NamedTuple):
    """A ResNet found among the keys of a file.

    Attributes:
        prefix: What precedes its names.
        family: Whose names they are.
    """

    prefix: str
    family: Family


def strip_wrappers(key: str) -> str:
    """Take the names of wrapping modules (``_orig_mod.`` and the like) out of a key."""
    return _WRAPPERS.sub("", key)


def find_candidates(keys: Iterable[str]) -> list[Candidate]:
    """Find every ResNet among the keys of a file.

    Args:
        keys: The keys of one state dict.

    Returns:
        Prefix and family of each, in the order of the keys; empty where there is none.
    """
    found = []
    for key in keys:
        for family in FAMILIES:
            prefix = key[: -len(family.anchor)]
            if key.endswith(family.anchor) and (not prefix or prefix[-1] in "./_"):
                found.append(Candidate(prefix, family))
                break
    return found


def canonical(shapes: Mapping[str, Shape]) -> dict[str, str]:
    """Map torchvision-like names to names that do not depend on the kind of stem, shortcut or norm layer.

    Args:
        shapes: Shape of each tensor by its name in torchvision's, timm's or mmdet's way.

    Returns:
        The canonical name of each, by the name given.
    """
    deep_stem = "conv1.0.weight" in shapes
    projections = {
        match[0]
        for name, shape in shapes.items()
        # A convolution's weight has three dimensions or more, a norm layer's has one.
        if (match := re.match(r".*\bdownsample\.\d+(?=\.weight$)", name)) and len(shape) >= 3
    }
    return {name: _canonical(name, deep_stem, projections) for name in shapes}


def _canonical(name: str, deep_stem: bool, projections: set[str]) -> str:
    if deep_stem and name.startswith("conv1."):
        return f"stem.{name.removeprefix('conv1.')}"
    if deep_stem and name.startswith("bn1."):
        return f"stem.7.{name.removeprefix('bn1.')}"
    if match := re.match(r"(.*\bdownsample)\.\d+(?=\.)", name):
        layer = "conv" if match[0] in projections else "norm"
        return f"{match[1]}.{layer}{name[match.end() :]}"
    # mmdet's checkpoints of before mmcv's version 2 have the offsets of a deformable convolution beside it.
    name = re.sub(r"^(layer\d+\.\d+\.conv\d)_offset\.", r"\1.conv_offset.", name)
    return re.sub(r"^((?:layer\d+\.\d+\.)?)(?:bn|gn|in|ln|norm|norm_layer)(\d)(?=\.)", r"\1norm\2", name)


def _by_rules(rules: Rules) -> Callable[[Iterable[str]], dict[str, str]]:
    """Make a rename function of patterns: for each key the first that matches from its beginning is replaced."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(keys: Iterable[str]) -> dict[str, str]:
        return {key: next((p.sub(r, key) for p, r in compiled if p.match(key)), key) for key in keys}

    return rename


def _unchanged(keys: Iterable[str]) -> dict[str, str]:
    return {key: key for key in keys}


def _previous(number: str) -> int:
    return int(number) - 1


def _detectron2(keys: Iterable[str]) -> dict[str, str]:
    keys = list(keys)
    deep_stem = "stem.conv2.weight" in keys
    return {key: _detectron2_name(key, deep_stem) for key in keys}


def _detectron2_name(key: str, deep_stem: bool) -> str:
    if match := re.fullmatch(r"stem\.conv(\d)\.(norm\.)?(\w+)", key):
        number, norm, rest = match.groups()
        if deep_stem:
            return f"stem.{3 * _previous(number) + bool(norm)}.{rest}"
        return f"bn1.{rest}" if norm else f"conv1.{rest}"
    if match := re.fullmatch(r"res(\d)\.(\d+)\.(\w+)\.(norm\.)?(\w+)", key):
        stage, block, layer, norm, rest = match.groups()
        return f"layer{_previous(stage)}.{block}.{_block_layer(layer, norm is not None)}.{rest}"
    return key


def _block_layer(layer: str, norm: bool) -> str:
    if layer == "shortcut":
        return f"downsample.{int(norm)}"
    # The offsets of a deformable convolution lie beside it in detectron2, inside it in mmcv.
    if layer.endswith("_offset"):
        return f"{layer.removesuffix('_offset')}.conv_offset"
    return layer.replace("conv", "bn") if norm else layer


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
_CAFFE2_LAYERS = {"1": "", "2a": "1", "2b": "2", "2c": "3"}


def _caffe2(keys: Iterable[str]) -> dict[str, str]:
    return {key: _caffe2_name(key) for key in keys}


def _caffe2_name(key: str) -> str:
    if match := re.fullmatch(r"conv1_([wb])", key):
        return f"conv1.{'weight' if match[1] == 'w' else 'bias'}"
    if match := re.fullmatch(r"(?:res_)?conv1_(bn|gn)_(\w+)", key):
        return f"{match[1]}1.{_CAFFE2_STATISTICS.get(match[2], match[2])}"
    match = re.fullmatch(r"res(\d)_(\d+)_branch(1|2a|2b|2c)_(?:(bn|gn)_)?(\w+)", key)
    if not match:
        return key
    stage, block, branch, norm, rest = match.groups()
    number = _CAFFE2_LAYERS[branch]
    layer = f"downsample.{int(norm is not None)}" if branch == "1" else f"{norm or 'conv'}{number}"
    rest = _CAFFE2_STATISTICS.get(rest, rest) if norm else {"w": "weight", "b": "bias"}.get(rest, rest)
    return f"layer{_previous(stage)}.{block}.{layer}.{rest}"


def _pycls(keys: Iterable[str]) -> dict[str, str]:
    return {key: _regnet_name(key) for key in keys}


_REGNET_LAYERS = {
    **{f"f.{letter}": f"conv{number}" for number, letter in enumerate("abc", 1)},
    **{f"f.{letter}_bn": f"bn{number}" for number, letter in enumerate("abc", 1)},
    **{f"conv{number}.conv": f"conv{number}" for number in (1, 2, 3)},
    **{f"conv{number}.bn": f"bn{number}" for number in (1, 2, 3)},
    "proj": "downsample.0",
    "bn": "downsample.1",
    "downsample.conv": "downsample.0",
    "downsample.bn": "downsample.1",
}


def _regnet_name(key: str) -> str:
    if match := re.fullmatch(r"stem\.(conv|bn)\.(\w+)", key):
        return f"{match[1]}1.{match[2]}"
    match = re.fullmatch(r"s(\d)\.b(\d+)\.([\w.]+)\.(\w+)", key)
    if not match or match[3] not in _REGNET_LAYERS:
        return key
    return f"layer{match[1]}.{_previous(match[2])}.{_REGNET_LAYERS[match[3]]}.{match[4]}"


def _transformers(keys: Iterable[str]) -> dict[str, str]:
    return {key: _transformers_name(key) for key in keys}


def _transformers_name(key: str) -> str:
    if match := re.fullmatch(r"embedder\.embedder\.(convolution|normalization)\.(\w+)", key):
        return f"{'conv1' if match[1] == 'convolution' else 'bn1'}.{match[2]}"
    match = re.fullmatch(
        r"encoder\.stages\.(\d)\.layers\.(\d+)\.(?:layer\.(\d)|shortcut)\.(convolution|normalization)\.(\w+)", key
    )
    if not match:
        return key
    stage, block, index, kind, rest = match.groups()
    norm = kind == "normalization"
    layer = f"downsample.{int(norm)}" if index is None else f"{'bn' if norm else 'conv'}{int(index) + 1}"
    return f"layer{int(stage) + 1}.{block}.{layer}.{rest}"


# nn.Sequential(*resnet.children()), as many self-supervised projects build their encoder.
_SEQUENTIAL: Rules = (
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    *((rf"^{index}\.(?=\d+\.)", f"layer{index - 3}.") for index in (4, 5, 6, 7)),
)


# Three branches, of kernel size 3, 5 and 7, each stage of each a layer of its own.
_MULTI_SCALE: Rules = tuple(
    (rf"^layer{size}x{size}_(\d)\.", rf"layer\1.branches.{index}.") for index, size in enumerate((3, 5, 7))
)

FAMILIES: tuple[Family, ...] = (
    Family("torchvision", "layer1.0.conv1.weight", _unchanged),
    Family("detectron2", "res2.0.conv1.weight", _detectron2),
    Family("Caffe2", "res2_0_branch2a_w", _caffe2),
    Family("pycls", "s1.b1.f.a.weight", _pycls),
    Family("timm RegNet", "s1.b1.conv1.conv.weight", _pycls),
    Family("transformers", "encoder.stages.0.layers.0.layer.0.convolution.weight", _transformers),
    Family("nn.Sequential of torchvision's layers", "4.0.conv1.weight", _by_rules(_SEQUENTIAL)),
    Family("resnet_backbone's MultiScaleResNet1d", "layer1.branches.0.0.conv1.weight", _unchanged),
    Family("Multi-Scale-1D-ResNet", "layer3x3_1.0.conv1.weight", _by_rules(_MULTI_SCALE)),
)

# Who writes torchvision's names with something of their own beside them: told by the keys of the whole state dict.
_SIGNS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(module\.)?encoder_q\.", "MoCo"),
    (r"(^|\.)(module\.)?base_encoder\.", "MoCo v3"),
    (r"(^|\.)prototypes\.", "SwAV"),
    (r"(^|\.)head\.last_layer\.", "DINO"),
    (r"(^|\.)expander\.|(^|\.)projector\.\d+\.", "Barlow Twins or VICReg"),
    (r"^backbone\.bottom_up\.", "detectron2"),
    (r"^backbone\.body\.", "torchvision's detectors"),
    (r"^(module\.)?backbone\.|(^|\.)stem\.0\.weight$", "mmdet, mmpretrain or mmseg"),
    (r"(^|\.)conv1\.0\.weight$", "timm, deep stem"),
)


def label(candidate: Candidate, keys: Iterable[str]) -> str:
    """Say in words whose names a file uses.

    Args:
        candidate: The network found.
        keys: All keys of its state dict.
    """
    if candidate.family.name != "torchvision":
        return candidate.family.name
    keys = list(keys)
    for pattern, name in _SIGNS:
        if any(re.search(pattern, key) for key in keys):
            return name
    return "torchvision or timm"

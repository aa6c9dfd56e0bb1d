"""Match the tensors of a file to those of a backbone, without changing the backbone."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, is_int
from .architecture import Architecture, infer_architecture
from .names import NamingScheme, PrefixMatch, Shape, canonical_names, module_names, strip_wrappers

__all__ = [
    "InputChannels",
    "Match",
    "SourceNetwork",
    "architecture_of",
    "canonical_names_of",
    "check_input_channels",
    "match_state_dict",
    "read_network",
]

InputChannels = Literal["repeat", "red", "zeros"] | Mapping[int, "int | str"]
"""How to adapt the first convolution to a different number of input channels: see ``load_pretrained``."""

_COLORS = ("red", "green", "blue")
# Dtypes that support arithmetic.
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_IGNORED = "num_batches_tracked"


@dataclass(frozen=True)
class SourceNetwork:
    """A network found in a file.

    Attributes:
        prefix: Prefix of its keys in the file.
        scheme: Naming scheme of its keys.
        tensors: Its tensors by canonical name.
        names: Its keys in the file by canonical name.
        architecture: Its architecture; ``None`` if the shapes do not show it.
        container: The keys that lead to its state dict in the file, joined by dots.
        keys: All keys of that state dict.
        averaged: Whether its weights were averaged over training, according to ``container`` or ``prefix``.
    """

    prefix: str
    scheme: NamingScheme
    tensors: dict[str, Tensor]
    names: dict[str, str]
    architecture: Architecture | None
    container: str = ""
    keys: tuple[str, ...] = ()
    averaged: bool = False


@dataclass
class Match:
    """What will be loaded, by the backbone's names, and what will not. ``LoadReport`` describes the fields."""

    loaded: dict[str, Tensor] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    folded: bool = False


def read_network(tensors: Mapping[str, Tensor], found: PrefixMatch) -> SourceNetwork:
    """Translate the keys of one network in a state dict. The keys must not have the names of wrappers."""
    start = len(found.prefix)
    inside = {key: found.scheme.rename(key[start:]) for key in tensors if key.startswith(found.prefix)}
    shapes = {name: tuple(tensors[key].shape) for key, name in inside.items()}
    names = canonical_names(shapes)
    keys: dict[str, str] = {}
    for key, name in inside.items():
        # A second tensor with the same name, such as one of an instance norm beside the batch norm, is unexpected.
        keys[f"{names[name]}'" if names[name] in keys else names[name]] = key
    canonical = {name: tensors[key] for name, key in keys.items()}
    architecture = infer_architecture(
        {name: tuple(value.shape) for name, value in canonical.items()}, _avg_down(shapes)
    )
    return SourceNetwork(found.prefix, found.scheme, canonical, keys, architecture)


def _avg_down(shapes: Mapping[str, Shape]) -> bool | None:
    """Whether shortcuts average first, which the position of their convolution shows (pooling has no weights)."""
    if "layer1.0.conv2.fc1.weight" in shapes:  # ResNeSt always does
        return True
    for name, shape in shapes.items():
        # The first stage does not stride, so it may have no pooling.
        match = re.fullmatch(r"layer[2-9]\.0\.downsample\.(\d+)\.weight", name)
        if match and len(shape) >= 3:
            return match[1] == "1"
    return None


def canonical_names_of(backbone: nn.Module) -> dict[str, str]:
    """Return the canonical name of each of a backbone's tensors, by its own."""
    return module_names(_shapes_of(backbone))[0]


def architecture_of(backbone: nn.Module) -> Architecture | None:
    """Return a backbone's architecture, inferred from its tensors."""
    shapes = _shapes_of(backbone)
    names, step1 = module_names(shapes)
    return infer_architecture({names[name]: shape for name, shape in shapes.items()}, _avg_down(step1))


def _shapes_of(backbone: nn.Module) -> dict[str, Shape]:
    return {name: tuple(value.shape) for name, value in backbone.state_dict().items()}


def check_input_channels(value: Any) -> None:
    """Check the argument ``input_channels`` of ``load_pretrained``."""
    if isinstance(value, Mapping):
        sound = bool(value) and all(
            _is_index(ours) and (theirs in _COLORS if isinstance(theirs, str) else _is_index(theirs))
            for ours, theirs in value.items()
        )
    else:
        sound = isinstance(value, str) and value in ("repeat", "red", "zeros")
    if not sound:
        raise ArgumentError(
            "input_channels must be 'repeat', 'red', 'zeros', or a mapping of the backbone's channels to the file's "
            f"(an index, 'red', 'green' or 'blue'), got {value!r}"
        )


def _is_index(value: Any) -> bool:
    return is_int(value) and value >= 0


def match_state_dict(
    backbone: nn.Module, network: SourceNetwork, input_channels: InputChannels = "repeat", bgr: bool = False
) -> Match:
    """Match a file's network to a backbone, which is not changed.

    Args:
        backbone: The backbone.
        network: The network.
        input_channels: As for ``load_pretrained``.
        bgr: Whether the file's input channels are blue, green and red, in this order.
    """
    result = Match()
    ours = canonical_names_of(backbone)
    state = backbone.state_dict()
    tensors = dict(network.tensors)
    _unfold(backbone, ours, tensors, network, result)
    plugins = _plugin_prefixes(backbone)
    for name, common in ours.items():
        value = tensors.pop(common, None)
        if value is None:
            if not name.endswith(_IGNORED):
                is_added = name.startswith(plugins) or _is_added(name, common, ours.values(), network.tensors)
                (result.added if is_added else result.missing).append(name)
            continue
        if name.endswith(_IGNORED) and value.numel() == 1:
            # Formats without scalars store it as a vector.
            value = value.reshape(state[name].shape)
        if common == "stem.conv1.weight":
            value = _adapt_input(name, value, state[name], input_channels, bgr, result)
        if value.shape != state[name].shape:
            result.mismatched.append((name, tuple(value.shape), tuple(state[name].shape)))
            continue
        result.loaded[name] = value
        if network.names.get(common, name) != name:
            result.renamed[name] = network.names[common]
    stages = {common.split(".")[0] for common in ours.values()}
    for common in tensors:
        if not common.endswith(_IGNORED):
            inside = common.split(".")[0] in stages and common not in ("fc.weight", "fc.bias")
            (result.unexpected if inside else result.unused).append(network.names.get(common, common))
    return result


def _plugin_prefixes(backbone: nn.Module) -> tuple[str, ...]:
    return tuple(
        f"{name}.{plugin}."
        for name, module in backbone.named_modules()
        for place in ("after_conv1", "after_conv2", "after_conv3")
        for plugin in getattr(module, f"{place}_plugin_names", None) or ()
    )


def _is_added(name: str, common: str, ours: Container[str], theirs: Container[str]) -> bool:
    """Whether a tensor belongs to a part that pretrained files never have."""
    # DetectoRS' convolution of the feature pyramid's output, which classifiers do not have.
    if ".rfp_conv." in name:
        return True
    # Additional parameters of a layer that replaces a convolution: offsets, masks, switches.
    match = re.match(r"(.*\bconv\d?|.*\bconvs\.\d+)\.(?!weight$|bias$)", common)
    weight = match and f"{match[1]}.weight"
    return weight in theirs and weight in ours


def _adapt_input(
    name: str, value: Tensor, own: Tensor, input_channels: InputChannels, bgr: bool, result: Match
) -> Tensor:
    """Adapt the first convolution to a different number of input channels."""
    if "float8" in str(value.dtype):  # without arithmetic
        value = value.float()
    # check_values refuses other dtypes.
    if value.dim() < 3 or value.dim() != own.dim() or value.dtype not in _FLOATS:
        return value
    theirs, ours = value.shape[1], own.shape[1]
    if value.shape[:1] + value.shape[2:] != own.shape[:1] + own.shape[2:]:
        return value
    if isinstance(input_channels, Mapping):
        return _select_channels(name, value, ours, input_channels, bgr, result)
    if theirs == ours or theirs != 3 or value.dim() != 4:
        return value
    if input_channels != "repeat":
        if ours < 3:
            raise ArgumentError(
                f"input_channels={input_channels!r} adds to the file's 3 channels; the backbone has in_channels={ours}"
            )
        red = {} if input_channels == "zeros" else dict.fromkeys(range(3, ours), "red")
        return _select_channels(name, value, ours, {0: 0, 1: 1, 2: 2, **red}, bgr, result)
    if ours == 1:
        # The three channels of a gray image are equal, so their weights add up.
        result.changes.append(f"{name} summed over its 3 input channels, for in_channels=1")
        return value.sum(dim=1, keepdim=True)
    result.changes.append(f"{name} repeated over {ours} input channels and scaled by 3/{ours}")
    return value[:, torch.arange(ours, device=value.device) % 3] * (3 / ours)


def _select_channels(
    name: str, value: Tensor, ours: int, channels: Mapping[int, int | str], bgr: bool, result: Match
) -> Tensor:
    """Copy the weights of the given input channels; those of the others are zero."""
    theirs = value.shape[1]
    new = value.new_zeros((value.shape[0], ours, *value.shape[2:]))
    colors = _COLORS[::-1] if bgr else _COLORS
    sources = {own: colors.index(of) if isinstance(of, str) else of for own, of in channels.items()}
    for own, source in sources.items():
        if own >= ours or source >= theirs or (isinstance(channels[own], str) and theirs != 3):
            raise ArgumentError(
                f"input_channels={dict(channels)!r} does not match: the backbone has {ours} input channels, and the "
                f"file has {theirs}"
            )
        new[:, own] = value[:, source]
    taken = ", ".join(f"{own} from {source}" for own, source in sorted(sources.items()))
    zeroed = [str(own) for own in range(ours) if own not in sources]
    zeros = f"; zeros for {', '.join(zeroed)}" if zeroed else ""
    result.changes.append(f"{name} assembled by input channel: {taken}{zeros}")
    return new


def _unfold(
    backbone: nn.Module, ours: Mapping[str, str], tensors: dict[str, Tensor], network: SourceNetwork, result: Match
) -> None:
    """Restore folded norm layers to batch norms with the same outputs.

    There are two kinds of folding. Caffe2's files have only the affine map, which is a batch norm with mean 0 and
    variance ``1 - eps``. In files for inference it is part of the convolution, which then has a bias.
    """
    # State dicts leave the names of some wrappers out.
    modules = {strip_wrappers(f"{name}."): module for name, module in backbone.named_modules()}
    # Caffe2's and Paddle's names show a batch norm; without statistics, others are group norms.
    may_fold = network.scheme.name in ("Caffe2", "Paddle, static graph") and not any(
        common.endswith(("running_mean", "running_var")) and common in tensors for common in ours.values()
    )
    folded = biases = 0
    for name, common in ours.items():
        norm = common.removesuffix(".running_var")
        conv = re.sub(r"norm(\d?)$", r"conv\1", norm)
        weight, bias = tensors.get(f"{conv}.weight"), tensors.get(f"{conv}.bias")
        if norm == common or weight is None or weight.dim() < 3 or weight.dtype not in _FLOATS:
            continue
        module: Any = modules.get(strip_wrappers(name.removesuffix("running_var")))
        # The file's own size could be anything if the weight has no elements.
        if module is None or weight.shape[:1] != module.running_var.shape:
            continue
        bare = f"{norm}.weight" not in tensors and bias is not None
        if bare:
            tensors[f"{norm}.weight"] = weight.new_ones(weight.shape[0])
            tensors[f"{norm}.bias"] = weight.new_zeros(weight.shape[0])
        if bare or (may_fold and "bn" in network.names.get(f"{norm}.weight", "")):
            tensors[f"{norm}.running_mean"] = weight.new_zeros(weight.shape[0])
            tensors[common] = weight.new_full(weight.shape[:1], 1 - float(module.eps), dtype=torch.float32)
            folded += 1
        mean = tensors.get(f"{norm}.running_mean")
        if bias is not None and mean is not None and mean.shape == bias.shape and {mean.dtype, bias.dtype} <= _FLOATS:
            tensors[f"{norm}.running_mean"] = mean - tensors.pop(f"{conv}.bias")
            biases += 1
    result.folded = folded > 0
    if folded:
        result.changes.append(f"{folded} folded norm layers got mean 0 and variance 1 - eps, with the same outputs")
    if biases:
        result.changes.append(f"the biases of {biases} convolutions moved into the running means of their norm layers")

"""What the parts of a backbone are made of: blocks, what stands in them, and norm layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ...blocks import Bottleneck, ResidualBlock
from ...deploy import computes_as_ours
from ...layers.build import is_norm
from ...layers.conv_norm import has_hooks, is_foldable
from ...layers.dcn_types import OWN_TYPES
from .description import Norms

__all__ = ["count_norms", "stage_layers", "stem_layers"]

# As configs call them; other layers go by the name of their class.
_NORM_NAMES = {
    "SyncBatchNorm": "SyncBN",
    "BatchNorm1d": "BN",
    "BatchNorm2d": "BN",
    "BatchNorm3d": "BN",
    "GroupNorm": "GN",
    "InstanceNorm1d": "IN",
    "InstanceNorm2d": "IN",
    "InstanceNorm3d": "IN",
    "LayerNorm": "LN",
}
_DCN_NAMES = {cls.__name__: name for name, cls in OWN_TYPES.items()}


def stem_layers(backbone: Any) -> str:
    """Say what the stem is made of, such as ``'conv 7x7, max pool'``."""
    layers = backbone.stem if backbone.deep_stem else [backbone.conv1]
    sizes = Counter("x".join(map(str, layer.kernel_size)) for layer in layers if _is_conv(layer))
    convs = [f"{count} conv {size}" if count > 1 else f"conv {size}" for size, count in sizes.items()]
    has_pool = not isinstance(getattr(backbone, "maxpool", nn.Identity()), nn.Identity)
    return ", ".join([*convs, *["max pool"] * has_pool])


def stage_layers(stage: Any) -> str:
    """Say what a stage is made of, such as ``'4 Bottleneck, 4 DCNv2'``."""
    if hasattr(stage, "branches"):
        sizes = " ".join(str(branch[0].kernel_size) for branch in stage.branches)
        return f"{stage_layers(stage.branches[0])} in each branch, kernels {sizes}"
    blocks = list(stage)
    words = _counted(type(block).__name__ for block in blocks)
    words += _counted(
        _DCN_NAMES.get(type(layer).__name__, type(layer).__name__)
        for layer in stage.modules()
        if hasattr(layer, "conv_offset")
    )
    words += _counted(type(plugin).__name__ for block in blocks for plugin in _plugins(block))
    dilations = [getattr(block, "dilation", 1) for block in blocks]
    if max(dilations) > 1:
        each = dilations if len(set(dilations)) > 1 else dilations[:1]
        words.append(f"dilation {' '.join(map(str, each))}")
    if any(getattr(block, "with_cp", False) for block in blocks):
        words.append("checkpointed")
    return ", ".join(words)


def count_norms(backbone: Any, modules: Sequence[nn.Module]) -> Norms:
    """Count the norm layers in some of a backbone's modules."""
    layers = [layer for module in modules for layer in module.modules()]
    norms = [layer for layer in layers if is_norm(type(layer))]
    with_statistics = [norm for norm in norms if isinstance(norm, _NormBase) and norm.running_mean is not None]
    updated = sum(norm.training for norm in with_statistics)
    folded = {id(norm) for conv, norm in _folding_pairs(backbone) if is_foldable(conv, norm)}
    gone = sum(isinstance(layer, nn.Identity) for layer in layers) if getattr(backbone, "deployed", False) else 0
    return Norms(
        types=dict(Counter(_NORM_NAMES.get(type(norm).__name__, type(norm).__name__) for norm in norms)),
        updated=updated,
        fixed=len(with_statistics) - updated,
        folded=sum(id(norm) in folded for norm in norms),
        gone=gone,
    )


def _folding_pairs(backbone: Any) -> Iterator[tuple[Any, Any]]:
    """The convolutions that ``fold_norm`` computes with the layers behind them, where those are in eval mode."""
    if not getattr(backbone, "fold_norm", False):
        return
    if backbone._runs_stem_as_ours():
        yield from _pairs_in(backbone.stem) if backbone.deep_stem else [(backbone.conv1, backbone.norm1)]
    for block in backbone.modules():
        if isinstance(block, ResidualBlock) and block.fold_norm and computes_as_ours(block):
            yield from ((getattr(block, conv), getattr(block, norm)) for conv, norm in block.conv_norm_names)
            yield from _pairs_in(block.downsample)


def _pairs_in(layers: Any) -> Iterator[tuple[Any, Any]]:
    if type(layers) is nn.Sequential and not has_hooks(layers):
        yield from pairwise(layers)


def _plugins(block: Any) -> Iterator[nn.Module]:
    names = (getattr(block, f"{position}_plugin_names", []) for position in Bottleneck.plugin_positions)
    return (getattr(block, name) for name in chain.from_iterable(names))


def _is_conv(layer: nn.Module) -> bool:
    return hasattr(layer, "kernel_size")


def _counted(names: Any) -> list[str]:
    return [f"{count} {name}" for name, count in Counter(names).items()]

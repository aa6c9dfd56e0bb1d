"""Describe a backbone: count its layers, and run a copy of it to see what it returns, computes and keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import ArgumentError, ArgumentTypeError, check_channels, is_int
from ...layers.dimensions import layout
from ...resnet import ResNet, channels_of
from .description import Description, Norms, Part
from .layers import count_norms, stage_layers, stem_layers
from .run import Run

__all__ = ["DEFAULT_SIZES", "describe"]

DEFAULT_SIZES: dict[int, tuple[int, ...]] = {1: (1000,), 2: (224, 224), 3: (16, 112, 112)}
"""The size of the input where none is given, by its number of dimensions."""


def describe(backbone: nn.Module, size: Sequence[int] | None = None, batch: int = 1) -> Description:
    """Say what a backbone is made of, and what its parts cost for an input.

    The mode counts as it is: ``train()`` before shows what training does and keeps, ``eval()`` what inference does.
    One batch of zeros is run twice, through a copy of the backbone.

    Args:
        backbone: A ResNet, of this package or of mmdet's make.
        size: Size of the input, ``(H, W)`` in pixels; ``(L,)`` for signals, ``(T, H, W)`` for volumes. ``None`` means
            224 by 224, 1000, or 16 by 112 by 112.
        batch: Number of images in the batch.

    Returns:
        The parts with their parameters, operations and memory; ``print`` shows them as a table.

    Raises:
        ArgumentTypeError: ``backbone`` is no ResNet.
        ArgumentError: ``size`` or ``batch`` is not allowed, or the input is too small for the backbone.

    Example:
        >>> from resnet_backbone import ResNet
        >>> description = describe(ResNet(depth=50).train())
        >>> f"{description.params / 1e6:.2f} M parameters, {description.macs / 1e9:.2f} G MACs"
        '23.51 M parameters, 4.09 G MACs'
    """
    if not isinstance(backbone, nn.Module) or not hasattr(backbone, "res_layers"):
        raise ArgumentTypeError(f"backbone must be a ResNet, with stages in res_layers, got {type(backbone).__name__}")
    first = next(backbone.parameters())
    if first.is_meta:
        raise ArgumentError("backbone must hold its weights to be run, and they are on the device 'meta'")
    check_channels("batch", batch)
    shape = (batch, _in_channels(backbone), *_check_size(size, getattr(backbone, "spatial_dims", 2)))
    run = Run(copy.deepcopy(backbone), torch.zeros(shape, device=first.device, dtype=first.dtype))
    return Description(_title(backbone, shape), shape, tuple(_parts(backbone, run)), tuple(_notes(backbone, run)))


def _check_size(size: Any, dims: int) -> tuple[int, ...]:
    if size is None:
        return DEFAULT_SIZES[dims]
    if not isinstance(size, Sequence) or len(size) != dims or not all(is_int(side) and side >= 1 for side in size):
        raise ArgumentError(
            f"size must be {dims} integer{'s' * (dims > 1)} of at least 1, for an input {layout(dims)}, got {size!r}"
        )
    return tuple(size)


def _in_channels(backbone: nn.Module) -> int:
    """What the backbone says that it takes, or what its first convolution does."""
    channels = getattr(backbone, "in_channels", None)
    if channels is None:
        channels = next(module.in_channels for module in backbone.modules() if hasattr(module, "in_channels"))
    return cast(int, channels)


def _title(backbone: Any, shape: tuple[int, ...]) -> str:
    mode = "deployed" if getattr(backbone, "deployed", False) else "train mode" if backbone.training else "eval mode"
    words = [f"{type(backbone).__name__}-{backbone.depth}"]
    words += [name for name in ("fold_norm", "channels_last") if getattr(backbone, name, False)]
    words += [f"frozen_stages={backbone.frozen_stages}", mode]
    return f"{', '.join(words)}; input {' x '.join(map(str, shape))}"


def _parts(backbone: Any, run: Run) -> Iterator[Part]:
    stages = {name: getattr(backbone, name) for name in backbone.res_layers}
    head = getattr(backbone, "fc", None)
    stem = [module for module in backbone.children() if module not in [*stages.values(), head]]
    stride = ResNet._stem_stride(backbone)
    channels = run.shapes["stem"][0][1]
    yield Part("stem", stem_layers(backbone), channels, stride, *_measured("stem", stem, backbone, run))
    for (name, stage), own_stride in zip(stages.items(), backbone.strides):
        stride *= own_stride
        layers = stage_layers(stage)
        yield Part(name, layers, channels_of(stage), stride, *_measured(name, [stage], backbone, run))
    if head is not None:
        yield Part("fc", "classifier", head.out_features, None, *_measured("fc", [head], backbone, run))


def _measured(
    name: str, modules: Sequence[nn.Module], backbone: Any, run: Run
) -> tuple[tuple[int, ...] | None, int, int, int, int, Norms]:
    """The last six fields of a part."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    size = max(shape[2:] for shape in run.shapes[name]) if name in run.shapes else None
    return (
        size,
        sum(parameter.numel() for parameter in parameters),
        sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        run.macs[name],
        run.kept_bytes[name],
        count_norms(backbone, modules),
    )


def _notes(backbone: Any, run: Run) -> Iterator[str]:
    yield (
        "MACs: multiplications of convolutions and matrix products, forward. kept: for the backward pass, without "
        "parameters; 1 MB is 10^6 bytes."
    )
    modules = list(backbone.modules())
    if any(isinstance(module, _BatchNorm) for module in modules):
        yield "Batch norms in train mode update their running statistics, in eval mode they do not."
    if any(hasattr(module, "conv_offset") for module in modules):
        yield "Deformable convolutions: the offsets' convolution counts too, the interpolation between pixels does not."
    if any(getattr(module, "with_cp", False) is True for module in modules):
        yield "Checkpointed blocks keep their input, and compute the rest again in the backward pass."
    for name, shapes in run.shapes.items():
        if len({shape[2:] for shape in shapes}) > 1:
            yield f"{name}: the branches' lengths are {', '.join(str(shape[2]) for shape in shapes)}."

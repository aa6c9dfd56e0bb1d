"""``resnet-backbone info``: the layers and costs of a backbone, stage by stage."""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, DictAction
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from ..deploy import computes_as_ours
from ..errors import ArgumentError, ArgumentTypeError, check_channels, is_int
from ..integrations.mmdet.configs import load_backbone_cfg
from ..integrations.mmdet.registry import build_backbone
from ..layers.build import is_norm
from ..layers.conv_norm import is_foldable
from ..layers.dimensions import layout
from ..resnet import channels_of
from .saved_tensors import SavedTensorBytes

__all__ = ["Description", "Part", "aligned", "describe", "show_info"]

DEFAULT_SIZES: dict[int, tuple[int, ...]] = {1: (1000,), 2: (224, 224), 3: (16, 112, 112)}
HEADINGS = ("part", "layers", "channels", "stride", "output", "params M", "MACs G", "saved MB", "trains", "norm layers")


@dataclass(frozen=True)
class Part:
    """One part of a backbone: the stem, a stage, or a classifier.

    Attributes:
        name: ``'stem'``, or the module's name, such as ``'layer2'``.
        layers: Summary of its layers, such as ``'4 Bottleneck, 4 DCNv2'``.
        channels: Number of output channels.
        stride: Stride of its output relative to the input; ``None`` for a classifier.
        size: Size of its output, such as ``(56, 56)``; ``None`` for a stage after ``out_indices``, which does not run.
        params: Number of parameters.
        trainable: Number of parameters that require grad.
        macs: Multiply-accumulate operations of the forward pass of the whole batch.
        saved_bytes: Bytes that autograd saves for the backward pass, without parameters and buffers.
        norms: Its norm layers and their mode, such as ``'10 BatchNorm2d eval folded'``.
    """

    name: str
    layers: str
    channels: int
    stride: int | None
    size: tuple[int, ...] | None
    params: int
    trainable: int
    macs: int
    saved_bytes: int
    norms: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        trains = {0: "no", self.params: "yes"}.get(self.trainable, f"{self.trainable / 1e6:.2f} M")
        costs = (f"{self.params / 1e6:.2f}", f"{self.macs / 1e9:.3f}", f"{self.saved_bytes / 1e6:.1f}", trains)
        if self.name == "total":
            return (self.name, "", "", "", "", *costs, "")
        size = "not run" if self.size is None else " x ".join(map(str, self.size))
        return (self.name, self.layers, str(self.channels), str(self.stride or ""), size, *costs, self.norms)


@dataclass(frozen=True)
class Description:
    """The parts of a backbone; ``print`` shows them as a table.

    Attributes:
        title: The network's name and mode, and the input.
        input_shape: Shape of the input.
        parts: The parts, in the order in which they run.
        notes: What the numbers do and do not include.
    """

    title: str
    input_shape: tuple[int, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    @property
    def total(self) -> Part:
        """The sums over all parts."""
        costs = ("params", "trainable", "macs", "saved_bytes")
        return Part("total", "", 0, None, None, *(sum(getattr(part, cost) for part in self.parts) for cost in costs))

    def __str__(self) -> str:
        headings, *rows, total = aligned([HEADINGS, *(part.cells for part in self.parts), self.total.cells])
        rule = "-" * max(map(len, [headings, *rows]))
        return "\n".join([self.title, headings, rule, *rows, rule, total, *self.notes])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def describe(backbone: nn.Module, size: Sequence[int] | None = None, batch: int = 1) -> Description:
    """Describe the parts of a backbone and their costs.

    A copy of the backbone runs on zeros, in its current mode: call ``train()`` or ``eval()`` before.

    Args:
        backbone: A ResNet of this package or of mmdet.
        size: Size of the input: ``(H, W)`` in pixels, ``(L,)`` for signals, ``(T, H, W)`` for volumes. ``None`` means
            224 by 224, 1000, or 16 by 112 by 112.
        batch: Number of images in the batch.

    Raises:
        ArgumentTypeError: ``backbone`` is not a ResNet.
        ArgumentError: ``size`` or ``batch`` is invalid, or the input is too small for the backbone.

    Examples:
        >>> from resnet_backbone import ResNet
        >>> total = describe(ResNet(depth=50).train()).total
        >>> f"{total.params / 1e6:.2f} M parameters, {total.macs / 1e9:.2f} G MACs"
        '23.51 M parameters, 4.09 G MACs'
    """
    if not isinstance(backbone, nn.Module) or not hasattr(backbone, "res_layers"):
        raise ArgumentTypeError(f"backbone must be a ResNet, with stages in res_layers, got {type(backbone).__name__}")
    first = next(backbone.parameters())
    if first.is_meta:
        raise ArgumentError("backbone must not be on the device 'meta', since it is run")
    check_channels("batch", batch)
    # A subclass may skip ResNet.__init__, as mmdet's RegNet does.
    channels = getattr(backbone, "in_channels", None) or first.shape[1]
    shape = (batch, channels, *_check_size(size, getattr(backbone, "spatial_dims", 2)))
    run = _run(backbone, torch.zeros(shape, device=first.device, dtype=first.dtype))
    return Description(_title(backbone, shape), shape, tuple(_parts(backbone, run)), tuple(_notes(backbone, run)))


def _check_size(size: Any, dims: int) -> tuple[int, ...]:
    if size is None:
        return DEFAULT_SIZES[dims]
    if not isinstance(size, Sequence) or len(size) != dims or not all(is_int(side) and side >= 1 for side in size):
        integers = "1 integer" if dims == 1 else f"{dims} integers"
        raise ArgumentError(f"size must be {integers} of at least 1, for an input {layout(dims)}, got {size!r}")
    return tuple(size)


def _title(backbone: Any, shape: tuple[int, ...]) -> str:
    mode = "deployed" if getattr(backbone, "deployed", False) else "train mode" if backbone.training else "eval mode"
    flags = [name for name in ("fold_norm", "channels_last") if getattr(backbone, name, False)]
    words = [f"{type(backbone).__name__}-{backbone.depth}", *flags, f"frozen_stages={backbone.frozen_stages}", mode]
    return f"{', '.join(words)}; input {' x '.join(map(str, shape))}"


def _parts(backbone: Any, run: _Run) -> Iterator[Part]:
    stages = [getattr(backbone, name) for name in backbone.res_layers]
    head = getattr(backbone, "fc", None)
    stem = nn.ModuleList(module for module in backbone.children() if module not in [*stages, head])
    folded = set(map(id, _folded_norms(backbone)))
    stride = backbone._stem_stride()

    def part(name: str, module: nn.Module, layers: str, channels: int, stride: int | None) -> Part:
        params = sum(parameter.numel() for parameter in module.parameters())
        trainable = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        size = max(shape[2:] for shape in run.shapes[name]) if name in run.shapes else None
        norms = _describe_norms(module, folded)
        return Part(name, layers, channels, stride, size, params, trainable, run.macs[name], run.saved[name], norms)

    yield part("stem", stem, _stem_layers(stem), run.shapes["stem"][0][1], stride)
    for name, stage, own_stride in zip(backbone.res_layers, stages, backbone.strides):
        stride *= own_stride
        yield part(name, stage, _stage_layers(stage), channels_of(stage), stride)
    if head is not None:
        yield part("fc", head, "classifier", head.out_features, None)


def _stem_layers(stem: Any) -> str:
    sizes = Counter("x".join(map(str, m.kernel_size)) for m in stem.modules() if "Conv" in type(m).__name__)
    convs = [f"{count} conv {size}" if count > 1 else f"conv {size}" for size, count in sizes.items()]
    return ", ".join(convs + ["max pool"] * any("Pool" in type(m).__name__ for m in stem.modules()))


def _stage_layers(stage: Any) -> str:
    if hasattr(stage, "branches"):
        sizes = " ".join(str(branch[0].kernel_size) for branch in stage.branches)
        return f"{_stage_layers(stage.branches[0])} in each branch, kernels {sizes}"
    blocks = list(stage)
    plugins = [names for block in blocks for key, names in vars(block).items() if key.endswith("_plugin_names")]
    layers = [*blocks, *(module for module in stage.modules() if hasattr(module, "conv_offset"))]
    layers += [module for block in blocks for name, module in block.named_children() if name in chain(*plugins)]
    words = [f"{count} {name}" for name, count in Counter(type(layer).__name__ for layer in layers).items()]
    dilations = [getattr(block, "dilation", 1) for block in blocks]
    if max(dilations) > 1:
        words.append("dilation " + " ".join(map(str, dilations if len(set(dilations)) > 1 else dilations[:1])))
    return ", ".join(words + ["checkpointed"] * any(getattr(block, "with_cp", False) for block in blocks))


def _describe_norms(module: nn.Module, folded: set[int]) -> str:
    kinds = Counter[str]()
    for norm in module.modules():
        if is_norm(type(norm)):
            mode = (" train" if norm.training else " eval") if isinstance(norm, _BatchNorm) else ""
            kinds[type(norm).__name__ + mode + " folded" * (id(norm) in folded)] += 1
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _folded_norms(backbone: Any) -> Iterator[nn.Module]:
    """Return the norm layers that ``fold_norm`` folds."""
    if not getattr(backbone, "fold_norm", False):
        return
    pairs: list[Any] = [(backbone.conv1, backbone.norm1)] if hasattr(backbone, "conv1") else []
    for module in backbone.modules():
        if computes_as_ours(module):
            pairs += ((module.get_submodule(conv), module.get_submodule(norm)) for conv, norm in module.conv_norm_names)
        elif isinstance(module, nn.Sequential):
            pairs += pairwise(module)
    yield from (norm for conv, norm in pairs if isinstance(norm, _BatchNorm) and is_foldable(conv, norm))


def _notes(backbone: nn.Module, run: _Run) -> Iterator[str]:
    yield "MACs: of the convolutions and matrix products in the forward pass. saved: for the backward pass, without"
    yield "parameters; 1 MB is 10^6 bytes."
    if any(hasattr(module, "conv_offset") for module in backbone.modules()):
        yield "Deformable convolutions: with the convolution of the offsets, without the interpolation between pixels."
    if any(getattr(module, "with_cp", False) is True for module in backbone.modules()):
        yield "Checkpointed blocks save their input, and are recomputed in the backward pass."
    for name, shapes in run.shapes.items():
        if len({shape[2:] for shape in shapes}) > 1:
            yield f"{name}: the branches' lengths are {', '.join(str(shape[2]) for shape in shapes)}."


class _Run(NamedTuple):
    """Output shapes (one per branch), MACs and saved bytes of the parts of a backbone that ran."""

    shapes: dict[str, list[tuple[int, ...]]]
    macs: Counter[str]
    saved: Counter[str]


def _run(backbone: Any, x: Tensor) -> _Run:
    # SyncBatchNorm needs a process group on GPUs. BatchNorm costs the same.
    backbone = revert_sync_batchnorm(copy.deepcopy(backbone))
    counter = FlopCounterMode(display=False)
    part = "stem"
    run = _Run({}, Counter(), Counter())
    deformable: Counter[str] = Counter()

    def enter(name: str, x: Any) -> None:
        nonlocal part
        run.shapes.setdefault("stem", _shapes(x))
        run.macs[part] += counter.get_total_flops() // 2 - run.macs.total()
        part = name

    def count_deformable(conv: Any, _: Any, out: Tensor) -> None:
        # FlopCounterMode does not know this operator.
        deformable[part] += out.numel() // out.shape[1] * conv.weight.numel()

    for name in [*backbone.res_layers, "fc"]:
        if isinstance(module := getattr(backbone, name, None), nn.Module):
            module.register_forward_pre_hook(lambda _, x, name=name: enter(name, x[0]))
            module.register_forward_hook(lambda *args, name=name: run.shapes.update({name: _shapes(args[-1])}))
    # Plugins may draw random numbers.
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []), torch.inference_mode(False):
        with torch.enable_grad(), SavedTensorBytes(backbone, lambda: part) as saved:
            try:
                outputs = backbone(x)
            except ValueError as error:  # a batch norm in train mode needs more than one position
                raise ArgumentError(f"size={tuple(x.shape[2:])} with batch={len(x)} is too small: {error}") from error
        run.saved.update({name: saved.bytes(name) for name in run.shapes})
        del outputs
        part = "stem"
        for module in backbone.modules():
            if hasattr(module, "conv_offset"):
                module.register_forward_hook(count_deformable)
        with torch.no_grad(), counter:
            backbone.eval()(x)
        enter("end", x)
    run.macs.update(deformable)
    return run


def _shapes(out: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in ((out,) if isinstance(out, Tensor) else out)]


def show_info(arguments: argparse.Namespace) -> None:
    """Print the table of a backbone: the command ``resnet-backbone info``."""
    backbone_cfg = {"type": "ResNet", "depth": 50 if arguments.depth is None else arguments.depth}
    cfg = Config({"backbone": backbone_cfg if arguments.config is None else load_backbone_cfg(arguments.config)})
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="*", action=DictAction)  # in the syntax of mmdet's tools
    for option in arguments.cfg_options:
        try:
            values = parser.parse_args(["--cfg-options", option]).cfg_options
            cfg.merge_from_dict({f"backbone.{key}": value for key, value in values.items()})
        except (AssertionError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            # The errors of mmengine's parser name neither the option nor the value.
            raise ArgumentError(
                f"--cfg-options cannot set {option!r}: write key=value with numbers, words, [lists] and (tuples) "
                f"without spaces, and a dict key by key, as in norm_cfg.type=GN norm_cfg.num_groups=32"
            ) from error
    if arguments.frozen_stages is not None:
        cfg.backbone.frozen_stages = arguments.frozen_stages
    backbone = build_backbone(cfg.to_dict()["backbone"])
    backbone.train(not arguments.eval)  # mmdet's train() returns None
    print(describe(backbone, arguments.size, arguments.batch))

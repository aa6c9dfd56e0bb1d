"""Run a backbone to see what each of its parts returns, computes and keeps."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ...errors import ArgumentError
from ..saved_tensors import KeptTensors

__all__ = ["Run"]

Shape = tuple[int, ...]


class Run:
    """What the parts of a backbone returned, computed and kept.

    Args:
        backbone: A copy of the backbone, which is changed.
        x: The input.

    Attributes:
        shapes: What each part that ran returned: one shape, or one for each of its branches.
        macs: Multiply-accumulate operations of each part.
        kept_bytes: What autograd kept for each part's backward pass.
    """

    def __init__(self, backbone: nn.Module, x: Tensor) -> None:
        # Synchronised batch norms train in a process group on GPUs alone; their plain kin keep and compute the same.
        self._backbone: nn.Module = revert_sync_batchnorm(backbone)
        self._x = x
        self._part = "stem"
        self.shapes: dict[str, list[Shape]] = {}
        self.macs: Counter[str] = Counter()
        self.kept_bytes: Counter[str] = Counter()
        for name in [*cast("list[str]", backbone.res_layers), "fc"]:
            self._follow(name)
        # Plugins may draw random numbers; those of the caller stay as they were.
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []), torch.inference_mode(False):
            self._weigh()
            self._count()

    def _follow(self, name: str) -> None:
        """Note when a stage, or the classifier, begins, and what it returns."""
        module = getattr(self._backbone, name, None)
        if module is None:
            return

        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self.shapes.setdefault("stem", _shapes(inputs[0]))
            self._part = name

        def leave(_: nn.Module, __: Any, out: Any) -> None:
            self.shapes[name] = _shapes(out)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _weigh(self) -> None:
        """Run the backbone in its mode, and see what autograd keeps."""
        kept = KeptTensors(self._backbone, lambda: self._part)
        with torch.enable_grad(), kept:
            levels = self._forward()
        self.kept_bytes.update({name: kept.bytes(name) for name in self.shapes})
        del levels

    def _count(self) -> None:
        """Run the backbone in eval mode, which computes the same convolutions, and count."""
        counter = FlopCounterMode(display=False)
        corrections: Counter[str] = Counter()

        def begin(module: Any, _: Any) -> None:
            module.macs_before = counter.get_total_flops() // 2

        def end(module: Any, _: Any, out: Tensor) -> None:
            counted = counter.get_total_flops() // 2 - module.macs_before
            corrections[self._part] += _macs_of_deform_conv(module, out) - counted

        for module in self._backbone.modules():
            # Of a deformable convolution's operator the counter knows nothing, or, of some of them, a part.
            if hasattr(module, "conv_offset"):
                module.register_forward_pre_hook(begin)
                module.register_forward_hook(end)
        passed: dict[str, int] = {}
        for name in self.shapes:
            if name != "stem":
                getattr(self._backbone, name).register_forward_pre_hook(
                    lambda *_, name=name: passed.__setitem__(name, counter.get_total_flops())
                )
        self._backbone.eval()
        self._part = "stem"
        with torch.no_grad(), counter:
            self._backbone(self._x)
        ends = [*passed.values(), counter.get_total_flops()]
        starts = [0, *passed.values()]
        for name, start, stop in zip(["stem", *passed], starts, ends):
            self.macs[name] = (stop - start) // 2 + corrections[name]

    def _forward(self) -> Any:
        try:
            return self._backbone(self._x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ArgumentError(
                f"size must leave batch norms in train mode more than one position to normalise over, got "
                f"{tuple(self._x.shape[2:])} and batch={len(self._x)}: give larger ones, or call eval() before"
            ) from error


def _shapes(out: Tensor | tuple[Tensor, ...]) -> list[Shape]:
    return [tuple(tensor.shape) for tensor in ((out,) if isinstance(out, Tensor) else out)]


def _macs_of_deform_conv(conv: Any, out: Tensor) -> int:
    """Those of its own convolution and of the one that makes its offsets, at the same positions."""
    positions = out.numel() // out.shape[1]
    return int(positions * (conv.weight.numel() + conv.conv_offset.weight.numel()))

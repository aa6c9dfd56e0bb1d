"""ResNeXt-101 64x4d and Res2Net-101: bytes saved and time of a training step, exact, folded and compiled.

python -m benchmarks.family --size 320 480
python -m benchmarks.family --saved-only
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from torch import nn

from resnet_backbone import build_backbone
from resnet_backbone.tools.saved_tensors import SavedTensorBytes

NETWORKS: dict[str, dict[str, Any]] = {
    "ResNeXt-101 64x4d": dict(type="ResNeXt", depth=101, groups=64, base_width=4),
    "Res2Net-101 26w 4s": dict(type="Res2Net", depth=101, scales=4, base_width=26),
}
MODES = ("exact", "folded", "folded, compiled")


def build(cfg: dict[str, Any], mode: str) -> nn.Module:
    """A network of mmdet's configs, in train mode."""
    torch.manual_seed(0)
    backbone = build_backbone(dict(copy.deepcopy(cfg), frozen_stages=1, fold_norm=mode != "exact")).train()
    if mode.endswith("compiled"):
        backbone.compile()
    return backbone


def step(backbone: nn.Module, x: torch.Tensor) -> float:
    """Run one training step; return its seconds."""
    backbone.zero_grad(set_to_none=True)
    start = time.perf_counter()
    outs = [level for level in backbone(x) if level.requires_grad]
    torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
    return time.perf_counter() - start


def saved(backbone: nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward pass saves for the backward pass."""
    with SavedTensorBytes(backbone) as counter:
        levels = backbone(x)
        total = counter.bytes()
    del levels
    return total


def main() -> None:
    """Measure memory, time alternately, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--saved-only", action="store_true")
    arguments = parser.parse_args()
    x = torch.randn(arguments.batch, 3, *arguments.size)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.batch}x3x{arguments.size}")
    for name, cfg in NETWORKS.items():
        for mode in MODES[:2]:
            print(f"{name:20} {mode:18} saved {saved(build(cfg, mode), x) / 1e6:8.1f} MB", flush=True)
        if arguments.saved_only:
            continue
        backbones = {mode: build(cfg, mode) for mode in MODES}
        times: dict[str, list[float]] = {mode: [] for mode in MODES}
        for _ in range(arguments.repeats + 1):
            for mode, backbone in backbones.items():
                times[mode].append(step(backbone, x))
        for mode, seconds in times.items():
            # The first run of each is a warm-up, and compiles.
            print(f"{name:20} {mode:18} step {statistics.median(seconds[1:]):6.2f} s", flush=True)


if __name__ == "__main__":
    main()

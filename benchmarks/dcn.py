"""Time and memory of a ResNet-50 with DCNv2, with torchvision's operator and with compiled mmcv's.

Run where compiled mmcv is installed:

    python benchmarks/dcn.py --size 320 480
"""

from __future__ import annotations

import argparse
import statistics
import time

import mmcv.ops
import torch
from torch import nn

from benchmarks.bench.measure import saved_bytes
from resnet_backbone import ResNet
from resnet_backbone.layers.deform import ModulatedDeformConv2dPack

LAYERS = {"compiled mmcv": mmcv.ops.ModulatedDeformConv2dPack, "torchvision's operator": ModulatedDeformConv2dPack}


def build(layer: type[nn.Module]) -> ResNet:
    """ResNet-50 as mmdet's DCNv2 configs have it, with offsets that are not zero."""
    torch.manual_seed(0)
    backbone = ResNet(50, frozen_stages=1, dcn=dict(type=layer), stage_with_dcn=(False, True, True, True))
    backbone.init_weights()
    for module in backbone.modules():
        if isinstance(module, layer):
            nn.init.normal_(module.conv_offset.weight, std=0.01)
    return backbone.train()


def main() -> None:
    """Compare, time alternately, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    x = torch.randn(arguments.batch, 3, *arguments.size)
    backbones = {name: build(layer) for name, layer in LAYERS.items()}
    levels = [backbone(x) for backbone in backbones.values()]
    print("outputs bitwise equal:", all(torch.equal(one, other) for one, other in zip(*levels)))
    saved = {name: saved_bytes(backbone, lambda backbone=backbone: backbone(x)) for name, backbone in backbones.items()}
    times: dict[str, dict[str, list[float]]] = {name: {"forward": [], "backward": []} for name in LAYERS}
    for _ in range(arguments.repeats + 1):
        for name, backbone in backbones.items():
            backbone.zero_grad(set_to_none=True)
            start = time.perf_counter()
            outs = [level for level in backbone(x) if level.requires_grad]
            middle = time.perf_counter()
            torch.autograd.backward(outs, [torch.ones_like(out) for out in outs])
            times[name]["forward"].append(middle - start)
            times[name]["backward"].append(time.perf_counter() - middle)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.batch}x3x{arguments.size}")
    for name, row in times.items():
        # The first run of each is a warm-up.
        forward, backward = (statistics.median(row[part][1:]) for part in ("forward", "backward"))
        print(f"{name:24} forward {forward:6.2f} s   backward {backward:6.2f} s   saved {saved[name] / 1e6:7.1f} MB")


if __name__ == "__main__":
    main()

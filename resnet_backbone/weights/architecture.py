"""Infer the architecture of a network from the shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .names import Shape

__all__ = ["Architecture", "describe_difference", "infer_architecture", "other_network"]


_DEPTHS: dict[tuple[bool, tuple[int, ...]], int] = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (2, 2, 2, 2)): 26,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
    (True, (3, 24, 36, 3)): 200,
    (True, (3, 30, 48, 8)): 269,
}

# Layers that only the blocks of these networks have.
_FAMILIES = {"layer1.0.convs.0.weight": "Res2Net", "layer1.0.conv2.fc1.weight": "ResNeSt"}


class Architecture(NamedTuple):
    """The architecture of a residual network, as far as its weights show it.

    Attributes:
        bottleneck: Whether its blocks are Bottlenecks.
        blocks: Number of blocks of each stage.
        deep_stem: Whether its stem has three convolutions.
        stem_kernel: Kernel size of the stem's first convolution, such as ``(7, 7)``; empty if the file has none.
        avg_down: Whether its shortcuts average before they project; ``None`` if the names do not show it.
        projection: Whether the first block of the first stage has a projection in its shortcut.
        groups: Groups of the first stage's 3x3 convolutions.
        width: Channels of the first stage's 3x3 convolutions.
        base_channels: ``planes`` of the first stage: the output channels of a BasicBlock, a quarter of a Bottleneck's.
        running_statistics: Whether its norm layers have running statistics, as batch norm does.
        family: ``'Res2Net'`` or ``'ResNeSt'``, whose blocks have other layers, or ``'ResNet'``.
    """

    bottleneck: bool
    blocks: tuple[int, ...]
    deep_stem: bool
    stem_kernel: tuple[int, ...]
    avg_down: bool | None
    projection: bool
    groups: int
    width: int
    base_channels: int
    running_statistics: bool
    family: str

    @property
    def depth(self) -> int | None:
        """The depth in the architecture's usual name; ``None`` if there is none."""
        return _DEPTHS.get((self.bottleneck, self.blocks))

    @property
    def name(self) -> str:
        """The usual name, such as ``'ResNet-50'`` or ``'ResNeXt-101 32x8d'``."""
        number = str(self.depth or f"like network of {'-'.join(map(str, self.blocks))} blocks")
        if self.family != "ResNet":
            return f"{self.family}-{number}"
        if self.bottleneck and self.width == 4 * self.base_channels:
            return f"RegNet of {'-'.join(map(str, self.blocks))} blocks"
        if self.groups > 1:
            return f"ResNeXt-{number} {self.groups}x{self.width // self.groups}d"
        if self.bottleneck and self.width == 2 * self.base_channels:
            return f"Wide ResNet-{number}-2"
        variant = {(True, True): "-D", (True, False): "-C"}.get((self.deep_stem, bool(self.avg_down)), "")
        if self.deep_stem and self.avg_down is None:
            variant = "-C or -D"
        return f"ResNet-{number}{variant}"

    def config(self) -> dict[str, Any]:
        """The arguments of a ``ResNet`` with these shapes, with batch norm or group norm."""
        norm = {"type": "BN"} if self.running_statistics else {"type": "GN", "num_groups": 32}
        return {
            "depth": self.depth,
            "num_stages": len(self.blocks),
            "out_indices": tuple(range(len(self.blocks))),
            "deep_stem": self.deep_stem,
            "avg_down": bool(self.avg_down),
            **({} if self.bottleneck or not self.projection else {"projection_shortcut": True}),
            "base_channels": self.base_channels,
            "norm_cfg": norm,
        }


def infer_architecture(shapes: Mapping[str, Shape], avg_down: bool | None = None) -> Architecture | None:
    """Infer an architecture from the shapes of its tensors by canonical name; ``None`` without a first block.

    ``avg_down`` becomes an attribute of the result.
    """
    first = shapes.get("layer1.0.conv1.weight")
    if first is None or len(first) < 3:
        return None
    second = shapes.get("layer1.0.conv2.weight", ())
    third = shapes.get("layer1.0.conv3.weight", ())
    bottleneck = len(third) >= 3
    grouped = bottleneck and len(second) >= 3 and second[1] > 0
    return Architecture(
        bottleneck=bottleneck,
        blocks=_count_blocks(shapes),
        deep_stem="stem.conv3.weight" in shapes,
        stem_kernel=shapes.get("stem.conv1.weight", ())[2:],
        avg_down=avg_down,
        projection="layer1.0.downsample.conv.weight" in shapes,
        groups=first[0] // second[1] if grouped else 1,
        width=first[0],
        base_channels=third[0] // 4 if bottleneck else first[0],
        running_statistics="layer1.0.norm1.running_var" in shapes,
        family=next((family for name, family in _FAMILIES.items() if name in shapes), "ResNet"),
    )


def _count_blocks(shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        if match := re.match(r"layer(\d+)\.(\d+)\.conv1\.weight$", name):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    return tuple(len(blocks[stage]) for stage in sorted(blocks))


def describe_difference(file: Architecture, backbone: Architecture, depth: Any = None) -> str | None:
    """Describe how a file's architecture differs from that of a backbone with the argument ``depth``, if it does.

    Only stages that both have are compared, so a backbone with fewer stages matches the file of a whole network.
    """
    if file.family != backbone.family:
        return f"this file is a {file.name}; the backbone is a {backbone.name}"
    shared = min(len(file.blocks), len(backbone.blocks))
    other_depth = (file.bottleneck, file.blocks[:shared]) != (backbone.bottleneck, backbone.blocks[:shared])
    if other_depth and depth is not None:
        return f"this file is a {file.name}; the config says depth={depth}"
    theirs, ours = ((one.groups, one.width, one.base_channels) for one in (file, backbone))
    if other_depth or theirs != ours:
        return f"this file is a {_with_width(file)}; the backbone is a {_with_width(backbone)}"
    if file.deep_stem != backbone.deep_stem:
        kernel = f"{'x'.join(map(str, file.stem_kernel))} " if file.stem_kernel else ""
        stem = "a deep stem (three 3x3 convolutions)" if file.deep_stem else f"one {kernel}convolution as its stem"
        return f"this file is a {file.name}: it has {stem}; the config says deep_stem={backbone.deep_stem}"
    if None not in (file.avg_down, backbone.avg_down) and file.avg_down != backbone.avg_down:
        does = "average before they project" if file.avg_down else "stride in their 1x1 convolution"
        return f"this file is a {file.name}: its shortcuts {does}; the config says avg_down={backbone.avg_down}"
    if file.projection != backbone.projection and not file.bottleneck:
        has, lacks = ("a", "none") if file.projection else ("no", "one")
        return (
            f"this file is a {file.name} with {has} projection in the shortcut of layer1.0; the backbone has "
            f"{lacks}: the argument is projection_shortcut={file.projection}"
        )
    return None


def _with_width(architecture: Architecture) -> str:
    name, base = architecture.name, architecture.base_channels
    return name if base == 64 else f"{name} with base_channels={base}"


# Networks similar to a ResNet that this package does not have, by parts of their keys. Each key is between newlines.
_OTHER_NETWORKS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("attnpool.", "\nconv3.weight\n"),
        "CLIP's ResNet, which averages instead of striding and is not available here. torchvision://resnet50 and "
        "timm://resnet50.a1_in1k have ordinary ones",
    ),
    (
        ("layer1.0.conv1.0.0.weight\n", ".conv_b.conv_t.weight\n"),
        "an R(2+1)D network, whose convolutions are split into space and time, and which is not available here",
    ),
    (
        ("block1/unit01", "block1.unit01", "stages.0.blocks.0.conv1.weight\n"),
        "a ResNetV2 (such as BiT), which normalizes before each convolution and is not available here. "
        "timm://resnet50.a1_in1k has an ordinary one",
    ),
    (("conv2_block1_1_conv",), "Keras' ResNet: use torchvision://resnet50 instead"),
)


def other_network(keys: Iterable[str]) -> str | None:
    """Describe the network of a state dict if it is known not to be one of this package, given keys without prefix."""
    text = "\n{}\n".format("\n".join(keys))
    return next((what for signs, what in _OTHER_NETWORKS if any(sign in text for sign in signs)), None)

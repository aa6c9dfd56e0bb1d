"""Backbones with a feature pyramid network, for torchvision's detectors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError, check_channels, explain_missing_torchvision
from ..layers.dimensions import layout
from ..layers.tracing import untyped_at_runtime
from ..resnet import FeatureInfo

if TYPE_CHECKING:
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

__all__ = ["BackboneWithFPN", "with_fpn"]


class BackboneWithFPN(nn.Module):
    """A backbone and its feature pyramid network, built by ``with_fpn``.

    Attribute names are those of torchvision's class of this name, so checkpoints are interchangeable.

    Args:
        body: The backbone.
        fpn: The feature pyramid network.
        out_channels: Number of channels of each level.
    """

    def __init__(self, body: nn.Module, fpn: FeaturePyramidNetwork, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn
        self.out_channels = out_channels

    @untyped_at_runtime
    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Compute the feature pyramid.

        Args:
            x: Images of shape ``(N, C, H, W)``.

        Returns:
            Levels of shape ``(N, out_channels, H / stride, W / stride)``, finest first: ``'0'``, ``'1'``, ..., then
            those of ``extra_blocks``.
        """
        levels = OrderedDict((str(index), level) for index, level in enumerate(self.body(x)))
        return cast("OrderedDict[str, Tensor]", self.fpn(levels))


def with_fpn(
    backbone: nn.Module,
    out_channels: int = 256,
    extra_blocks: ExtraFPNBlock | None = None,
    norm_layer: Callable[..., nn.Module] | None = None,
) -> BackboneWithFPN:
    """Build a feature pyramid network (Lin et al., 2016, https://arxiv.org/abs/1612.03144) on a backbone.

    The result is a ``backbone`` for the detectors of ``torchvision.models.detection``, with the parameter names of
    torchvision's ``resnet_fpn_backbone`` and a level for each output of the backbone.

    Args:
        backbone: A backbone of this package for images; it may be deployed.
        out_channels: Number of channels of each level.
        extra_blocks: Module for further levels, from ``torchvision.ops.feature_pyramid_network``. ``None`` means
            ``LastLevelMaxPool()``, one level named ``'pool'``, as in Faster R-CNN. RetinaNet and FCOS use
            ``LastLevelP6P7(in_channels, out_channels)``, two levels computed from the backbone's last, or from the
            pyramid's last if ``in_channels == out_channels``.
        norm_layer: Callable that builds the norm layer after each convolution of the pyramid from a number of channels;
            ``None`` means no norm layers.

    Returns:
        A module with ``out_channels``, whose ``forward`` returns an ``OrderedDict`` of levels.

    Raises:
        ArgumentError: An argument has an invalid value.
        ImportError: torchvision is missing.

    Examples:
        >>> import torch
        >>> from resnet_backbone import ResNet
        >>> pyramid = with_fpn(ResNet(depth=18)).eval()
        >>> levels = pyramid(torch.rand(1, 3, 64, 64))
        >>> levels["pool"].shape
        torch.Size([1, 256, 1, 1])
    """
    in_channels = _channels_of_levels(backbone)
    check_channels("out_channels", out_channels)
    with explain_missing_torchvision("with_fpn"):
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7
    if extra_blocks is None:
        extra_blocks = LastLevelMaxPool()
    if not isinstance(extra_blocks, ExtraFPNBlock):
        raise ArgumentTypeError(
            f"extra_blocks must be an ExtraFPNBlock, such as LastLevelP6P7({in_channels[-1]}, {out_channels}) of "
            f"torchvision.ops.feature_pyramid_network, got {extra_blocks!r}"
        )
    if isinstance(extra_blocks, LastLevelP6P7):
        _check_p6p7(extra_blocks, in_channels[-1], out_channels)
    if norm_layer is not None and not callable(norm_layer):
        raise ArgumentTypeError(f"norm_layer must be callable, such as torch.nn.BatchNorm2d, got {norm_layer!r}")
    fpn = FeaturePyramidNetwork(in_channels, out_channels, extra_blocks, norm_layer)
    return BackboneWithFPN(backbone, fpn, out_channels)


def _channels_of_levels(backbone: Any) -> list[int]:
    """Return the number of channels of each level. Check that the backbone is one of this package for images."""
    infos: Any = getattr(backbone, "feature_info", None)
    # A wrapper of a backbone, such as peft's, has them too.
    has_infos = isinstance(infos, tuple) and infos and all(isinstance(info, FeatureInfo) for info in infos)
    if not has_infos or not isinstance(backbone, nn.Module):
        kind = f"the class {backbone.__name__}" if isinstance(backbone, type) else f"a {type(backbone).__name__}"
        raise ArgumentTypeError(f"backbone must be a ResNet of this package, with feature_info, got {kind}")
    dims = getattr(backbone, "spatial_dims", 2)
    if dims != 2:
        raise ArgumentError(
            f"backbone must be for images {layout(2)}, got a {type(backbone).__name__} for {layout(dims)}: a feature "
            f"pyramid network has 2D convolutions"
        )
    return [info.channels for info in infos]


def _check_p6p7(extra_blocks: Any, last_channels: int, out_channels: int) -> None:
    """Check the channels of a ``LastLevelP6P7``, which would otherwise fail in the first forward."""
    given = (extra_blocks.p6.in_channels, extra_blocks.p6.out_channels)
    if given[0] not in (last_channels, out_channels) or given[1] != out_channels:
        raise ArgumentError(
            f"extra_blocks must be LastLevelP6P7({last_channels}, {out_channels}), which reads the backbone's last "
            f"level, or LastLevelP6P7({out_channels}, {out_channels}), which reads the pyramid's, "
            f"got LastLevelP6P7{given}"
        )

"""``switch_to_deploy``: fuse batch norms into convolutions for inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, cast

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self, override

from .blocks import ResidualBlock
from .errors import DeployedError
from .layers.conv_norm import fold_weights, is_foldable, norm_as_affine
from .layers.deform import ModulatedDeformConv2dPack

__all__ = ["computes_as_ours", "deployed_class", "freeze_weights", "fuse_conv_bn"]

Pairs = Iterable[tuple[str, str]]
Levels = Sequence[Tensor]

CANNOT_TRAIN = "a deployed backbone cannot train: build it again and load its training checkpoint"


class ChannelAffine(nn.Module):
    """Scale and shift per channel, in place of a batch norm that cannot be fused into its convolution.

    Args:
        scale: Shape ``(C,)``.
        shift: Shape ``(C,)``.
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.shift = nn.Parameter(shift, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``x * scale + shift``.

        Args:
            x: Features of shape ``(N, C, ...)``.
        """
        shape = (-1, *[1] * (x.dim() - 2))
        return torch.addcmul(self.shift.view(shape), x, self.scale.view(shape))


def fuse_conv_bn(backbone: nn.Module, stem: Pairs) -> None:
    """Replace, in place, every batch norm that follows a convolution, and freeze all parameters.

    Ordinary convolutions and deformable ones of type 'DCNv2' absorb it; after others it becomes a ``ChannelAffine``.
    Norm layers of other types stay, and so do those of blocks that override ``forward`` and of plugins other than
    mmcv's ``ConvModule``.

    Args:
        backbone: The backbone, in eval mode.
        stem: Names of the convolutions and norm layers of the backbone itself.
    """
    for name_of_conv, name_of_norm in stem:
        _fold_pair(backbone, name_of_conv, name_of_norm)
    for part in backbone.modules():
        for name_of_conv, name_of_norm in _pairs_in(part):
            _fold_pair(part, name_of_conv, name_of_norm)
        if isinstance(part, ResidualBlock):
            part.with_cp = False
    for parameter in backbone.parameters():
        parameter.requires_grad = False


def _pairs_in(part: nn.Module) -> Pairs:
    """Return the names of the convolutions in ``part``, each with that of the layer that directly follows it."""
    if computes_as_ours(part):
        return cast(Pairs, part.conv_norm_names)
    if isinstance(part, ConvModule) and part.with_norm and part.order.index("norm") == part.order.index("conv") + 1:
        return [("conv", part.norm_name)]
    if type(part) is nn.Sequential:
        return pairwise(part._modules)
    return []


def computes_as_ours(part: nn.Module) -> bool:
    """Whether ``conv_norm_names`` of ``part`` describes its forward pass, that is, no subclass overrides the latter."""
    names, *computations = (
        next((depth for depth, cls in enumerate(type(part).__mro__) if name in vars(cls)), math.inf)
        for name in ("conv_norm_names", "forward", "_residual_and_shortcut", "_middle")
    )
    return names < math.inf and names <= min(computations)


def _fold_pair(owner: nn.Module, name_of_conv: str, name_of_norm: str) -> None:
    conv: Any = owner.get_submodule(name_of_conv)
    norm: Any = owner.get_submodule(name_of_norm)
    path, _, leaf = name_of_norm.rpartition(".")
    if "Conv" not in type(conv).__name__ or not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return
    # DCNv2, this package's or mmcv's, convolves and adds a bias.
    is_dcn_v2 = type(conv).__name__ == ModulatedDeformConv2dPack.__name__
    with torch.no_grad():
        if is_foldable(conv, norm) or is_dcn_v2:
            weight, bias = fold_weights(conv, norm)
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            setattr(owner.get_submodule(path), leaf, nn.Identity())
        else:
            setattr(owner.get_submodule(path), leaf, ChannelAffine(*norm_as_affine(norm)))


def freeze_weights(compiled: Callable[..., Levels]) -> Callable[..., Levels]:
    """Make the weights of a compiled backbone constants on CPUs, so that inductor can lay them out for its kernels.

    ``torch.compile(options={"freezing": True})`` has no effect here, because dynamo reads only the global setting.
    Inputs that require grad or are on another device are computed as usual.

    Args:
        compiled: The result of ``torch.compile``.
    """
    from torch._inductor import config

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Levels:
        if x.device.type != "cpu" or x.requires_grad:
            return compiled(x, *args, **kwargs)
        with config.patch(freezing=True), torch.no_grad():
            return compiled(x, *args, **kwargs)

    return call


class Deployed(nn.Module):
    """Mixin of a backbone after ``switch_to_deploy``, which stays frozen and in eval mode."""

    deployed = True
    training_class: type[nn.Module]

    @override
    def train(self, mode: bool = True) -> Self:
        super().train(False)
        self.training = mode  # only of the backbone itself, for _check_input
        return self

    @override
    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if requires_grad:
            raise DeployedError(CANNOT_TRAIN)
        return self

    def freeze(self, stages: int) -> Self:
        """Raise ``DeployedError``: all stages are frozen."""
        raise DeployedError(CANNOT_TRAIN)

    def _check_input(self, x: Any) -> None:
        super()._check_input(x)  # type: ignore[misc]
        if self.training and torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            raise DeployedError(CANNOT_TRAIN)

    def switch_to_deploy(self) -> Self:
        """Return the backbone, which is deployed already."""
        return self

    def init_weights(self, pretrained: str | None = None) -> None:
        """Raise ``DeployedError``: there is nothing to train."""
        raise DeployedError("a deployed backbone cannot be initialized: call init_weights before switch_to_deploy")

    @override
    def compile(self, *args: Any, **kwargs: Any) -> None:
        super().compile(*args, **kwargs)
        self._compiled_call_impl: Any = freeze_weights(self._compiled_call_impl)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if self._compiled_call_impl is not None:
            raise DeployedError("a compiled deployed backbone has its weights as constants: load them before compile()")
        own = self.state_dict().keys()
        statistics = [key for key in state_dict if key.startswith(prefix) and key.endswith(".running_mean")]
        if any(key.removeprefix(prefix) not in own for key in statistics):
            raise DeployedError(
                "a deployed backbone cannot load a checkpoint with batch norms: load it before switch_to_deploy"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Pickle finds classes by name, but this one was made by deployed_class.
        reduced: Any = super().__reduce_ex__(protocol)
        return _new_deployed, (self.training_class,), *reduced[2:]


@cache
def deployed_class(cls: Any) -> type[nn.Module]:
    """Return the deployed variant of a backbone class."""
    return type(cls.__name__, (Deployed, cls), {"training_class": cls, "__module__": cls.__module__})


def _new_deployed(cls: type[nn.Module]) -> nn.Module:
    deployed: type[nn.Module] = deployed_class(cls)  # type: ignore[arg-type]
    return deployed.__new__(deployed)

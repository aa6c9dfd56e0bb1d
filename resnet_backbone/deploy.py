"""What ``switch_to_deploy`` makes of a trained backbone: batch norms fused into convolutions, and no training."""

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
from typing_extensions import Self

from .blocks import ResidualBlock
from .errors import DeployedError
from .layers.conv_norm import fold_weights, is_foldable, norm_as_affine
from .layers.deform import ModulatedDeformConv2dPack

__all__ = ["computes_as_ours", "deployed_class", "freeze_weights", "fuse_conv_bn"]

Pairs = Iterable[tuple[str, str]]
Levels = Sequence[Tensor]

CANNOT_TRAIN = "a deployed backbone cannot train: build it again and load its training checkpoint"


class ChannelAffine(nn.Module):
    """Scale and shift of each channel: a batch norm whose convolution has no bias to fuse it into.

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

    Ordinary convolutions and deformable ones of type 'DCNv2' absorb it; after any other it becomes a ``ChannelAffine``.
    Other norm layers stay, and so do those in blocks with a ``forward`` of their own and in plugins other than mmcv's
    ``ConvModule``.

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
    """Names of the convolutions that ``part`` runs right before a norm layer, and of the norm layers."""
    if computes_as_ours(part):
        return cast(Pairs, part.conv_norm_names)
    if isinstance(part, ConvModule) and part.with_norm and part.order.index("norm") == part.order.index("conv") + 1:
        return [("conv", part.norm_name)]
    if type(part) is nn.Sequential:
        names = list(part._modules)
        return list(pairwise(names))
    return []


def computes_as_ours(part: nn.Module) -> bool:
    """Whether ``part`` has ``conv_norm_names`` that describe its forward pass: no subclass computes otherwise."""
    names, *computations = (
        next((depth for depth, cls in enumerate(type(part).__mro__) if name in vars(cls)), math.inf)
        for name in ("conv_norm_names", "forward", "_residual_and_shortcut", "_middle")
    )
    return names < math.inf and names <= min(computations)


def _fold_pair(owner: nn.Module, name_of_conv: str, name_of_norm: str) -> None:
    conv: Any = owner.get_submodule(name_of_conv)
    norm: Any = owner.get_submodule(name_of_norm)
    path, _, leaf = name_of_norm.rpartition(".")
    if not _is_conv(conv) or not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return
    with torch.no_grad():
        if is_foldable(conv, norm) or _takes_bias(conv):
            weight, bias = fold_weights(conv, norm)
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            setattr(owner.get_submodule(path), leaf, nn.Identity())
        else:
            setattr(owner.get_submodule(path), leaf, ChannelAffine(*norm_as_affine(norm)))


def _is_conv(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution, ordinary or not."""
    return "Conv" in type(layer).__name__


def _takes_bias(layer: nn.Module) -> bool:
    """Whether ``layer`` is TridentNet's, or of type 'DCNv2', ours or compiled mmcv's: it convolves and adds a bias."""
    return type(layer).__name__ in (ModulatedDeformConv2dPack.__name__, "TridentConv")


def freeze_weights(compiled: Callable[..., Levels]) -> Callable[..., Levels]:
    """Return a compiled backbone's call with the weights as constants on CPUs, laid out for inductor's kernels.

    Inductor's own option, ``torch.compile(options={"freezing": True})``, takes effect too late: dynamo, which reads the
    global setting only, has made inputs of the weights by then. Inputs that require grad, or are on another device, are
    computed as usual.

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
    """What a backbone does differently after ``switch_to_deploy``: it stays in eval mode, and frozen."""

    deployed = True
    training_class: type[nn.Module]

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the backbone itself, as a frozen one: its layers stay in eval mode.

        Args:
            mode: Whether the network around it trains.
        """
        super().train(False)
        self.training = mode
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Refuse to train.

        Raises:
            DeployedError: ``requires_grad`` is true.
        """
        if requires_grad:
            raise DeployedError(CANNOT_TRAIN)
        return self

    def freeze(self, stages: int) -> Self:
        """Refuse to thaw; it is frozen whole.

        Raises:
            DeployedError: Always.
        """
        raise DeployedError(CANNOT_TRAIN)

    def _check_input(self, x: Any) -> None:
        super()._check_input(x)  # type: ignore[misc]
        if self.training and torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            raise DeployedError(CANNOT_TRAIN)

    def switch_to_deploy(self) -> Self:
        """Return the backbone as it is."""
        return self

    def init_weights(self, pretrained: str | None = None) -> None:
        """Refuse to initialise.

        Raises:
            DeployedError: Always.
        """
        raise DeployedError("a deployed backbone cannot be initialised: call init_weights before switch_to_deploy")

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the backbone in place, on a CPU with its weights as constants: load or change them before.

        Args:
            *args: As for ``torch.compile``.
            **kwargs: As for ``torch.compile``.
        """
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
        # Pickle finds classes by name, and deployed_class makes this one's.
        reduced: Any = super().__reduce_ex__(protocol)
        return _new_deployed, (self.training_class,), *reduced[2:]


@cache
def deployed_class(cls: Any) -> type[nn.Module]:
    """Return the class of a deployed backbone.

    Args:
        cls: The backbone's class until then.
    """
    return type(cls.__name__, (Deployed, cls), {"training_class": cls, "__module__": cls.__module__})


def _new_deployed(cls: type[nn.Module]) -> nn.Module:
    deployed: type[nn.Module] = deployed_class(cls)  # type: ignore[arg-type]
    return deployed.__new__(deployed)

"""Constructors of mmengine's optimizer wrappers: options of ``paramwise_cfg`` for this package's layers."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor as MMEngineConstructor
from torch import nn
from typing_extensions import override

from ...errors import ArgumentError, is_number
from ...layers.deform import DeformConv2dPack, ModulatedDeformConv2dPack

__all__ = ["DefaultOptimWrapperConstructor", "LayerDecayOptimWrapperConstructor"]


class DefaultOptimWrapperConstructor(MMEngineConstructor):
    """mmengine's, whose ``dcn_offset_lr_mult`` also applies to this package's deformable convolutions.

    Args:
        *args: As in mmengine.
        **kwargs: As in mmengine.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offset_convs: set[nn.Module] = set()

    @override
    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", is_dcn_module: Any = None
    ) -> None:
        if isinstance(module, (DeformConv2dPack, ModulatedDeformConv2dPack)):
            self._offset_convs.add(module.conv_offset)
        super().add_params(params, module, prefix, is_dcn_module or module in self._offset_convs)


class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor with learning rates that decay towards the stem.

    ``paramwise_cfg=dict(layer_decay_rate=0.75)`` works as in mmpretrain's
    ``LearningRateDecayOptimWrapperConstructor``, for any model whose backbone has ``get_layer_depth``, including
    detectors. The other options are mmengine's.

    Args:
        *args: As in mmengine.
        **kwargs: As in mmengine.

    Raises:
        ArgumentError: ``layer_decay_rate`` is not a positive number, or the backbone has no ``get_layer_depth``.
    """

    @override
    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", is_dcn_module: Any = None
    ) -> None:
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        decay: Any = self.paramwise_cfg.get("layer_decay_rate")
        if not is_number(decay) or decay <= 0:
            raise ArgumentError(f"layer_decay_rate must be a number above 0, got {decay!r} in {self.paramwise_cfg!r}")
        owner: Any = module if hasattr(module, "get_layer_depth") else getattr(module, "backbone", None)
        if not hasattr(owner, "get_layer_depth"):
            raise ArgumentError(f"layer_decay_rate needs a backbone with get_layer_depth, got {type(owner).__name__}")
        names = {parameter: name for name, parameter in module.named_parameters()}
        for group in params:
            (parameter,) = group["params"]
            # The get_layer_depth of mmpretrain's classifiers takes no prefix.
            arguments = [names[parameter]] if owner is module else [names[parameter], "backbone."]
            depth, num_layers = owner.get_layer_depth(*arguments)
            group["lr_scale"] = decay ** (num_layers - depth - 1)
            group["lr"] = group.get("lr", self.base_lr) * group["lr_scale"]

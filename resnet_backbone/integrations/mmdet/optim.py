"""``paramwise_cfg=dict(dcn_offset_lr_mult=...)`` for our deformable convolutions, used if mmcv is not compiled."""

from __future__ import annotations

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor as MMEngineConstructor
from torch import nn

from ...layers.deform import DeformConv2dPack, ModulatedDeformConv2dPack

__all__ = ["DefaultOptimWrapperConstructor"]


class DefaultOptimWrapperConstructor(MMEngineConstructor):
    """mmengine's, which takes the option for compiled mmcv's layers alone; it reaches ours too.

    Args:
        *args: As for mmengine's.
        **kwargs: As for mmengine's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offset_convs: set[nn.Module] = set()

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", is_dcn_module: Any = None
    ) -> None:
        """Add the parameters of a module and of all in it to ``params``.

        Args:
            params: Parameter groups.
            module: The module.
            prefix: Its name.
            is_dcn_module: Whether it belongs to a deformable convolution of mmcv's.
        """
        if isinstance(module, (DeformConv2dPack, ModulatedDeformConv2dPack)):
            self._offset_convs.add(module.conv_offset)
        super().add_params(params, module, prefix, is_dcn_module or module in self._offset_convs)

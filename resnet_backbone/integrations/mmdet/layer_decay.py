"""mmdet's layer-wise learning rates for the backbones of this package.

mmdet's registry of optimizer constructors imports this module at its first look-up, instead of
``mmdet.engine.optimizers``.
"""

from __future__ import annotations

from typing import Any

from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as MMDetConstructor
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn
from typing_extensions import override

from ...errors import ArgumentError, is_number
from ...fine_tuning import FineTuning

__all__ = ["LearningRateDecayOptimizerConstructor"]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)  # type: ignore[untyped-decorator, unused-ignore]
class LearningRateDecayOptimizerConstructor(MMDetConstructor):  # type: ignore[misc, unused-ignore]
    """mmdet's constructor, which supports only ConvNeXt, extended to the backbones of this package.

    With ``paramwise_cfg=dict(decay_rate=0.8, decay_type='layer_wise')`` each block is a layer, with ``'stage_wise'``
    each stage. The stem comes before them, neck and head come after. Biases and norm layers have no weight decay.
    ``num_layers``, the number of blocks or stages, is optional.

    Args:
        *args: As in mmdet.
        **kwargs: As in mmdet.

    Raises:
        ArgumentError: An option of ``paramwise_cfg`` has an invalid value.
    """

    @override
    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any) -> None:
        backbone = getattr(module, "backbone", None)
        if not isinstance(backbone, FineTuning):
            super().add_params(params, module, **kwargs)
            return
        decay_rate, stage_wise = self._options(backbone)
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            depth, total = backbone.get_layer_depth(name, "backbone.")
            if stage_wise:
                depth, total = _stage_depth(backbone, name, depth, total)
            decays = parameter.dim() > 1 and not name.endswith(".bias")
            group_name = f"layer_{depth}_{'decay' if decays else 'no_decay'}"
            scale = decay_rate ** (total - depth - 1)
            group = groups.setdefault(group_name, {"params": [], "param_names": [], "group_name": group_name})
            group |= {"weight_decay": self.base_wd if decays else 0.0, "lr_scale": scale, "lr": scale * self.base_lr}
            group["params"].append(parameter)
            group["param_names"].append(name)
        params.extend(groups.values())

    def _options(self, backbone: FineTuning) -> tuple[float, bool]:
        """Check ``paramwise_cfg``; return the decay rate, and whether it applies per stage."""
        decay_rate = self.paramwise_cfg.get("decay_rate")
        if not is_number(decay_rate) or decay_rate <= 0:
            raise ArgumentError(f"paramwise_cfg: decay_rate must be a number above 0, got {decay_rate!r}")
        decay_type = self.paramwise_cfg.get("decay_type", "layer_wise")
        if decay_type not in ("layer_wise", "stage_wise"):
            raise ArgumentError(f"paramwise_cfg: decay_type must be 'layer_wise' or 'stage_wise', got {decay_type!r}")
        stage_wise = decay_type == "stage_wise"
        num_layers = backbone.num_stages if stage_wise else sum(backbone.stage_blocks)
        given = self.paramwise_cfg.get("num_layers", num_layers)
        if given != num_layers:
            raise ArgumentError(
                f"paramwise_cfg: num_layers must be {num_layers}, the number of this backbone's "
                f"{'stages' if stage_wise else 'blocks'}, for decay_type={decay_type!r}, got {given!r}"
            )
        return float(decay_rate), stage_wise


def _stage_depth(backbone: FineTuning, name: str, depth: int, total: int) -> tuple[int, int]:
    """Convert the depth of a parameter, and the number of layers, from blocks to stages."""
    stages = backbone.num_stages + 2
    if depth in (0, total - 1):
        return (0 if depth == 0 else stages - 1), stages
    return 1 + backbone.res_layers.index(name.split(".")[1]), stages

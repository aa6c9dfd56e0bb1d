"""Imported by mmdet's registry of optimizer constructors at its first look-up, in place of ``mmdet.engine.optimizers``.

mmdet's ``LearningRateDecayOptimizerConstructor`` raises ``NotImplementedError`` for all backbones but ConvNeXt.
"""

from __future__ import annotations

from typing import Any

from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as MMDetConstructor
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ...errors import ArgumentError, is_number
from ...fine_tuning import FineTuning

__all__ = ["LearningRateDecayOptimizerConstructor"]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)  # type: ignore[untyped-decorator, unused-ignore]
class LearningRateDecayOptimizerConstructor(MMDetConstructor):  # type: ignore[misc, unused-ignore]
    """mmdet's, which does ConvNeXt; for our backbones with their own layers, in the same groups.

    ``paramwise_cfg=dict(decay_rate=0.8, decay_type='layer_wise')`` counts each block as a layer, ``'stage_wise'`` each
    stage; the stem comes before them, neck and head after. Biases and norm layers have no weight decay.
    ``num_layers`` is the number of those layers, and may be left out.

    Args:
        *args: As for mmdet's.
        **kwargs: As for mmdet's.

    Raises:
        ArgumentError: An option of ``paramwise_cfg`` has a value that is not allowed.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any) -> None:
        """Add all parameters of a model to ``params``, in groups of one learning rate and one weight decay.

        Args:
            params: Parameter groups.
            module: The model.
            **kwargs: As for mmdet's.
        """
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
            group = groups.setdefault(
                group_name,
                {
                    "weight_decay": self.base_wd if decays else 0.0,
                    "params": [],
                    "param_names": [],
                    "lr_scale": scale,
                    "group_name": group_name,
                    "lr": scale * self.base_lr,
                },
            )
            group["params"].append(parameter)
            group["param_names"].append(name)
        params.extend(groups.values())

    def _options(self, backbone: FineTuning) -> tuple[float, bool]:
        """Check ``paramwise_cfg``; return the rate, and whether it is by stage."""
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
    """Turn the depth of a parameter in blocks into that in stages."""
    stages = backbone.num_stages + 2
    if depth in (0, total - 1):
        return (0 if depth == 0 else stages - 1), stages
    return 1 + backbone.res_layers.index(name.split(".")[1]), stages

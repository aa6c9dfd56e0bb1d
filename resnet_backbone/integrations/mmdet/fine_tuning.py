"""Fine-tuning with mmengine's Runner: a hook that freezes and thaws, and learning rates that decay with depth."""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ...arguments import check_frozen_stages
from ...errors import ArgumentError, is_int, is_number
from ...fine_tuning import FineTuning
from .optim import DefaultOptimWrapperConstructor

__all__ = ["FreezeHook", "LayerDecayOptimWrapperConstructor"]


class FreezeHook(Hook):
    """Freeze a backbone up to a stage, and change the stage at given epochs.

    ``dict(type='FreezeHook', frozen_stages=(4, 1), milestones=(3,))`` trains the head alone for three epochs, and then
    the stages from the second on as well. The model's config has the smallest of ``frozen_stages``, so that the
    optimizer is built with all that is to train. A resumed run continues at its epoch.

    Args:
        frozen_stages: Values of ``frozen_stages``: before the first milestone, from it on, from the next one on, ...
        milestones: Numbers of epochs, increasing, one fewer.
        backbone: Name of the backbone in the model.
        by_epoch: Whether ``milestones`` are epochs; if not, they are iterations.

    Raises:
        ArgumentError: An argument has a value that is not allowed, or, when training starts, the model does not fit.
    """

    def __init__(
        self,
        frozen_stages: Sequence[int],
        milestones: Sequence[int],
        backbone: str = "backbone",
        by_epoch: bool = True,
    ) -> None:
        if not all(is_int(epoch) and epoch > 0 for epoch in milestones) or sorted({*milestones}) != [*milestones]:
            raise ArgumentError(f"milestones must be increasing integers of at least 1, got {milestones!r}")
        if len(frozen_stages) != len(milestones) + 1:
            raise ArgumentError(f"frozen_stages must have one more entry than {milestones=}, got {frozen_stages!r}")
        self.frozen_stages = frozen_stages
        self.milestones = milestones
        self.backbone = backbone
        self.by_epoch = by_epoch
        self._built: int | None = None

    def before_train(self, runner: Any) -> None:
        """Check the model, and freeze what belongs to the epoch that the run starts or resumes at."""
        backbone = self._backbone(runner)
        for stages in self.frozen_stages:
            check_frozen_stages(stages, backbone.num_stages)
        self._built = backbone.frozen_stages if self._built is None else self._built
        if self._built > min(self.frozen_stages):
            raise ArgumentError(
                f"the model must be built with frozen_stages={min(self.frozen_stages)}, the smallest of FreezeHook's "
                f"{self.frozen_stages!r}, so that the optimizer has the parameters that are thawed later: "
                f"got frozen_stages={self._built}"
            )
        self._freeze(runner)

    def before_train_epoch(self, runner: Any) -> None:
        """Freeze and thaw, where a milestone is one of epochs."""
        if self.by_epoch:
            self._freeze(runner)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Freeze and thaw, where a milestone is one of iterations."""
        if not self.by_epoch:
            self._freeze(runner)

    def _freeze(self, runner: Any) -> None:
        backbone, now = self._backbone(runner), runner.epoch if self.by_epoch else runner.iter
        stages = self.frozen_stages[bisect_right(self.milestones, now)]
        if stages == backbone.frozen_stages:
            return
        runner.logger.info(f"FreezeHook: frozen_stages={stages} from {'epoch' if self.by_epoch else 'iter'} {now} on")
        backbone.freeze(stages)
        if is_model_wrapper(runner.model):
            # The wrapper awaits the gradients of the parameters that trained when it was made.
            model, runner.model = runner.model.module, None
            gc.collect()
            runner.model = runner.wrap_model(runner.cfg.get("model_wrapper_cfg"), model)

    def _backbone(self, runner: Any) -> FineTuning:
        model = runner.model
        if is_model_wrapper(model):
            if not isinstance(model, DistributedDataParallel):
                raise ArgumentError(f"FreezeHook needs DistributedDataParallel, got a {type(model).__name__}")
            model = model.module
        try:
            backbone = model.get_submodule(self.backbone)
        except AttributeError:
            backbone = None
        if not isinstance(backbone, FineTuning):
            raise ArgumentError(f"backbone must name a ResNet of this package in the model, got {self.backbone!r}")
        return backbone


class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, with learning rates that decay with depth.

    As mmpretrain's ``LearningRateDecayOptimWrapperConstructor``, for any model with a backbone that has
    ``get_layer_depth``, a detector too: ``paramwise_cfg=dict(layer_decay_rate=0.75)``. The other options of
    ``paramwise_cfg`` are mmengine's.

    Args:
        *args: As for mmengine's.
        **kwargs: As for mmengine's.

    Raises:
        ArgumentError: ``layer_decay_rate`` is not a positive number, or the model's backbone has no
            ``get_layer_depth``.
    """

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
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        decay = self.paramwise_cfg.get("layer_decay_rate", 1.0)
        if not is_number(decay) or decay <= 0:
            raise ArgumentError(f"layer_decay_rate must be a number above 0, got {decay!r}")
        owner: Any = module if hasattr(module, "get_layer_depth") else getattr(module, "backbone", None)
        if not hasattr(owner, "get_layer_depth"):
            raise ArgumentError(f"layer_decay_rate needs a backbone with get_layer_depth, got {type(owner).__name__}")
        names = {parameter: name for name, parameter in module.named_parameters()}
        for group in params:
            (parameter,) = group["params"]
            name = names[parameter]
            # mmpretrain's classifiers have the method, too, without a prefix.
            depth, num_layers = owner.get_layer_depth(*([name] if owner is module else [name, "backbone."]))
            group["lr_scale"] = decay ** (num_layers - depth - 1)
            group["lr"] = group.get("lr", self.base_lr) * group["lr_scale"]

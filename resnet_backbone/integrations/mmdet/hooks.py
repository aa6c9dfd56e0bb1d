"""A hook for mmengine's Runner that freezes and thaws a backbone."""

from __future__ import annotations

import gc
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from ...arguments import check_frozen_stages
from ...errors import ArgumentError, is_int
from ...fine_tuning import FineTuning

__all__ = ["FreezeHook"]


class FreezeHook(Hook):
    """Change the ``frozen_stages`` of a backbone at given epochs.

    ``dict(type='FreezeHook', frozen_stages=(4, 1), milestones=(3,))`` trains only the head for three epochs, and then
    also the stages from the second on. Build the model with the smallest of ``frozen_stages``, so that the optimizer
    has every parameter that will train. A resumed run continues at its epoch.

    Args:
        frozen_stages: The values of ``frozen_stages``, one more than ``milestones``.
        milestones: Increasing epochs at which the next value applies.
        backbone: Name of the backbone in the model.
        by_epoch: Whether ``milestones`` are epochs or iterations.

    Raises:
        ArgumentError: An argument has an invalid value, or, when training starts, does not match the model.
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

    @override
    def before_train(self, runner: Any) -> None:
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

    @override
    def before_train_epoch(self, runner: Any) -> None:
        if self.by_epoch:
            self._freeze(runner)

    @override
    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
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
            # The wrapper expects gradients of the parameters that were trainable when it was built.
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

"""Freezing and thawing, layer-wise learning rates, and activation checkpointing of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from typing_extensions import Self

from .arguments import check_flag, check_frozen_stages, check_stage_indices
from .errors import ArgumentError, is_number

__all__ = ["FineTuning"]


class FineTuning(BaseModule):
    """Base class of ResNet: the methods for fine-tuning."""

    num_stages: int
    stage_blocks: Sequence[int]
    res_layers: list[str]
    deep_stem: bool
    norm1_name: str
    frozen_stages: int
    with_cp: bool | Sequence[bool]

    # Names of the parameters that freezing has changed, for thawing.
    _frozen_parameters: frozenset[str] = frozenset()

    def freeze(self, stages: int) -> Self:
        """Freeze the stem and the first stages, and thaw the others.

        The ``grad`` of frozen parameters becomes ``None``, so that optimizers skip them and their state until they are
        thawed. Norm layers whose ``norm_cfg`` has ``requires_grad=False`` stay frozen. Call this before wrapping the
        model in DistributedDataParallel, which expects gradients of the parameters that were trainable at that time.

        Args:
            stages: The new ``frozen_stages``: -1 thaws everything, 0 freezes the stem, 1 the first stage too, ...

        Returns:
            The backbone.

        Raises:
            ArgumentError: ``stages`` is not from -1 to ``num_stages``.
            DeployedError: After ``switch_to_deploy``.
        """
        check_frozen_stages(stages, self.num_stages)
        self.frozen_stages = stages
        prefixes = tuple(f"{name}." for name in self._frozen_modules())
        thawed = {name for name in self._frozen_parameters if not name.startswith(prefixes)}
        for name, parameter in self.named_parameters():
            if name in thawed:
                parameter.requires_grad = True
        self._frozen_parameters -= thawed
        self.train(self.training)
        return self

    def _freeze_stages(self) -> None:
        """Apply ``frozen_stages``: no gradients, and eval mode."""
        frozen = set()
        for module_name in self._frozen_modules():
            module = getattr(self, module_name)
            module.eval()
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    parameter.requires_grad = False
                    parameter.grad = None
                    frozen.add(f"{module_name}.{name}")
        self._frozen_parameters |= frozen

    def _frozen_modules(self) -> list[str]:
        if self.frozen_stages < 0:
            return []
        # For quantization-aware training, which fuses only layers in the same mode.
        relu = ["relu"] if hasattr(self, "relu") else []
        return [*self._stem_names(), *relu, *(f"layer{number}" for number in range(1, self.frozen_stages + 1))]

    def _stem_names(self) -> list[str]:
        """Names of the modules of the stem that have parameters."""
        return ["stem"] if self.deep_stem else ["conv1", self.norm1_name]

    def set_grad_checkpointing(self, enable: bool = True, stages: Sequence[int] | None = None) -> None:
        """Set ``with_cp`` after construction.

        Args:
            enable: Whether to use activation checkpointing.
            stages: Indices of the stages to change, from 0; ``None`` means all.

        Raises:
            ArgumentError: ``enable`` is not a boolean, or ``stages`` are not indices of stages.
        """
        check_flag("enable", enable)
        every = range(len(self.res_layers))
        if stages is not None:
            check_stage_indices("stages", stages, len(self.res_layers))
        now = self.with_cp if isinstance(self.with_cp, Sequence) else [self.with_cp] * len(every)
        self.with_cp = tuple(bool(enable if stages is None or index in stages else now[index]) for index in every)
        for name, with_cp in zip(self.res_layers, self.with_cp):
            for module in getattr(self, name).modules():
                if hasattr(module, "with_cp"):
                    module.with_cp = with_cp

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Return the depth of a parameter for layer-wise learning rate decay, as mmpretrain does.

        The stem is layer 0, each block is one layer, and everything after the backbone is the last layer.

        Args:
            param_name: Name of the parameter in the model.
            prefix: Name of the backbone in the model, with a dot: ``'backbone.'``.

        Returns:
            The depth, from 0, and the number of layers, which is the number of blocks plus 2.
        """
        num_layers = sum(self.stage_blocks) + 2
        name = param_name.removeprefix(prefix)
        module_name, *path = name.split(".")
        if not param_name.startswith(prefix) or module_name not in (*self.res_layers, *self._stem_names()):
            return num_layers - 1, num_layers
        if module_name not in self.res_layers:
            return 0, num_layers
        block = path[2] if path[0] == "branches" else path[0]
        before = sum(self.stage_blocks[: self.res_layers.index(module_name)])
        return 1 + before + int(block), num_layers

    def param_groups(self, lr: float, decay: float) -> list[dict[str, Any]]:
        """Group the parameters by stage for an optimizer, with a learning rate that decays towards the stem.

        Frozen parameters are included, so that the optimizer updates them once they are thawed.

        Args:
            lr: Learning rate of the last stage.
            decay: Ratio of the learning rate of a stage to that of the next.

        Returns:
            For each of the stem and the stages, ``{'params': [...], 'lr': ..., 'name': 'layer1'}``.

        Raises:
            ArgumentError: ``lr`` or ``decay`` is not a positive number.

        Examples:
            >>> from resnet_backbone import ResNet
            >>> groups = ResNet(depth=18).param_groups(lr=0.01, decay=0.5)
            >>> [(group["name"], group["lr"]) for group in groups][-2:]
            [('layer3', 0.005), ('layer4', 0.01)]
        """
        for name, value in (("lr", lr), ("decay", decay)):
            if not is_number(value) or value <= 0:
                raise ArgumentError(f"{name} must be a number above 0, got {value!r}")
        names = ["stem", *self.res_layers]
        params: dict[str, list[Any]] = {name: [] for name in names}
        for name, parameter in self.named_parameters():
            module_name = name.split(".")[0]
            after = names[-1] if module_name not in self._stem_names() else "stem"
            params[module_name if module_name in self.res_layers else after].append(parameter)
        last = len(names) - 1
        return [
            {"params": params[name], "lr": lr * decay ** (last - index), "name": name}
            for index, name in enumerate(names)
        ]

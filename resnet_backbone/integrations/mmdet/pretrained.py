"""``init_cfg=dict(type='Pretrained', ...)`` with ``load_pretrained``.

This replaces mmengine's initializer and passes other modules on to it, so that the order of initialization, and with it
every random number, stays mmengine's. Other modules, such as mmdet's ResNeXt, are loaded here only if they ask for one
of the named weights, whose server is gone.
"""

from __future__ import annotations

from typing import Any

from mmengine.model.weight_init import PretrainedInit as MMEnginePretrainedInit
from mmengine.model.weight_init import update_init_info
from torch import nn

from ...errors import ArgumentTypeError
from ...resnet import ResNet
from ...weights.load import load_pretrained
from ...weights.match import InputChannels
from ...weights.zoo import is_named
from .registry import log

__all__ = ["PretrainedInit"]

_DEFAULTS: dict[str, Any] = dict(strict=True, sha256=None, progress=True, input_channels="repeat")


class PretrainedInit(MMEnginePretrainedInit):
    """Initialize a module from a checkpoint: a ResNet with ``load_pretrained``, other modules as mmengine does.

    Args:
        checkpoint: The source, as in ``load_pretrained``.
        prefix: Prefix of the network's keys in the file; ``None`` finds it.
        map_location: Device of the loaded tensors.
        strict: As in ``load_pretrained``, only for ResNets of this package; so are the following.
        sha256: The file's SHA-256, or its beginning.
        progress: Whether to show a progress bar while downloading.
        input_channels: How to adapt the first convolution if ``in_channels`` differs from the file's.
    """

    def __init__(
        self,
        checkpoint: str,
        prefix: str | None = None,
        map_location: Any = "cpu",
        strict: bool = True,
        sha256: str | None = None,
        progress: bool = True,
        input_channels: InputChannels = "repeat",
    ) -> None:
        super().__init__(checkpoint, prefix, map_location)  # type: ignore[no-untyped-call]
        self.options: dict[str, Any] = dict(
            strict=strict, sha256=sha256, progress=progress, input_channels=input_channels
        )

    def __call__(self, module: nn.Module) -> None:
        """Load the checkpoint into a module."""
        if not isinstance(module, ResNet) and not is_named(self.checkpoint):
            if self.options != _DEFAULTS:
                raise ArgumentTypeError(
                    f"init_cfg of {type(module).__name__}: {', '.join(_DEFAULTS)} are for this package's ResNets"
                )
            super().__call__(module)  # type: ignore[no-untyped-call]
            return
        report = load_pretrained(
            module, self.checkpoint, prefix=self.prefix, map_location=self.map_location, **self.options
        )
        log(f"loaded {report.summary()}")
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=self._get_init_info())  # type: ignore[no-untyped-call]

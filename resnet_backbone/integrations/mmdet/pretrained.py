"""``init_cfg=dict(type='Pretrained', ...)`` of our backbones goes through ``load_pretrained``.

mmengine's own initialiser is replaced by one that leaves other modules to mmengine, so the order in which a model
initialises its parts, and with it every random number, stays mmengine's. The one exception are modules of mmdet's own,
such as its ResNeXt, that ask for one of the names in ``table``: the server that mmengine would ask is gone.
"""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.model.weight_init import PretrainedInit as MMEnginePretrainedInit
from mmengine.model.weight_init import update_init_info
from torch import nn

from ...errors import ArgumentTypeError
from ...resnet import ResNet
from ...weights.load import load_pretrained
from ...weights.match import InputChannels
from ...weights.zoo import is_named

__all__ = ["PretrainedInit"]

_DEFAULTS: dict[str, Any] = {"strict": True, "sha256": None, "progress": True, "input_channels": "repeat"}


class PretrainedInit(MMEnginePretrainedInit):
    """Initialise a module from a checkpoint, with ``load_pretrained`` or, for any other module, as mmengine does.

    Args:
        checkpoint: The source: see ``load_pretrained``.
        prefix: What precedes the network's names in the file; ``None`` finds it.
        map_location: Where the file's tensors are read to.
        strict: For a ResNet: refuse a file that does not match.
        sha256: For a ResNet: the file's SHA-256, or its beginning.
        progress: For a ResNet: whether to show a progress bar while downloading.
        input_channels: For a ResNet: the first convolution's weights where ``in_channels`` is not the file's.
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
        self.options: dict[str, Any] = {
            "strict": strict,
            "sha256": sha256,
            "progress": progress,
            "input_channels": input_channels,
        }

    def __call__(self, module: nn.Module) -> None:
        """Load the checkpoint.

        Args:
            module: The module to initialise.
        """
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
        print_log(f"resnet_backbone: loaded {report.summary()}", logger="current", level=logging.INFO)
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=self._get_init_info())  # type: ignore[no-untyped-call]

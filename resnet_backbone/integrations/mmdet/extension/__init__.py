"""A stand-in for ``mmcv._ext``, the compiled part of mmcv."""

from __future__ import annotations

from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision

from . import attention, boxes, carafe, deform, focal, masked_conv, roi, roi_pool, sync_bn

__all__ = ["OPERATORS", "make_extension"]

OPERATORS: dict[str, Callable[..., Any]] = {
    name: getattr(module, name)
    for module in (attention, boxes, carafe, deform, focal, masked_conv, roi, roi_pool, sync_bn)
    for name in module.__all__
}


def make_extension() -> ModuleType:
    """Return a module to import as ``mmcv._ext``; operators that are not in ``OPERATORS`` raise when called."""
    module: Any = ModuleType("mmcv._ext", "mmcv's operators on PyTorch's and torchvision's, by resnet_backbone.")
    # importlib.util.find_spec, by which libraries look whether mmcv has operators, asks for one.
    module.__spec__ = ModuleSpec("mmcv._ext", loader=None, origin=__file__)
    vars(module).update(OPERATORS)
    module.get_compiler_version = lambda: f"none: operators of resnet_backbone on torchvision {torchvision.__version__}"
    module.get_compiling_cuda_version = lambda: torch.version.cuda or "not available"
    module.__getattr__ = _missing
    return module  # type: ignore[no-any-return]


def _missing(name: str) -> Callable[..., NoReturn]:
    # mmcv looks every operator up while it is imported: only a call may fail.
    if name.startswith("__"):
        raise AttributeError(name)

    def raise_missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator {name!r} is not among those that resnet_backbone supplies without a compiler. None of "
            "the models that mmdet ships calls it. With a compiler, `resnet-backbone-build-mmcv` builds "
            "mmcv's own"
        )

    return raise_missing

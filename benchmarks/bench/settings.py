"""Conditions of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from resnet_backbone.errors import ArgumentError, check_channels

__all__ = ["DTYPES", "MODEL_NAME", "Settings", "precision"]

MODEL_NAME = re.compile(
    r"resnet(?P<depth>18|34|50|101|152)|resnext(?P<depth_x>50|101|152)_(?P<groups>\d+)x(?P<width>\d+)d"
)
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Settings:
    """One benchmark's conditions.

    Attributes:
        train: Whether a step is a forward and a backward pass, rather than inference.
        model: ``'resnet50'``, ``'resnext101_64x4d'``: torchvision's and timm's names.
        batch: Number of images.
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.
        dtype: A key of ``DTYPES``. Half precision means autocast, or, in inference, weights of that type.
        device: ``'cpu'`` or ``'cuda'``.
        repeats: Number of timings of each row.
        frozen_stages: The backbone's argument in training.
    """

    train: bool = False
    model: str = "resnet50"
    batch: int = 1
    height: int = 480
    width: int = 640
    dtype: str = "fp32"
    device: str = "cpu"
    repeats: int = 10
    frozen_stages: int = 1

    def check(self) -> None:
        """Check the values.

        Raises:
            ArgumentError: A size or a count is below its minimum, the dtype is unknown, or there is no such device.
        """
        if MODEL_NAME.fullmatch(self.model) is None:
            raise ArgumentError(f"--model must be a name like resnet50 or resnext101_64x4d, got {self.model!r}")
        for name in ("batch", "height", "width", "repeats"):
            check_channels(f"--{name}", getattr(self, name), minimum=32 if name in ("height", "width") else 1)
        if self.dtype not in DTYPES:
            raise ArgumentError(f"--dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ArgumentError("--device cuda needs a GPU and a torch that was built for it; none is available here")
        if self.dtype in ("tf32", "fp16") and self.device == "cpu":
            raise ArgumentError(f"--dtype {self.dtype} is for --device cuda; CPUs have fp32 and bf16")

    @property
    def is_half(self) -> bool:
        """Whether the arithmetic is in half precision."""
        return self.dtype in ("bf16", "fp16")

    def image(self) -> Tensor:
        """A batch of random images with a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, self.height, self.width, generator=generator).to(self.device)

    def autocast(self) -> AbstractContextManager[object]:
        """The autocast context for rows that do not cast themselves."""
        return torch.autocast(self.device, DTYPES[self.dtype]) if self.is_half else nullcontext()


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Allow TF32 only for the dtype ``'tf32'``.

    Args:
        dtype: A key of ``DTYPES``.
    """
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before

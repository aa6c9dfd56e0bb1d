"""One thing that the doctor has to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["COMPONENTS", "Finding", "Level"]

Level = Literal["works", "missing", "broken"]
COMPONENTS = ("python", "numpy", "torch", "torchvision", "setuptools", "mmengine", "mmcv", "mmdet", "resnet_backbone")
"""What is looked at, in the order of the table: each after what it needs."""


@dataclass(frozen=True)
class Finding:
    """What was found out about one component.

    Attributes:
        component: One of ``COMPONENTS``.
        level: ``'works'``; ``'missing'``, which is allowed; or ``'broken'``, which wants mending.
        text: What there is to know, in a sentence; empty where there is nothing.
        command: What to type to mend it; empty where no command does.
    """

    component: str
    level: Level
    text: str = ""
    command: str = ""

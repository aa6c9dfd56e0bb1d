"""What a backbone is made of and what it costs, stage by stage: ``resnet-backbone info``, and ``describe`` for code."""

from .describe import describe
from .description import Description, Norms, Part

__all__ = ["Description", "Norms", "Part", "describe"]

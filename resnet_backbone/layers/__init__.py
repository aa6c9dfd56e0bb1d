"""What stages are made of."""

from .res_layer import ResLayer
from .se import SELayer

__all__ = ["ResLayer", "SELayer"]

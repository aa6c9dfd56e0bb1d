"""What stages are made of."""

from .res_layer import ResLayer

__all__ = ["ResLayer"]

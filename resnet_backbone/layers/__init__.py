"""What stages are made of."""

from .se import SELayer

__all__ = ["SELayer"]

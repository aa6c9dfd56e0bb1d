"""Layers of the networks."""

from .se import SELayer

__all__ = ["SELayer"]

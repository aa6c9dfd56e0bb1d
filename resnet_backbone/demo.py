"""``resnet-backbone demo``: a photograph through ResNet-18, as a table and as a picture."""

from __future__ import annotations


def run_demo(image: str | None, out: str) -> int:
    """Placeholder until the next commit."""
    raise NotImplementedError

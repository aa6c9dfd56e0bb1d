"""Helpers of several test modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def shake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Change every parameter and running statistic from its initial value, so that mix-ups are seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.rand(parameter.shape, generator=generator) * 0.2)
            else:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.1)
                layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
    return module


def assert_same_bits(ours: Iterable[Tensor | None], theirs: Iterable[Tensor | None]) -> None:
    """Assert that both hold bitwise equal tensors."""
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs)
    for index, (a, b) in enumerate(zip(ours, theirs)):
        assert (a is None) == (b is None), f"only one has tensor {index}"
        if a is not None and b is not None:
            assert a.shape == b.shape
            assert torch.equal(a, b), f"tensor {index} differs by {(a - b).abs().max()}"


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def loss_of(levels: Iterable[Tensor]) -> Tensor:
    return torch.stack([level.square().mean() for level in levels]).sum()


def assert_mentions(message: str, *words: str) -> None:
    """Assert that a message has each of ``words``, as whole words: a name, a value, a path, not the sentence.

    No two share a place, so that a value is not mistaken for a part of another one.
    """
    assert words
    rest = message
    for word in sorted(words, key=len, reverse=True):
        found = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", rest)
        assert found, f"{word!r} is not in {message!r}, or only as part of another word"
        rest = f"{rest[: found.start()]} {rest[found.end() :]}"


@contextmanager
def raises(exception: type[Exception], *words: str) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Assert that the block raises exactly ``exception``, with a message that mentions each of ``words``."""
    with pytest.raises(exception) as caught:
        yield caught
    assert caught.type is exception
    assert_mentions(str(caught.value), *words)

"""Measure the memory that autograd saves for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor, nn
from typing_extensions import Self

__all__ = ["SavedTensorBytes"]


class _Saved:
    """What the graph keeps instead of a saved tensor."""

    def __init__(self, tensor: Tensor, part: str) -> None:
        self.tensor = tensor
        self.part = part


class SavedTensorBytes:
    """Context manager that counts the bytes that autograd saves, each storage once, without parameters and buffers.

    Read the count while the outputs of the computation are alive: autograd frees the saved tensors with them.

    Args:
        model: The model whose parameters and buffers are not counted.
        part: Returns the name of the running part of the model. A storage belongs to the part that saves it first.
    """

    def __init__(self, model: nn.Module, part: Callable[[], str] = lambda: "") -> None:
        self._part = part
        self._model = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        # Weak, because a checkpoint of frozen layers saves its input and drops it immediately.
        self._saved: list[ref[_Saved]] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)

    def _pack(self, tensor: Tensor) -> _Saved:
        saved = _Saved(tensor, self._part())
        self._saved.append(ref(saved))
        return saved

    def bytes(self, part: str | None = None) -> int:
        """Return the number of bytes saved by one part, or by all parts."""
        sizes: dict[int, tuple[str, int]] = {}
        for saved in filter(None, (saved() for saved in self._saved)):
            storage = saved.tensor.untyped_storage()
            if storage.data_ptr() not in self._model:
                sizes.setdefault(storage.data_ptr(), (saved.part, storage.nbytes()))
        return sum(size for saver, size in sizes.values() if part in (None, saver))

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

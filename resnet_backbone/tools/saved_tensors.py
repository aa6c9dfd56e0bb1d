"""What autograd keeps for the backward pass: tensors counted by their memory, each once."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

import torch
from torch import Tensor, nn
from typing_extensions import Self

__all__ = ["KeptTensors"]


class _Holder:
    """Stands in the graph for a tensor that was saved: it lives as long as the graph keeps the tensor."""

    def __init__(self, tensor: Tensor, part: str) -> None:
        self.tensor = tensor
        self.part = part


class KeptTensors:
    """Records, while it is entered, the distinct storages that autograd saves, without parameters and buffers.

    What it tells holds as long as the outputs of the computation do: with them goes what is kept for them.

    Args:
        model: Whose parameters and buffers do not count.
        part: Tells which part of the model is at work; a storage belongs to the part that saves it first.
    """

    def __init__(self, model: nn.Module, part: Callable[[], str] = lambda: "") -> None:
        self._part = part
        self._known = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        # Weak: a checkpoint of frozen layers saves its input, and drops it at once.
        self._saved: list[ref[_Holder]] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda holder: holder.tensor)

    def _pack(self, tensor: Tensor) -> _Holder:
        holder = _Holder(tensor, self._part())
        self._saved.append(ref(holder))
        return holder

    def bytes(self, part: str | None = None) -> int:
        """Return the bytes of what is kept, in all or by one part."""
        kept: dict[int, tuple[str, int]] = {}
        for holder in filter(None, (saved() for saved in self._saved)):
            storage = holder.tensor.untyped_storage()
            if storage.data_ptr() not in self._known:
                kept.setdefault(storage.data_ptr(), (holder.part, storage.nbytes()))
        return sum(size for saver, size in kept.values() if part in (None, saver))

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.__exit__(*exception)

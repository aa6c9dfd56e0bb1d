"""Folders and sharded checkpoints: several files that hold one state dict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .read import read_file

__all__ = ["INDEX_NAMES", "find_in_folder", "is_index", "read_checkpoint", "shard_names"]

INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_NAMES = ("model.safetensors", "pytorch_model.bin")
_MAX_INDEX_BYTES = 50_000_000


def is_index(name: str) -> bool:
    """Whether a file of this name is the index of a sharded checkpoint, as Hugging Face's libraries write it."""
    return name.endswith((".safetensors.index.json", ".bin.index.json"))


def read_checkpoint(path: Path, map_location: Any = "cpu") -> Any:
    """Read a checkpoint: a file, a folder with one, or the index of a sharded one.

    Args:
        path: The file or folder.
        map_location: Where the tensors go, as in ``torch.load``.

    Returns:
        What was saved; of a sharded checkpoint all tensors of all shards, as one dict.

    Raises:
        CheckpointError: It cannot be read; see ``read_file``.
    """
    if path.is_dir():
        path = find_in_folder(path)
    if not is_index(path.name):
        return read_file(path, map_location)
    tensors: dict[str, Any] = {}
    for name in shard_names(path):
        shard = read_file(path.with_name(name), map_location)
        if not isinstance(shard, Mapping):
            raise CheckpointError(f"{path.with_name(name)}, which {path.name} names, is not a state dict")
        tensors.update((key, value) for key, value in shard.items() if key != "__metadata__")
    return tensors


def find_in_folder(folder: Path) -> Path:
    """Return the checkpoint in a folder.

    Args:
        folder: A folder as Hugging Face's libraries write it.

    Raises:
        CheckpointError: It holds none, or one of torch.distributed.checkpoint.
    """
    if (folder / ".metadata").exists():
        raise CheckpointError(
            f"{folder} is a distributed checkpoint (torch.distributed.checkpoint): make a file of it with python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE"
        )
    for name in (*_SINGLE_NAMES, *INDEX_NAMES):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} is a directory without {' or '.join(_SINGLE_NAMES)}: give a file")


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that the index of a sharded checkpoint lists, which lie beside it.

    Args:
        index: The index.

    Raises:
        CheckpointError: It is not such an index, or lists files elsewhere.
    """
    try:
        if index.stat().st_size > _MAX_INDEX_BYTES:
            raise CheckpointError(f"{index} is too large for an index")
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not the index of a sharded checkpoint ({type(error).__name__})") from error
    for name in names:
        if not isinstance(name, str) or not name or name in (".", "..") or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} lists {name!r}, which is not a file beside it")
    return names

"""Read a checkpoint file into containers of tensors, whatever it was written with, without running any of it."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError, CheckpointNotFoundError, UnsafeCheckpointError
from .safe_pickle import LEGACY_MAGIC, TorchPickle, load_pickle

__all__ = ["containers", "looks_like_html", "metadata_of", "read_file"]


def read_file(path: Path, map_location: Any = "cpu") -> Any:
    """Read a checkpoint.

    Args:
        path: A ``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors`` or ``.pkl`` file. The content decides how it is read.
        map_location: Where the tensors go, as in ``torch.load``.

    Returns:
        What was saved: usually a dict that holds tensors, or dicts of tensors. Of a ``.safetensors`` file, its tensors
        and, under ``'__metadata__'``, its metadata.

    Raises:
        CheckpointNotFoundError: There is no such file.
        UnsafeCheckpointError: The file would run code; it has run none.
        CheckpointError: The file is empty, cut off, or no checkpoint.
    """
    head = _head(path)
    try:
        return _read(path, head, map_location)
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path} is not loaded: it {error}") from None
    except Exception as error:  # a damaged file can fail in any way, and the user needs its path
        reason = " ".join(str(error).split()) or "it ends too early"
        raise CheckpointError(f"{path} is damaged or cut off ({type(error).__name__}: {reason[:300]})") from error


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a directory, not a checkpoint file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes): fetch it again")
    if looks_like_html(head):
        raise CheckpointError(f"{path} is a web page saved as a checkpoint: fetch the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file it points to: run git lfs pull")
    return head


def looks_like_html(head: bytes) -> bool:
    """Whether a file that begins so is a web page (or XML, as storage servers answer)."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _read(path: Path, head: bytes, map_location: Any) -> Any:
    if head.startswith(b"PK\x03\x04"):
        return _read_zip(path, map_location)
    if head[2:14] == LEGACY_MAGIC:
        return _read_torch(path, map_location)
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path, map_location)
    if head[:1] == b"\x80" or path.suffix in (".pkl", ".pickle"):
        with path.open("rb") as file:
            return load_pickle(file)
    raise CheckpointError(f"{path} is no checkpoint that is known here: neither torch's, nor safetensors, nor a pickle")


def _read_zip(path: Path, map_location: Any) -> Any:
    # By torch's own reader: another may find other names in an archive that is made to deceive.
    try:
        names = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError:
        if not zipfile.is_zipfile(path):
            raise
        names = []
    if "constants.pkl" in names:
        raise UnsafeCheckpointError("is a TorchScript program, not weights: save its state_dict()")
    if "data.pkl" not in names:
        raise CheckpointError("is a zip archive that torch.save did not write")
    return _read_torch(path, map_location)


def _read_torch(path: Path, map_location: Any) -> Any:
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        # Training arguments, logs and numpy scalars lie beside the weights of most frameworks' checkpoints; torch
        # refuses these, and which of them depends on its version. The list that decides in the end is ours.
        pass
    try:
        return torch.load(path, map_location=map_location, weights_only=False, pickle_module=TorchPickle)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(
            f"{error}. A checkpoint may hold tensors, arrays and plain containers; if this is a whole pickled model, "
            "save its state_dict() instead"
        ) from None


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs the safetensors package: pip install 'resnet_backbone[hub]' (or pip install safetensors)"
        ) from error
    device = map_location if isinstance(map_location, str) else "cpu"
    with safe_open(path, framework="pt", device=device) as file:
        tensors: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        return {**tensors, "__metadata__": dict(file.metadata() or {})}


def containers(checkpoint: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Find the state dicts in a checkpoint.

    Args:
        checkpoint: What ``read_file`` returned.

    Yields:
        For each dict that holds tensors or arrays, at any depth: the keys that lead to it, joined by dots, and its
        tensors. Optimizer states are left out.
    """
    yield from _containers(checkpoint, "", 0, set())


def _containers(node: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    # A dict may lie in a file at several places, in itself among them.
    if not isinstance(node, Mapping) or depth > 4 or id(node) in seen:
        return
    seen.add(id(node))
    tensors = {
        key: tensor for key, value in node.items() if isinstance(key, str) and (tensor := _tensor(value)) is not None
    }
    if tensors:
        yield path, tensors
    for key, value in node.items():
        if isinstance(key, str) and not key.startswith("optim"):
            yield from _containers(value, f"{path}.{key}" if path else key, depth + 1, seen)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        # Sparse and nested tensors are no layer's weights.
        return value.detach() if value.layout is torch.strided and not value.is_nested else None
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return torch.from_numpy(np.array(value))
    return None


def metadata_of(checkpoint: Any) -> dict[str, Any]:
    """Return what a checkpoint says of itself: mmengine's ``meta``, or the provenance that ``convert`` writes.

    Args:
        checkpoint: What ``read_file`` returned.
    """
    if not isinstance(checkpoint, Mapping):
        return {}
    meta = checkpoint.get("meta", checkpoint.get("__metadata__"))
    if not isinstance(meta, Mapping):
        return {}
    provenance = meta.get("resnet_backbone")
    if isinstance(provenance, str):
        try:
            return {**meta, "resnet_backbone": json.loads(provenance)}
        except json.JSONDecodeError:
            return {key: value for key, value in meta.items() if key != "resnet_backbone"}
    return dict(meta)

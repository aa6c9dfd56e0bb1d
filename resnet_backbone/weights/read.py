"""Read checkpoint files of any format without running code from them."""

from __future__ import annotations

import io
import json
import os
import stat
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch

from ..errors import ArgumentError, CheckpointError, CheckpointNotFoundError, UnsafeCheckpointError, printable
from .rebuild import WEIGHTS, Builder, StorageId, Vocabulary
from .safe_pickle import Budget, Persistent, parse_pickle

__all__ = [
    "INDEX_NAMES",
    "SINGLE_NAMES",
    "is_index",
    "looks_like_html",
    "open_regular_file",
    "read_checkpoint",
    "read_file",
    "shard_names",
]

# The pickled number at the start of files from torch < 1.6.
_LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
_TAR_ADVICE = "unpack it; if it is a checkpoint of PyTorch before 0.2, save its state_dict() with a newer one"
_OTHER_FORMATS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, such as Keras writes: convert its arrays to a .safetensors file",
    b"\x93NUMPY": "a single numpy array",
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"version https://git-lfs": "a Git LFS pointer, not the file it points to: run git lfs pull",
}
INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_NAMES = ("model.safetensors", "pytorch_model.bin")
# Parsed, JSON may take thirty times its size.
_MAX_INDEX_BYTES = 5_000_000
_Place = Callable[[torch.UntypedStorage, str], torch.UntypedStorage]


def read_file(path: Path, map_location: Any = "cpu", vocabulary: Vocabulary = WEIGHTS) -> Any:
    """Read a checkpoint.

    Args:
        path: A ``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors`` or ``.pkl`` file. Its content determines the format.
        map_location: Device of the tensors, as in ``torch.load``.
        vocabulary: The names that a pickle may use.

    Returns:
        The object that was saved, usually a dict of tensors or of such dicts. For a ``.safetensors`` file, a dict of
        its tensors, with its metadata under ``'__metadata__'``.

    Raises:
        CheckpointNotFoundError: The file does not exist.
        UnsafeCheckpointError: Unpickling the file would run code; none was run.
        CheckpointError: The file is empty or damaged, or not a checkpoint.
        ArgumentError: ``map_location`` is a device that is not available.
    """
    place = _placer(map_location)
    shown = printable(str(path), 4096)
    try:
        with open_regular_file(path) as file:
            return _Reader(file, path, vocabulary, place).read()
    except CheckpointError as error:
        if shown in str(error):
            raise
        raise type(error)(f"{shown} cannot be loaded: it {error}") from None
    except ArgumentError:
        raise
    except Exception as error:  # a damaged file can fail anywhere, and the user needs its path
        reason = printable(" ".join(str(error).split()), 300) or "it ends too early"
        raise CheckpointError(f"{shown} is damaged or truncated ({type(error).__name__}: {reason})") from error


def is_index(name: str) -> bool:
    """Whether a file's name is that of a sharded checkpoint's index, as Hugging Face's libraries write it."""
    return name.endswith((".safetensors.index.json", ".bin.index.json"))


def read_checkpoint(path: Path, map_location: Any = "cpu") -> Any:
    """Read a file like ``read_file``, or the file in a folder, or all shards of an index into one dict."""
    if os.path.isdir(path):
        path = _find_in_folder(path)
    if not is_index(path.name):
        return read_file(path, map_location)
    tensors: dict[str, Any] = {}
    for name in shard_names(path):
        shard = read_file(path.with_name(name), map_location)
        if not isinstance(shard, Mapping):
            raise CheckpointError(f"{path.with_name(name)}, which {path.name} names, is not a state dict")
        tensors.update((key, value) for key, value in shard.items() if key != "__metadata__")
    return tensors


def _find_in_folder(folder: Path) -> Path:
    """Return the checkpoint in a folder, as Hugging Face's libraries write it."""
    if os.path.exists(folder / ".metadata"):
        raise CheckpointError(
            f"{folder} is a distributed checkpoint (torch.distributed.checkpoint): convert it to a file with python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} FILE"
        )
    for name in (*SINGLE_NAMES, *INDEX_NAMES):
        if os.path.isfile(folder / name):
            return folder / name
    raise CheckpointError(f"{folder} is a directory without {' or '.join(SINGLE_NAMES)}: give a file")


def shard_names(index: Path) -> list[str]:
    """Return the names of the files that the index of a sharded checkpoint lists, which must be in its folder."""
    try:
        with open_regular_file(index) as file:
            text = file.read(_MAX_INDEX_BYTES + 1)
        if len(text) > _MAX_INDEX_BYTES:
            raise CheckpointError(f"{index} is too large for an index")
        names = list(json.loads(text)["weight_map"].values())
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not the index of a sharded checkpoint ({type(error).__name__})") from error
    for name in names:
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name or "\\" in name:
            raise CheckpointError(f"{index} lists {name!r}, which is not a file in its folder")
    return sorted(set(names))


def open_regular_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading. Opening a pipe could block, and opening a device could have side effects."""
    shown = printable(str(path), 4096)
    try:
        kind = os.stat(path)
        if stat.S_ISREG(kind.st_mode):
            # The path may have been replaced in between.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            file = os.fdopen(descriptor, "rb")
            if os.path.samestat(kind, os.fstat(descriptor)):
                return file
            file.close()
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{shown} does not exist") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{shown} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    what = "a directory" if stat.S_ISDIR(kind.st_mode) else "a pipe, socket or device"
    raise CheckpointError(f"{shown} is {what}, not a file")


def looks_like_html(head: bytes) -> bool:
    """Whether a file that starts with ``head`` is a web page, or XML, which storage servers return."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and not _is_safetensors(head)


def _is_safetensors(head: bytes) -> bool:
    # The file starts with the length of its header, whose bytes may be the magic number of another format.
    return head[5:9] == b"\0\0\0{"


def _placer(map_location: Any) -> _Place:
    """Return a function that moves a storage to its device as ``torch.load`` does, given its original device."""
    restore: Any = torch.serialization.default_restore_location

    def place(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        if isinstance(map_location, (str, torch.device)):
            location = str(map_location)
        elif isinstance(map_location, Mapping):
            location = map_location.get(location, location)
        try:
            moved = map_location(storage, location) if callable(map_location) else None
            return cast("torch.UntypedStorage", restore(storage, location) if moved is None else moved)
        except Exception as error:
            shown = str(map_location) if isinstance(map_location, torch.device) else map_location
            reason = printable(str(error), 500)
            raise ArgumentError(f"map_location={shown!r} cannot be used here: {reason}") from error

    if isinstance(map_location, (str, torch.device)):
        # A missing device is the argument's fault, even if the file is damaged.
        place(torch.empty(0, dtype=torch.uint8).untyped_storage(), "cpu")
    return place


class _Reader:
    """Reader of one file."""

    def __init__(self, file: IO[bytes], path: Path, vocabulary: Vocabulary, place: _Place) -> None:
        self.file = file
        self.path = path
        self.vocabulary = vocabulary
        self.place = place
        self.size = file.seek(0, io.SEEK_END)
        self.budget = Budget(self.size)
        file.seek(0)

    def read(self) -> Any:
        # Files under /proc have no size either.
        if not self.size:
            raise CheckpointError("is empty (0 bytes): download it again")
        head = self.file.read(1024)
        self.file.seek(0)
        if _is_safetensors(head):
            return self._safetensors()
        if looks_like_html(head):
            raise CheckpointError("is a web page: download the file itself")
        for magic, what in _OTHER_FORMATS.items():
            if head.startswith(magic):
                raise CheckpointError(f"is {what}")
        if head[257:262] == b"ustar":
            raise UnsafeCheckpointError(f"is a tar archive: {_TAR_ADVICE}")
        if head.startswith(b"PK\x03\x04"):
            return self._zip()
        if head[2:14] == _LEGACY_MAGIC:
            return self._legacy(self.file, self.size)
        if head[:1] == b"\x80" or self.path.suffix in (".pkl", ".pickle"):
            return self._build(self._parse(self.file, self.size)[0], _no_storage)
        raise CheckpointError(
            "is not a checkpoint in a known format (torch, safetensors or pickle): if it is one of another framework, "
            "save its arrays by name in a .safetensors file"
        )

    def _parse(self, file: IO[bytes], end: int) -> tuple[Any, list[Persistent]]:
        return parse_pickle(file, end, self.budget, self.vocabulary.check)

    def _build(self, root: Any, read_storage: Callable[[StorageId], torch.UntypedStorage]) -> Any:
        return Builder(self.vocabulary, self.budget, read_storage, self._nested).build(root)

    def _bytes(self, file: IO[bytes], size: int, end: int) -> torch.UntypedStorage:
        """Read the bytes of a storage."""
        if size > end - file.tell():
            raise CheckpointError("ends too early: some of its tensors are missing")
        self.budget.spend(size + 500)
        data = torch.empty(size, dtype=torch.uint8, device="cpu")
        if cast("io.BufferedReader", file).readinto(cast(Any, data.numpy())) != size:
            raise CheckpointError("ends too early")
        return data.untyped_storage()

    def _zip(self) -> Any:
        entries = _entries(self.file, self.budget)
        pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            arrays = any(name.endswith(".npy") for name in entries)
            what = "a numpy archive: convert its arrays to a .safetensors file" if arrays else "a zip archive"
            raise CheckpointError(f"is {what}, which torch.save did not write")
        prefix = pickles[0].removesuffix("data.pkl")
        start, size = entries[pickles[0]]
        self.file.seek(start)
        root, _ = self._parse(self.file, start + size)
        start, size = entries.get(f"{prefix}byteorder", (0, 0))
        self.file.seek(start)
        order = self.file.read(min(size, 64)).decode() or "little"
        if order not in ("little", "big"):
            raise CheckpointError("has a byte order that is neither little nor big")
        storages: dict[str, torch.UntypedStorage] = {}

        def read_storage(storage: StorageId) -> torch.UntypedStorage:
            start, size = entries.get(f"{prefix}data/{storage.key}", (0, -1))
            if size != storage.nbytes:
                raise CheckpointError(f"has no storage of the {storage.nbytes} bytes that a tensor needs")
            if storage.key not in storages:
                self.file.seek(start)
                data = self._bytes(self.file, size, start + size)
                if order != sys.byteorder:
                    cast(Any, data).byteswap(storage.dtype)
                storages[storage.key] = self.place(data, storage.location)
            return storages[storage.key]

        return self._build(root, read_storage)

    def _legacy(self, file: IO[bytes], end: int) -> Any:
        _, version, system, (root, references) = (self._parse(file, end) for _ in range(4))
        system = self._build(system[0], _no_storage)
        if version[0] != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise CheckpointError("is in an unknown variant of torch's legacy format")
        declared: dict[str, StorageId] = {}
        for storage in map(StorageId.parse, references):
            if declared.setdefault(storage.key, storage).nbytes != storage.nbytes:
                raise CheckpointError("describes a storage twice, with different sizes")
        keys = self._build(self._parse(file, end)[0], _no_storage)
        # Hashing anything but strings could take forever.
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise CheckpointError("has no valid list of storages")
        if sorted(keys) != sorted(declared):
            raise CheckpointError("lists other storages than its tensors need")
        storages = {}
        for key in keys:
            storage = declared[key]
            count = int.from_bytes(file.read(8), "little")
            if count * storage.dtype.itemsize != storage.nbytes:
                raise CheckpointError("has a storage of the wrong size")
            storages[key] = self.place(self._bytes(file, storage.nbytes, end), storage.location)
        return self._build(root, lambda storage: storages[storage.key])

    def _nested(self, data: Any) -> Any:
        # Outside of torch.save, torch pickles storages only in its legacy format.
        data = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(data, bytes) or data[2:14] != _LEGACY_MAGIC or data[257:262] == b"ustar":
            raise UnsafeCheckpointError("has a pickled tensor that is not in torch's format")
        return self._legacy(io.BytesIO(data), len(data))

    def _safetensors(self) -> dict[str, Any]:
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise CheckpointError("needs the safetensors package: pip install safetensors") from error
        if not os.fsencode(self.path).decode("utf-8", "replace") == str(self.path):
            raise CheckpointError("has a name that is not UTF-8, which safetensors does not support: rename it")
        content: dict[str, Any] = {}
        with safe_open(self.path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - no mapping
                try:
                    tensor = file.get_tensor(key)
                except AttributeError as error:
                    reason = "of a dtype that this version of PyTorch does not have"
                    raise CheckpointError(f"has data {reason} ({error})") from None
                self.budget.spend(2000 + tensor.nbytes)
                content[key] = tensor.to(self.place(tensor.untyped_storage(), "cpu").device)
            return {**content, "__metadata__": dict(file.metadata() or {})}


def _no_storage(_: StorageId) -> torch.UntypedStorage:
    raise CheckpointError("refers to a storage, but is a plain pickle, which has none")


def _entries(file: IO[bytes], budget: Budget) -> dict[str, tuple[int, int]]:
    """Return the start and the size of each file in a zip archive.

    An archive describes its files twice, at its end and before each. Readers differ in which they trust, so both must
    agree, and files must not overlap.
    """
    # zipfile's records take about twenty times the size of the archive's directory, which only this private function
    # tells before it is read.
    end_record = getattr(zipfile, "_EndRecData", lambda _: None)(file)
    budget.spend(20 * end_record[5] if end_record else 0)
    with zipfile.ZipFile(file) as archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        end = archive.start_dir
    if any(info.filename.endswith("/constants.pkl") for info in infos):
        raise UnsafeCheckpointError("is a TorchScript program, not weights: save its state_dict()")
    entries: dict[str, tuple[int, int]] = {}
    last = 0
    for info in infos:
        file.seek(info.header_offset)
        magic, _, flags, method, _, _, _, name_length, extra_length = struct.unpack("<4sHHHIIQHH", file.read(30))
        name = file.read(name_length)
        start = info.header_offset + 30 + name_length + extra_length
        encoded = info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")
        described = b"PK\x03\x04", info.flag_bits, info.compress_type, encoded
        if (magic, flags, method, name) != described or info.header_offset < last:
            raise CheckpointError("is a zip archive that contradicts itself")
        if method != zipfile.ZIP_STORED or flags & 1 or info.file_size != info.compress_size:
            raise CheckpointError("is a zip archive of compressed or encrypted files, which torch.save does not write")
        last = start + info.file_size
        if last > end or info.filename in entries:
            raise CheckpointError("is a zip archive that contradicts itself")
        entries[info.filename] = start, info.file_size
    return entries

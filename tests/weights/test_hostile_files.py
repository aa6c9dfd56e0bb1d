"""Hostile files that try to run code, exhaust memory or time, or expose memory."""

import io
import os
import pickle
import socket
import struct
import sys
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import raises
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_backbone.errors import ArgumentError
from resnet_backbone.weights import CheckpointError, CheckpointNotFoundError, UnsafeCheckpointError, safe_pickle
from resnet_backbone.weights.load import containers
from resnet_backbone.weights.preprocessing import metadata_of
from resnet_backbone.weights.read import read_file
from resnet_backbone.weights.rebuild import WEIGHTS, Inert

PROTOCOL = b"\x80\x04"


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(value)) + value


def name(module, attribute):
    return text(module) + text(attribute) + b"\x93"


def integer(value):
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def integers(*values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(key="0", count=4, kind="FloatStorage", legacy=False):
    view = b"N" if legacy else b""
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + integer(count) + view + b"tQ"


def tensor(offset, size, stride, of=None):
    arguments = (of or storage()) + integer(offset) + integers(*size) + integers(*stride) + b"\x89N"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def write_pickle(path, program):
    path.write_bytes(PROTOCOL + program + b".")
    return path


def write_zip(path, program, records=(("data/0", bytes(16)),), **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", PROTOCOL + program + b".")
        for record, data in records:
            archive.writestr(f"archive/{record}", data)
    return path


FOUR_ZEROS = struct.pack("<q", 4) + bytes(16)


def write_legacy(path, program, keys=("0",), storages=FOUR_ZEROS):
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(head + PROTOCOL + program + b"." + pickle.dumps(list(keys), 2) + storages)
    return path


# Programs that describe more data than the file holds, or that take long to read.
BOMBS = {
    "bytearray": b"\x96" + struct.pack("<Q", 6 * 10**9),
    "bytes": b"\x8e" + struct.pack("<Q", 6 * 10**9),
    "text": b"\x8d" + struct.pack("<Q", 2**63),
    "integer": b"\x8b" + struct.pack("<I", 2**31 - 1),
    "old string": b"T" + struct.pack("<I", 2**31 - 1),
    "digits": b"I" + b"9" * 5000 + b"\n",
    "sets": b"\x8f" * 50_000,
    "lists": b"]" * 120_000,
    "dicts": b"}" * 60_000,
    "memo": b"N\x94" * 120_000,
    "calls": name("collections", "OrderedDict") + b"\x94(" + b"h\x00)R" * 35_000 + b"l",
    "names": b"(" + b"".join(name("omegaconf", f"x{i}") for i in range(25_000)) + b"l",
    "range in a list": name("builtins", "list") + name("builtins", "range") + integer(2**62) + b"\x85R\x85R",
    "range in a bytearray": name("builtins", "bytearray") + integer(6 * 10**9) + b"\x85R",
    "nested tuples": b")" + b"\x85" * 120_000,
    "nested tuples as a key": b"})" + b"\x85" * 120_000 + b"Ns",
    "tower of tuples as a key": b"})" + b"2\x86" * 60 + b"Ns",
    "tower of tuples in a set": b"\x8f()" + b"2\x86" * 60 + b"\x90",
    "frozenset as a key": b"}(\x91Ns",
    "keys that collide": b"}(" + b"".join(integer(i * (2**61 - 1)) + b"N" for i in range(-4, 4)) + b"u",
    "integers as keys": b"}(" + b"".join(integer(i) + b"N" for i in range(600)) + b"u",
    "floats as a set": b"\x8f(" + b"".join(b"G" + struct.pack(">d", i) for i in range(600)) + b"\x90",
    "wide text": text("x" * 1_300_000 + "\U0010ffff"),
    "wide line": b"V" + b"x" * 1_300_000 + b"\\U0010ffff\n",
    "tuples as keys": b"}(" + b"".join(b"K\x01" + integer(i) + b"\x86N" for i in range(2_000)) + b"u",
    "long tuple as a key": b"}(" + b"K\x01" * 1000 + b"tNs",
    "nested lists": b"]" * 1000 + b"a" * 999,
    "codec": name("_codecs", "encode") + b"\x94" + text("x" * 10**6) + b"\x94(" + b"h\x00h\x01\x85R" * 500 + b"l",
    "array of a shape": name("numpy.core.multiarray", "scalar")
    + name("numpy", "dtype")
    + text("S9999")
    + b"\x85R\x85R",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_rejected(kind, tmp_path, monkeypatch):
    # One fiftieth of the limit, to save time.
    monkeypatch.setattr(safe_pickle, "_ALLOWANCE", 3_000_000)
    path = write_pickle(tmp_path / "bomb.pkl", BOMBS[kind])
    size = path.stat().st_size
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_file(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * size + 10_000_000
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)


def test_archives_of_many_files_are_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_pickle, "_ALLOWANCE", 1_000_000)
    path = write_zip(tmp_path / "many.pth", b"N", [(f"data/{number}", b"") for number in range(2000)])
    with raises(CheckpointError, str(path), "memory"):
        read_file(path)


def test_memo_of_integers_that_collide(tmp_path):
    # Takes minutes where a dict has them as keys.
    path = write_pickle(tmp_path / "memo.pkl", b"N" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(80_000)))
    assert read_file(path) is None


# Two references to a tuple of two references to a tuple ...: written out, hashed or compared it has 2**60 parts.
TOWER = b")" + b"2\x86" * 60
TOWERS = {
    "value": TOWER,
    "lists": b"]\x94" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e\x94" for i in range(60)),
    "attribute": name("builtins", "getattr") + name("omegaconf", "x") + TOWER + b"\x86R",
    "owner": name("builtins", "getattr") + TOWER + text("x") + b"\x86R",
    "codec": name("_codecs", "encode") + text("x") + TOWER + b"\x86R",
    "class": name("copyreg", "_reconstructor") + TOWER + b"NN\x87R",
    "pairs": name("collections", "OrderedDict") + b"](" + TOWER + b"N\x86e\x85R",
    "items": name("builtins", "set") + b"]" + TOWER + b"a\x85R",
    "reference": b"(" + text("storage") + TOWER * 4 + b"tQ",
    "whole reference": TOWER + b"Q",
    "type": name("torch._tensor", "_rebuild_from_type_v2") + b"(" + TOWER * 4 + b"tR",
    "buffer": name("numpy.core.numeric", "_frombuffer") + b"(" + TOWER * 4 + b"tR",
    "size": name("torch", "Size") + TOWER + b"\x85R",
}


@pytest.mark.parametrize("kind", TOWERS)
def test_deeply_nested_pickles_are_rejected(kind, tmp_path):
    with pytest.raises(CheckpointError):
        read_file(write_pickle(tmp_path / "tower.pkl", TOWERS[kind]))


def test_deeply_nested_storage_list_is_rejected(tmp_path):
    path = write_legacy(tmp_path / "legacy.pth", tensor(0, [4], [1], storage(legacy=True)))
    path.write_bytes(path.read_bytes().replace(pickle.dumps(["0"], 2), b"\x80\x02]" + TOWER + b"a."))
    with raises(CheckpointError, str(path)):
        read_file(path)


def test_line_length_is_limited(tmp_path, monkeypatch):
    path = tmp_path / "line.pkl"
    path.write_bytes(b"S'" + b"x" * 100 + b"'\n.")
    assert read_file(path) == "x" * 100
    monkeypatch.setattr(safe_pickle, "_MAX_LINE", 50)
    with raises(CheckpointError, str(path), "early"):
        read_file(path)


def test_quantized_dtype_of_a_storage_is_rejected(tmp_path):
    untyped = storage(count=16, kind="UntypedStorage")
    for dtype in ("qint8", "quint4x2"):
        program = tensor(0, [4], [1], untyped).replace(b"_v2", b"_v3")[:-2] + name("torch", dtype) + b"tR"
        with raises(CheckpointError, "file.pth", f"torch.{dtype}"):
            read_file(write_zip(tmp_path / "file.pth", program))


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="this system has no /proc")
def test_files_of_proc_are_empty():
    with raises(CheckpointError, "/proc/self/environ", "empty"):
        read_file(Path("/proc/self/environ"))


def test_large_memo_index_allocates_nothing(tmp_path):
    # Python's own unpickler would allocate 64 GB.
    assert read_file(write_pickle(tmp_path / "memo.pkl", b"K\x07r\xff\xff\xff\xff")) == 7


OUTSIDE = {
    "offset": tensor(1, [4], [1]),
    "negative offset": tensor(-1, [4], [1]),
    "negative stride": tensor(3, [4], [-1]),
    "size": tensor(0, [5], [1]),
    "stride": tensor(0, [2], [2**59]),
    "overflow": tensor(0, [2**59, 2**59], [2**59, 2**59]),
    "repeated": tensor(0, [2**31], [0]),
    "dimensions": tensor(0, [1] * 65, [1] * 65),
    "strides": tensor(0, [2, 2], [1]),
    "count": tensor(0, [4], [1], storage(count=2**60)),
    "negative count": tensor(0, [4], [1], storage(count=-1)),
    "missing": tensor(0, [4], [1], storage(key="1")),
    "another file": tensor(0, [4], [1], storage(key="../data.pkl", count=1)),
    "two sizes": b"(" + tensor(0, [4], [1]) + tensor(0, [1], [1], storage(count=2)) + b"l",
    "kind": tensor(0, [4], [1], b"K\x00Q"),
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_tensor_outside_its_storage_is_rejected(kind, tmp_path):
    for path in (
        write_zip(tmp_path / "zip.pth", OUTSIDE[kind]),
        write_legacy(tmp_path / "legacy.pth", OUTSIDE[kind].replace(b"tQ", b"NtQ")),
    ):
        with raises(CheckpointError, str(path)):
            read_file(path)


def test_tensor_inside_its_storage_is_read(tmp_path):
    data = np.arange(4, dtype="<f4").tobytes()
    zipped = write_zip(tmp_path / "zip.pth", tensor(1, [3], [1]), [("data/0", data)])
    legacy = write_legacy(
        tmp_path / "legacy.pth", tensor(1, [3], [1], storage(legacy=True)), storages=struct.pack("<q", 4) + data
    )
    assert read_file(zipped).tolist() == read_file(legacy).tolist() == [1, 2, 3]
    # A tensor that repeats elements is read as a view, if its full size is small.
    assert read_file(write_zip(tmp_path / "view.pth", tensor(0, [1000], [0]))).untyped_storage().nbytes() == 16


def test_byte_order_of_the_file(tmp_path):
    data = np.arange(4, dtype=">f4").tobytes()
    for order in (b"big", b"middle"):
        write_zip(tmp_path / f"{order.decode()}.pth", tensor(0, [4], [1]), [("byteorder", order), ("data/0", data)])
    assert read_file(tmp_path / "big.pth").tolist() == [0, 1, 2, 3]
    with raises(CheckpointError, "middle.pth", "byte order"):
        read_file(tmp_path / "middle.pth")


@pytest.mark.parametrize("size", [0, 8, 15, 17, 32])
def test_record_of_another_size_than_its_storage_is_rejected(size, tmp_path):
    path = write_zip(tmp_path / "short.pth", tensor(0, [4], [1]), [("data/0", bytes(size))])
    with raises(CheckpointError, str(path), "16"):
        read_file(path)


@pytest.mark.parametrize(
    ("keys", "storages"),
    [
        ([], b""),
        (["1"], FOUR_ZEROS),
        (["0", "0"], 2 * (FOUR_ZEROS)),
        (["0"], struct.pack("<q", 3) + bytes(16)),
        (["0"], struct.pack("<q", -4) + bytes(16)),
        (["0"], struct.pack("<q", 2**62) + bytes(16)),
        (["0"], struct.pack("<q", 4) + bytes(15)),
        (["0"], b""),
    ],
)
def test_missing_legacy_storages_are_rejected(keys, storages, tmp_path):
    path = write_legacy(tmp_path / "legacy.pth", tensor(0, [4], [1], storage(legacy=True)), keys, storages)
    with raises(CheckpointError, str(path)):
        read_file(path)


def _corrupt(path, find, replace, last=False):
    data = path.read_bytes()
    at = data.rindex(find) if last else data.index(find)
    path.write_bytes(data[:at] + replace + data[at + len(find) :])


def test_inconsistent_zip_archives(tmp_path):
    path = tmp_path / "archive.pth"
    program = tensor(0, [4], [1])
    write_zip(path, program)
    _corrupt(path, b"archive/data/0", b"archive/data/1")
    with raises(CheckpointError, str(path), "zip", "contradicts"):
        read_file(path)

    with pytest.warns(UserWarning, match="Duplicate name"):
        write_zip(path, program, [("data/0", bytes(16))] * 2)
    with raises(CheckpointError, str(path), "zip", "contradicts"):
        read_file(path)

    # The last entry of the central directory has the offset of the first.
    write_zip(path, program, [("data/0", bytes(16)), ("data/1", bytes(16))])
    entry = path.read_bytes().rindex(b"archive/data/1")
    data = bytearray(path.read_bytes())
    data[entry - 4 : entry] = bytes(4)
    path.write_bytes(data)
    with raises(CheckpointError, str(path), "zip", "contradicts"):
        read_file(path)

    # The local header says encrypted, then compressed; the central directory says neither.
    for at in (6, 8):
        write_zip(path, program)
        data = bytearray(path.read_bytes())
        data[at] |= 1
        path.write_bytes(data)
        with raises(CheckpointError, str(path), "zip", "contradicts"):
            read_file(path)

    write_zip(path, program, compression=zipfile.ZIP_DEFLATED)
    with raises(CheckpointError, str(path), "zip", "compressed"):
        read_file(path)

    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"N.")
    with raises(CheckpointError, str(path), "zip"):
        read_file(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_only_regular_files_are_opened(tmp_path):
    pipe = tmp_path / "pipe.pth"
    os.mkfifo(pipe)
    link = tmp_path / "link.pth"
    link.symlink_to(pipe)
    unix = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(unix))
        for path in (pipe, link, unix, type(pipe)("/dev/zero")):
            with raises(CheckpointError, str(path), "pipe", "socket", "device"):
                read_file(path)


def test_invalid_paths(tmp_path):
    with raises(CheckpointError, r"x\x00.pth", "null byte"):
        read_file(tmp_path / "x\0.pth")
    with pytest.raises(CheckpointNotFoundError):
        read_file(tmp_path / "\udcff\x1b[31m.pth")


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_file_names_of_any_bytes(suffix, tmp_path):
    from safetensors.torch import save

    path = tmp_path / f"\udcff.{suffix}"
    buffer = io.BytesIO()
    torch.save({"x": torch.ones(2)}, buffer)
    path.write_bytes(save({"x": torch.ones(2)}) if suffix == "safetensors" else buffer.getvalue())
    if suffix == "pth":
        assert read_file(path)["x"].tolist() == [1, 1]
        path.write_bytes(b"x")
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("head", [b"<", b"\x1f\x8b", b"\n<"])
def test_safetensors_detection_reads_the_header(head, tmp_path):
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    length = head.ljust(8, b"\0")
    path = tmp_path / "model.bin"
    path.write_bytes(length + header.ljust(int.from_bytes(length, "little")) + bytes(4))
    assert read_file(path)["x"].tolist() == [0]


def test_unknown_dtype_is_named(tmp_path, monkeypatch):
    header = b'{"x":{"dtype":"U64","shape":[1],"data_offsets":[0,8]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    monkeypatch.delattr(torch, "uint64", raising=False)
    with raises(CheckpointError, str(path), "dtype", "uint64"):
        read_file(path)


@pytest.mark.parametrize(
    ("head", "name"), [(b"\x89HDF\r\n\x1a\n", "HDF5"), (b"\x1f\x8b\x08", "gzip"), (b"\x93NUMPY\x01", "numpy")]
)
def test_other_formats_are_named(head, name, tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(head + bytes(1000))
    with raises(CheckpointError, str(path), name):
        read_file(path)


def test_archives_of_numpy_and_tar_are_named(tmp_path):
    np.savez(tmp_path / "model.npz", x=np.ones(2))
    with raises(CheckpointError, "model.npz", "numpy"):
        read_file(tmp_path / "model.npz")
    import tarfile

    with tarfile.open(tmp_path / "model.pth.tar", "w") as archive:
        archive.add(tmp_path / "model.npz", arcname="model.npz")
    with raises(UnsafeCheckpointError, "model.pth.tar", "tar archive") as caught:
        read_file(tmp_path / "model.pth.tar")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    ("full", "words"),
    [
        ("torch.distributed.tensor.DTensor", ["full_tensor()"]),
        ("torch.distributed._tensor.api.DTensor", ["full_tensor()"]),
        ("torch._utils._rebuild_qtensor", ["quantized"]),
        ("torch._utils._rebuild_device_tensor_from_cpu_tensor", ["CPU"]),
        ("torch.float3_e1m1", ["dtype", "torch.float3_e1m1"]),
        ("torch.nn.modules.linear.Linear", ["torch.nn.modules.linear.Linear", "state_dict"]),
    ],
)
def test_unsupported_objects_are_rejected_with_advice(full, words, tmp_path):
    error = UnsafeCheckpointError if full == "torch.nn.modules.linear.Linear" else CheckpointError
    with raises(error, "file.pkl", *words):
        read_file(write_pickle(tmp_path / "file.pkl", name(*full.rsplit(".", 1))))


def test_distributed_tensors_are_rejected_with_advice(tmp_path):
    wrapped = name("torch._tensor", "_rebuild_from_type_v2") + name("torch._utils", "_rebuild_wrapper_subclass")
    path = write_pickle(tmp_path / "file.pkl", wrapped + name("torch.distributed.tensor", "DTensor"))
    with raises(CheckpointError, str(path), "full_tensor()"):
        read_file(path)
    with raises(UnsafeCheckpointError, str(path), "some.Tensor"):
        read_file(write_pickle(path, wrapped + name("some", "Tensor")))


def test_objects_beside_the_weights_are_skipped(tmp_path):
    class_of = [
        ("omegaconf.dictconfig", "DictConfig"),
        ("typing", "Any"),
        ("__builtin__", "xrange"),
        ("torch.torch_version", "TorchVersion"),
    ]
    content = b"".join(text(attribute) + name(module, attribute) + b")R" for module, attribute in class_of)
    read = read_file(write_pickle(tmp_path / "file.pkl", b"}(" + content + text("x") + b"K\x01u"))
    assert read["x"] == 1
    assert {type(value) for key, value in read.items() if key != "x"} == {Inert}
    torch.save({"version": torch.__version__, "range": range(10**9), "x": 1}, tmp_path / "file.pth")
    assert read_file(tmp_path / "file.pth")["x"] == 1


def test_shared_and_recursive_containers(tmp_path):
    cycle = {"x": torch.ones(2)}
    cycle["cycle"] = cycle
    cycle["again"] = cycle["x"]
    torch.save(cycle, tmp_path / "cycle.pth")
    read = read_file(tmp_path / "cycle.pth")
    assert read["cycle"] is read
    assert read["again"] is read["x"]
    assert [path for path, _ in containers(read)] == [""]


def test_keys_are_escaped(tmp_path):
    torch.save({"a\x1b]0;title\x07": {"b\x1b[31m\n": torch.ones(2)}, "x" * 10_000: torch.ones(2)}, tmp_path / "k.pth")
    for path, tensors in containers(read_file(tmp_path / "k.pth")):
        assert path.isprintable()
        assert all(key.isprintable() and len(key) < 2000 for key in tensors)


def test_names_are_escaped(tmp_path):
    with pytest.raises(UnsafeCheckpointError) as caught:
        read_file(write_pickle(tmp_path / "name.pkl", name("os\x1b[31m", "x" * 10_000)))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("provenance", ["[" * 90_000, "[" * 110_000, "9" * 5000, "{", "\ud800"])
def test_malformed_provenance_is_ignored(provenance):
    meta = metadata_of({"meta": {"resnet_backbone": provenance, "epoch": 1}})
    assert meta["epoch"] == 1
    assert not isinstance(meta.get("resnet_backbone"), str)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("map_location", ["cuda", torch.device("cuda", 1), "nowhere", {"cpu": "cuda"}])
def test_unavailable_device_is_an_argument_error(map_location, tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "file.pth")
    with raises(ArgumentError, "map_location") as caught:
        read_file(tmp_path / "file.pth", map_location)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("map_location", ["meta", torch.device("meta"), {"cpu": "meta"}, lambda *_: None, None])
def test_map_location_matches_torch_load(map_location, tmp_path):
    torch.save({"x": torch.ones(2)}, tmp_path / "file.pth")
    ours = read_file(tmp_path / "file.pth", map_location)["x"]
    assert ours.device == torch.load(tmp_path / "file.pth", map_location, weights_only=True)["x"].device


def _seeds():
    content = {"state_dict": {"w": torch.arange(6.0).reshape(2, 3), "n": np.arange(3)}, "meta": ("a", 1.5, {1}, b"x")}
    files = [("pkl", pickle.dumps(content, protocol)) for protocol in range(6)]
    for new in (True, False):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=new)
        files.append(("pth", buffer.getvalue()))
    from safetensors.torch import save

    return [*files, ("safetensors", save(content["state_dict"] | {"n": torch.ones(1)}))]


SEEDS = _seeds()
_PLACE = st.floats(0, 1, exclude_max=True)
_CHANGES = st.lists(
    st.tuples(_PLACE, st.sampled_from(["set", "insert", "delete", "copy", "cut"]), st.binary(max_size=9))
)
# Programs of instructions and arguments that might fit them.
_PARTS = st.sampled_from(
    [
        bytes([code])
        for code in b"(0123NJKMGXUTCB]})elsutabdioRcQ\x80\x81\x82\x85\x86\x87\x88\x8a\x8f\x90\x91\x92\x93\x94h.q"
    ]
    + [
        name(*known.rsplit(".", 1))
        for known in sorted({*WEIGHTS.known, *WEIGHTS.bare, "torch.float32"})
        if "." in known
    ]
    + [text("x"), integers(2, 3), storage(), tensor(0, [2], [1]), b"C\x04abcd", b"K\x01", b"\x8c\x02f4"]
)


def check_reading(path):
    """Read any file, and allow only ``CheckpointError``."""
    with suppress(CheckpointError):
        content = read_file(path)
        list(containers(content))
        metadata_of(content)


@settings(max_examples=250, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.sampled_from(SEEDS), changes=_CHANGES)
def test_mutated_files_are_read_or_rejected(seed, changes, tmp_path):
    suffix, data = seed
    for place, change, value in changes:
        at = int(place * len(data))
        if change == "cut":
            data = data[:at]
        elif change == "copy":
            data = data[:at] + data[at // 2 : at] + data[at:]
        else:
            data = (
                data[:at]
                + (b"" if change == "delete" else value)
                + data[at + (0 if change == "insert" else len(value)) :]
            )
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(data)
    check_reading(path)


@settings(max_examples=250, deadline=10_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(_PARTS, max_size=30))
def test_random_pickles_are_read_or_rejected(parts, tmp_path):
    check_reading(write_pickle(tmp_path / "file.pkl", b"".join(parts)))
    check_reading(write_zip(tmp_path / "file.pth", b"".join(parts)))

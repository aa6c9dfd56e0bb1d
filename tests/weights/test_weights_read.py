"""Files that are broken, hostile, or more than weights."""

import argparse
import collections
import copyreg
import io
import os
import pathlib
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from helpers import assert_mentions, raises
from mmengine.logging import HistoryBuffer, MessageHub

from resnet_backbone import ResNet, load_pretrained
from resnet_backbone.integrations.mmdet.runner_files import read_runner_file
from resnet_backbone.weights import CheckpointError, CheckpointNotFoundError, UnsafeCheckpointError
from resnet_backbone.weights.read import _LEGACY_MAGIC as LEGACY_MAGIC
from resnet_backbone.weights.read import read_file

NARROW = dict(depth=18, base_channels=8)


@pytest.fixture(scope="module")
def state():
    return ResNet(**NARROW).state_dict()


class Bomb:
    """Writes a file if it is unpickled by Python."""

    def __init__(self, trace, call=os.system):
        self.trace = trace
        self.call = call

    def __reduce__(self):
        return self.call, (f"touch {self.trace}",)


def write_torch(obj, path):
    torch.save(obj, path)


def write_legacy(obj, path):
    torch.save(obj, path, _use_new_zipfile_serialization=False)


def write_pickle(obj, path):
    path.write_bytes(pickle.dumps(obj))


def test_bomb_works_with_pickle(tmp_path):
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


@pytest.mark.parametrize(("write", "suffix"), [(write_torch, "pth"), (write_legacy, "pth"), (write_pickle, "pkl")])
@pytest.mark.parametrize(("call", "name"), [(os.system, "posix.system"), (eval, "eval"), (exec, "exec")])
def test_hostile_pickle(write, suffix, call, name, state, tmp_path, snapshot):
    path = tmp_path / f"hostile.{suffix}"
    trace = tmp_path / "trace"
    write({"state_dict": dict(list(state.items())[:3]), "meta": Bomb(trace, call)}, path)
    backbone = ResNet(**NARROW)
    unchanged = snapshot(backbone)
    with raises(UnsafeCheckpointError, str(path), name):
        load_pretrained(backbone, path)
    assert not trace.exists()
    assert unchanged()


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.", "os.system"),
        (
            b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x08builtins\x8c\x04dict\x93\x8c\x09__class__\x86R.",
            "builtins.getattr",
        ),
        (b"\x80\x02c__builtin__\nsetattr\n.", "builtins.setattr"),
        (b"\x80\x02cnumpy.testing._private.utils\nrunstring\n.", "numpy.testing._private.utils.runstring"),
        (b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93.", "torch.hub.load"),
        (b"\x80\x02ctorch.serialization\nload\n.", "torch.serialization.load"),
        (b"\x80\x02ctorch.jit\nload\n.", "torch.jit.load"),
        (b"\x80\x02cfunctools\npartial\n.", "functools.partial"),
        (b"\x80\x02coperator\nattrgetter\n.", "operator.attrgetter"),
        (
            b"\x80\x02cresnet_backbone.weights.safe_pickle\nos.system\n.",
            "resnet_backbone.weights.safe_pickle.os.system",
        ),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
    ],
)
def test_hostile_opcodes(opcodes, name, tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(opcodes)
    with raises(UnsafeCheckpointError, str(path), name):
        read_file(path)


class NestedStorage:
    """The storage of a pickled tensor, with given bytes."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


class Writer(torch.nn.Module):
    """A TorchScript module that writes a file when it is loaded."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def torchscript_writer(trace):
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Writer(str(trace))), buffer)
    return buffer.getvalue()


def tar_named_like_legacy():
    """A tar archive whose first name begins with the magic number of torch's legacy format."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT, encoding="latin1") as archive:
        archive.addfile(tarfile.TarInfo((b"\x80\x02" + LEGACY_MAGIC + b".").decode("latin1")))
    return buffer.getvalue()


@pytest.mark.parametrize("write", [write_torch, write_legacy, write_pickle])
@pytest.mark.parametrize("kind", ["torchscript", "tar", "zip"])
def test_nested_archives_are_rejected(kind, write, state, tmp_path):
    trace = tmp_path / "trace"
    if kind == "torchscript":
        nested = torchscript_writer(trace)
        torch.jit.load(io.BytesIO(nested))
        assert trace.exists(), "the archive is not hostile"
        trace.unlink()
    elif kind == "tar":
        nested = tar_named_like_legacy()
        assert nested[2:14] == LEGACY_MAGIC
    else:
        buffer = io.BytesIO()
        torch.save(torch.zeros(1), buffer)
        nested = buffer.getvalue()
    path = tmp_path / "hostile.pth"
    write({"state_dict": dict(list(state.items())[:3]), "meta": NestedStorage(nested)}, path)
    with raises(UnsafeCheckpointError, str(path), "tensor"):
        load_pretrained(ResNet(**NARROW), path)
    with raises(UnsafeCheckpointError, str(path), "tensor"):
        read_runner_file(path)
    assert not trace.exists()


def test_pickled_tensor_with_a_hostile_storage(tmp_path):
    inner = tmp_path / "inner.pth"
    trace = tmp_path / "trace"
    write_legacy({"x": Bomb(trace)}, inner)
    path = tmp_path / "outer.pkl"
    path.write_bytes(pickle.dumps({"x": NestedStorage(inner.read_bytes())}))
    with raises(UnsafeCheckpointError, str(path), "posix.system"):
        read_file(path)
    assert not trace.exists()

    path.write_bytes(pickle.dumps({"x": torch.arange(3.0)}))
    assert read_file(path)["x"].tolist() == [0, 1, 2]


def test_whole_model(tmp_path):
    path = tmp_path / "model.pth"
    model = torchvision.models.resnet18()
    # Large and not needed here.
    del model.layer3, model.layer4, model.fc
    torch.save(model, path)
    with raises(UnsafeCheckpointError, str(path), "torchvision.models.resnet.ResNet", "state_dict"):
        read_file(path)


def test_torchscript(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.rand(1, 2)).save(str(path))
    with raises(UnsafeCheckpointError, str(path), "TorchScript", "state_dict()"):
        read_file(path)


def mmengine_checkpoint(state):
    hub = MessageHub.get_instance("weights_test")
    hub.update_scalar("train/loss", 0.5)
    hub.update_scalar("train/loss", np.float64(0.25))
    hub.update_info("iter", np.int64(3))
    return {
        "meta": {
            "epoch": 12,
            "best": np.float32(0.4),
            "seed": np.int64(7),
            "dataset_meta": {"CLASSES": ("cat", "dog"), "palette": np.arange(6).reshape(2, 3)},
            "cfg": "model = dict(data_preprocessor=dict(type='DetDataPreprocessor', mean=[1.0, 2.0, 3.0], "
            "std=[4.0, 5.0, 6.0], bgr_to_rgb=False))",
        },
        "state_dict": collections.OrderedDict((f"backbone.{name}", value) for name, value in state.items()),
        "message_hub": hub.state_dict(),
        "history": HistoryBuffer([1.0, 2.0], [1, 1]),
    }


@pytest.mark.parametrize("write", [write_torch, write_legacy])
def test_mmengine_checkpoint(write, state, tmp_path):
    path = tmp_path / "epoch_12.pth"
    write(mmengine_checkpoint(state), path)
    report = load_pretrained(ResNet(**NARROW), path)
    assert report.prefix == "backbone."
    assert report.preprocessing == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), False)


def test_training_arguments_are_skipped(state, tmp_path):
    checkpoint = {
        "model": state,
        "args": argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("/x")),
        "rng": np.random.default_rng(0).bit_generator.state,
        "counts": collections.defaultdict(int, a=1),
        "dtype": np.dtype("float32"),
        "kind": torch.float16,
    }
    for write in (write_torch, write_legacy):
        write(checkpoint, tmp_path / "checkpoint.pth.tar")
        assert load_pretrained(ResNet(**NARROW), tmp_path / "checkpoint.pth.tar").loaded


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_pickles_of_every_protocol(protocol, tmp_path):
    path = tmp_path / "arrays.pkl"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.float64(2.5), "b": b"\x00\xff"}
    path.write_bytes(pickle.dumps(arrays, protocol))
    read = read_file(path)
    assert read["a"].tolist() == arrays["a"].tolist()
    assert read["s"] == 2.5


def test_safetensors(state, tmp_path):
    from safetensors.torch import save_file

    save_file(state, tmp_path / "model.safetensors")
    assert len(load_pretrained(ResNet(**NARROW), tmp_path / "model.safetensors").loaded) == 120


def _cut(path, state):
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _cut_legacy(path, state):
    write_legacy(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _cut_pickle(path, state):
    path.write_bytes(pickle.dumps({name: value.numpy() for name, value in state.items()})[:10_000])


def _convert_line_end(path, state):
    # The array then ends with the next instruction.
    array = np.frombuffer(b"1234\r\n", np.int8)
    data = pickle.dumps({**{name: value.numpy() for name, value in state.items()}, "fc.bias": array})
    path.write_bytes(data.replace(b"1234\r\n", b"1234\n"))


def _cut_safetensors(path, state):
    from safetensors.torch import save

    path.write_bytes(save(state)[:10_000])


def _zip(path, state):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights here")


BROKEN = {
    "cut.pth": (_cut, "damaged"),
    "cut_legacy.pth": (_cut_legacy, "early"),
    "cut.pkl": (_cut_pickle, "early"),
    "cut.safetensors": (_cut_safetensors, "damaged"),
    "lines.pkl": (_convert_line_end, "early"),
    "page.pth": (lambda path, state: path.write_text("\n<!DOCTYPE html><html>404</html>"), "web page"),
    "zero.pth": (lambda path, state: path.write_bytes(b""), "empty"),
    "text.pth": (lambda path, state: path.write_text("hello"), "format"),
    "pointer.pth": (lambda path, state: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "pointer.safetensors": (lambda path, state: path.write_text("version https://git-lfs.github.com/"), "Git LFS"),
    "page.safetensors": (lambda path, state: path.write_text("<html>404</html>"), "web page"),
    "archive.pth": (_zip, "torch.save"),
    "empty_dict.pth": (lambda path, state: torch.save({}, path), "tensors"),
    "empty_state.pth": (lambda path, state: torch.save({"state_dict": {}}, path), "tensors"),
    "list.pth": (lambda path, state: torch.save([1, 2], path), "tensors"),
    "tensor.pth": (lambda path, state: torch.save(torch.rand(3), path), "tensors"),
    "vit.pth": (lambda path, state: torch.save({"blocks.0.attn.qkv.weight": torch.rand(3, 3)}, path), "ResNet"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(name, state, tmp_path, snapshot):
    make, word = BROKEN[name]
    path = tmp_path / name
    make(path, state)
    backbone = ResNet(**NARROW)
    unchanged = snapshot(backbone)
    with raises(CheckpointError, str(path), word):
        load_pretrained(backbone, path)
    assert unchanged()


def test_missing_file_and_directory(tmp_path):
    with raises(CheckpointNotFoundError, str(tmp_path / "nowhere.pth"), "exist") as caught:
        load_pretrained(ResNet(**NARROW), tmp_path / "nowhere.pth")
    assert isinstance(caught.value, FileNotFoundError)
    with raises(CheckpointError, str(tmp_path), "directory", "model.safetensors"):
        load_pretrained(ResNet(**NARROW), tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"), [("file.pth/inner.pth", "Not a directory"), ("x" * 300, "File name too long")]
)
def test_unreadable_file(name, reason, tmp_path):
    (tmp_path / "file.pth").write_bytes(b"x")
    with raises(CheckpointError, str(tmp_path / name), reason):
        read_file(tmp_path / name)


def test_objects_of_protocol_0_are_not_reconstructed(tmp_path):
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps({"x": argparse.Namespace(a=1)}, protocol=0))
    assert copyreg._reconstructor.__name__ == "_reconstructor"
    assert list(read_file(path)) == ["x"]


def _text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _name(module, name):
    return _text(module) + _text(name) + b"\x93"


_ARRAY = _name("numpy._core.multiarray", "_reconstruct") + _name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
_OBJECT = _name("numpy", "dtype") + _text("O") + b"\x89\x88\x87R"
_BUFFER = _name("numpy._core.numeric", "_frombuffer")
_ATTRIBUTES = b"N}" + _text("changed") + b"K\x01s\x86b"
_SLOTS = b"K\x01\x85" + _text("C") + b"tR"

# All names are allowed, but they are misused: memory addresses from the file, modified classes.
MISUSED = {
    "array at an address": _name("numpy", "ndarray") + b"K\x01\x85" + _text("O") + b"C\x08" + bytes(8) + b"\x87R",
    "storage of an allocator": _name("torch.storage", "UntypedStorage")
    + b")}"
    + _text("device")
    + _text("cpu")
    + b"s\x92",
    "set of keywords": _name("builtins", "set") + b")}" + _text("iterable") + b"]s\x92",
    "object from bytes": _BUFFER + b"(C\x08" + bytes(8) + _OBJECT + _SLOTS,
    "view of an array": _BUFFER + b"(" + _ARRAY + _text("i1") + _SLOTS,
    "items of a list": b"]K\x01aK\x00K\x02s",
    "several items of a list": b"]K\x01a(K\x00K\x02u",
    "items of a tuple": b"K\x01\x85K\x00K\x02s",
    "appended to a bytearray": b"\x96" + struct.pack("<Q", 1) + b"xK\x01a",
    "state of a dict": b"}" + _ATTRIBUTES,
    "class": _name("collections", "Counter") + _ATTRIBUTES,
    "storage class": _name("torch", "FloatStorage") + _ATTRIBUTES,
    "function": _name("torch._utils", "_rebuild_tensor_v2") + _ATTRIBUTES,
    "call of a result": _name("collections", "OrderedDict") + b")R)R",
    "call of a string": _text("os.system") + b")R",
    "object of a string": b"(" + _text("os.system") + b"o",
    "new object of a string": _text("os.system") + b")\x81",
    "name of bytes": b"C\x02osC\x06system\x93",
    "extension 1": b"\x82\x01",
    "extension 2": b"\x83\x01\x00",
    "extension 4": b"\x84\x01\x00\x00\x00",
    "buffer from elsewhere": b"\x97",
    "read-only buffer": b"\x97\x98",
    "persistent object": b"K\x01Q",
    "persistent text": b"Pwhere\n",
    "codec": _name("_codecs", "encode") + _text("x") + _text("zlib") + b"\x86R",
    "length of a range": _name("builtins", "list") + _name("builtins", "range") + b"K\x01\x85R\x85R",
    "attribute": _name("builtins", "getattr") + _name("torch", "Tensor") + _text("__class__") + b"\x86R",
    "reconstructed": _name("copyreg", "_reconstructor")
    + _name("torch", "Tensor")
    + _name("torch", "Tensor")
    + b"N\x87R",
}


@pytest.mark.parametrize("name", MISUSED)
def test_misuse_of_allowed_names(name, tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(b"\x80\x04" + MISUSED[name] + b".")
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    assert_mentions(str(caught.value), str(path))
    for changed in (collections.Counter, torch.FloatStorage, torch._utils._rebuild_tensor_v2):
        assert not hasattr(changed, "changed")


@pytest.mark.parametrize("write", [write_torch, write_legacy])
def test_every_dtype_beside_an_unknown_object(write, tmp_path):
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in dtypes}
    codes = ("f8", "<f4", ">f4", "f2", "i8", ">i2", "?", "U4", "O")
    arrays = {code: np.array([0, 1, 1]).astype(code) for code in codes}
    write({"args": argparse.Namespace(lr=0.1), "tensors": tensors, "arrays": arrays}, tmp_path / "file.pth")
    read = read_file(tmp_path / "file.pth")
    assert read["tensors"].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read["tensors"][name].dtype is tensor.dtype
        assert torch.equal(read["tensors"][name], tensor)
    for code, array in arrays.items():
        assert read["arrays"][code].dtype == array.dtype.newbyteorder("=")
        assert read["arrays"][code].tolist() == array.tolist()

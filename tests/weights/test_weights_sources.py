"""Every kind of source, through each of the three ways to load it."""

import hashlib
import json
import os
import pickle
import resource
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import assert_mentions, raises, shake
from mmengine.model import BaseModel, BaseModule
from mmengine.model.weight_init import PretrainedInit as MMEnginePretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors.torch import save_file

from resnet_backbone import ResNet, build_backbone, load_pretrained
from resnet_backbone.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from resnet_backbone.tools.cli import main
from resnet_backbone.weights import (
    NAMED,
    CheckpointError,
    CheckpointNotFoundError,
    DownloadError,
    MismatchError,
    UnsafeCheckpointError,
    download,
    sources,
)
from resnet_backbone.weights.download import cached_path
from resnet_backbone.weights.read import read_file
from resnet_backbone.weights.sources import resolve


@pytest.fixture(scope="module")
def state():
    # Random values: the generator may be in the same state as in a test.
    return shake(ResNet(depth=18, base_channels=8)).state_dict()


@pytest.fixture
def path(tmp_path, state):
    torch.save(state, tmp_path / "model.pth")
    return str(tmp_path / "model.pth")


def ones(model):
    """A state dict of torchvision's model in full width, in little memory."""
    with torch.device("meta"):
        state = torchvision.models.get_model(model).state_dict()
    return {name: torch.ones(()).expand(value.shape) for name, value in state.items()}


@pytest.fixture(scope="module")
def full_width(tmp_path_factory):
    """The command's ``--depth`` builds a network of full width."""
    path = tmp_path_factory.mktemp("full_width") / "resnet18.pth"
    torch.save(ones("resnet18"), path)
    yield str(path)
    path.unlink()


@pytest.fixture
def asked(monkeypatch, path):
    """Replace every download by one file, and record the URLs."""
    urls = []

    def fetch(url, sha256=None, progress=True, patient=True, check=None):
        urls.append(url)
        return Path(path)

    monkeypatch.setattr(sources, "fetch", fetch)
    return urls


@pytest.fixture
def offline(monkeypatch):
    urls = []

    def fetch(url, sha256=None, progress=True, patient=True, check=None):
        urls.append(url)
        raise DownloadError(f"{url} cannot be downloaded: no network")

    monkeypatch.setattr(sources, "fetch", fetch)
    return urls


def holds(backbone, state):
    return torch.equal(backbone.conv1.weight, state["conv1.weight"])


# The three ways to load


@pytest.mark.parametrize(
    "init_cfg",
    [
        lambda path: dict(type="Pretrained", checkpoint=path),
        lambda path: [dict(type="Kaiming", layer="Conv2d"), dict(type="Pretrained", checkpoint=path, prefix=None)],
        lambda path: dict(type="Pretrained", checkpoint=path, strict=False, progress=False),
    ],
)
def test_init_cfg(init_cfg, path, state):
    backbone = build_backbone(dict(type="ResNet", depth=18, base_channels=8, init_cfg=init_cfg(path)))
    assert not holds(backbone, state)
    backbone.init_weights()
    assert holds(backbone, state)


def test_init_cfg_with_prefix(tmp_path, state):
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in state.items()}}, tmp_path / "detector.pth")
    init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "detector.pth"), prefix="backbone.")
    backbone = ResNet(depth=18, base_channels=8, init_cfg=init_cfg)
    backbone.init_weights()
    assert holds(backbone, state)


def test_pretrained(path, state):
    with pytest.warns(DeprecationWarning, match=r"\bpretrained\b.*init_cfg"):
        backbone = ResNet(depth=18, base_channels=8, pretrained=path)
    backbone.init_weights()
    assert holds(backbone, state)


def test_init_weights_with_pretrained(path, state):
    backbone = ResNet(depth=18, base_channels=8)
    backbone.init_weights(pretrained=path)
    assert holds(backbone, state)


def test_backbone_of_a_detector(path, state):
    class Detector(BaseModel):
        def __init__(self):
            super().__init__(init_cfg=dict(type="Constant", val=7, layer="Linear"))
            self.backbone = ResNet(depth=18, base_channels=8, init_cfg=dict(type="Pretrained", checkpoint=path))
            self.head = torch.nn.Linear(2, 2)

        def forward(self):
            pass

    detector = Detector()
    detector.init_weights()
    assert holds(detector.backbone, state)
    assert float(detector.head.weight[0, 0]) == 7
    assert not hasattr(detector.backbone, "_params_init_info")


def test_subclass(path, state):
    class Mine(ResNet):
        pass

    backbone = Mine(18, base_channels=8, init_cfg=dict(type="Pretrained", checkpoint=path))
    backbone.init_weights()
    assert holds(backbone, state)


@pytest.mark.parametrize("road", ["init_cfg", "pretrained"])
def test_wrong_file_raises_in_init_weights(road, path):
    backbone = ResNet(depth=50, init_cfg=dict(type="Pretrained", checkpoint=path) if road == "init_cfg" else None)
    with raises(MismatchError, path, "ResNet-18", "depth=50"):
        backbone.init_weights(**({} if road == "init_cfg" else {"pretrained": path}))


def test_other_modules_are_initialized_by_mmengine(path, tmp_path, state):
    torch.save({"linear.weight": torch.full((2, 2), 3.0)}, tmp_path / "head.pth")

    class Head(BaseModule):
        def __init__(self, **options):
            super().__init__(dict(type="Pretrained", checkpoint=str(tmp_path / "head.pth"), **options))
            self.linear = torch.nn.Linear(2, 2)

    head = Head()
    head.init_weights()
    assert float(head.linear.weight[0, 0]) == 3
    with raises(ArgumentTypeError, "Head", "strict", "sha256", "progress", "input_channels"):
        Head(strict=False).init_weights()


def test_other_modules_load_from_replacement_servers(state, asked):
    class SharedHead(BaseModule):
        """The last stage, as in mmdet's C4 detectors."""

        def __init__(self):
            super().__init__(dict(type="Pretrained", checkpoint="open-mmlab://detectron2/resnet50_caffe"))
            self.layer4 = ResNet(depth=18, base_channels=8).layer4

    head = SharedHead()
    head.init_weights()
    assert torch.equal(head.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert len(asked) == 1


def test_init_type_given_as_a_class(path, state):
    backbone = ResNet(depth=18, base_channels=8, init_cfg=dict(type=MMEnginePretrainedInit, checkpoint=path))
    backbone.init_weights()
    assert holds(backbone, state)


def test_random_numbers_are_unchanged_without_a_checkpoint():
    def initialized():
        torch.manual_seed(0)
        backbone = ResNet(depth=18, base_channels=8)
        backbone.init_weights()
        return backbone.state_dict()

    before, after = initialized(), initialized()
    assert all(torch.equal(before[name], after[name]) for name in before)


# The sources


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("torchvision://resnet50", "resnet50-0676ba61.pth"),
        ("modelzoo://resnet50", "resnet50-0676ba61.pth"),
        ("torchvision://resnet50.imagenet1k_v2", "resnet50-11ad3fa6.pth"),
        ("torchvision://ResNet50_Weights.IMAGENET1K_V2", "resnet50-11ad3fa6.pth"),
        ("torchvision://ResNet50_Weights.DEFAULT", "resnet50-11ad3fa6.pth"),
        ("torchvision://resnet18", "resnet18-f37072fd.pth"),
    ],
)
def test_torchvision(source, url, asked):
    assert resolve(source).preprocessing.bgr_to_rgb
    assert asked == [f"https://download.pytorch.org/models/{url}"]


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("torchvision://resnet51", UnknownNameError, ["'resnet51'", "'resnet50'"]),
        ("torchvision://resnet50.v9", UnknownNameError, ["'V9'", "'resnet50'", "IMAGENET1K_V1", "IMAGENET1K_V2"]),
        (
            "open-mmlab://detectron2/resnet50_cafe",
            CheckpointNotFoundError,
            ["'detectron2/resnet50_cafe'", "'detectron2/resnet50_caffe'"],
        ),
        ("mmcls://resnet51", CheckpointNotFoundError, ["'resnet51'", "'resnet50'"]),
        ("torchvison://resnet50", ArgumentError, ["source", "'torchvison://resnet50'", "http://", "torchvision://"]),
        ("hf://org", ArgumentError, ["source", "'hf://org'", "hf://ORG/REPO", "hf://ORG/REPO/FILE"]),
    ],
)
def test_unknown_names(source, error, words):
    with raises(error, *words):
        resolve(source)


def test_mmcls(asked):
    resolve("mmcls://resnet18")
    assert asked == [
        "https://download.openmmlab.com/mmclassification/v0/resnet/resnet18_8xb32_in1k_20210831-fbbb1da6.pth"
    ]


def test_schemes_that_users_register_with_mmengine(state, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme("mine://", lambda filename, map_location: {"state_dict": state})
    backbone = ResNet(depth=18, base_channels=8)
    assert load_pretrained(backbone, "mine://bucket/model.pth").origin == "mine://bucket/model.pth, by mmengine"
    assert holds(backbone, state)


def test_home_directory(tmp_path, monkeypatch, path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_pretrained(ResNet(depth=18, base_channels=8), "~/model.pth").loaded


@pytest.mark.parametrize("entry", [e for e in NAMED if e.relation == "SAME"], ids=lambda entry: entry.name)
def test_unavailable_name_with_the_same_weights_elsewhere(entry, asked):
    resolved = resolve(f"open-mmlab://{entry.name}")
    assert asked == [entry.source]
    assert (resolved.preprocessing, resolved.style) == (entry.preprocessing, entry.style)
    # The URL of the name leads to the same source.
    assert resolve(entry.original).path == resolved.path


@pytest.mark.parametrize("entry", [e for e in NAMED if e.relation != "SAME"], ids=lambda entry: entry.name)
def test_unavailable_name_is_rejected_with_a_suggestion(entry, offline):
    with raises(CheckpointNotFoundError, entry.source, str(cached_path(entry.original))):
        resolve(entry.original)
    # The server is tried, in case it is back; weights of another training are not.
    assert offline == [entry.original]


def test_cached_openmmlab_file_is_preferred(offline, hub_dir, state, monkeypatch):
    entry = next(entry for entry in NAMED if entry.name == "detectron2/resnet50_caffe")
    cached = hub_dir / Path(entry.original).name
    hub_dir.mkdir(parents=True)
    cached.write_bytes(b"x")
    monkeypatch.setattr(sources, "matches_hash", lambda path, digest: digest == "5891d200")
    resolved = resolve("openmmlab://detectron2/resnet50_caffe")
    assert resolved.path == cached
    assert resolved.style == "caffe"
    assert not offline


def test_openmmlab_file_is_recognized_by_its_name(tmp_path):
    resolved = resolve(tmp_path / "resnet50_msra-5891d200.pth")
    assert resolved.style == "caffe"
    assert resolved.preprocessing.std == (1.0, 1.0, 1.0)


def test_names_of_the_user_take_precedence(asked, tmp_path, monkeypatch):
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path))
    (tmp_path / "open_mmlab.json").write_text(json.dumps({"resnext101_64x4d": "https://example.com/mirror.pth"}))
    resolve("open-mmlab://resnext101_64x4d")
    assert asked == ["https://example.com/mirror.pth"]


def test_table_is_consistent():
    names = [entry.name for entry in NAMED]
    assert len(set(names)) == len(names)
    for entry in NAMED:
        assert entry.original.startswith("https://download.openmmlab.com/")
        assert entry.relation in ("SAME", "RETRAINED", "NONE")
        # The source must not be the server itself.
        assert "openmmlab.com" not in entry.source
        assert len(entry.preprocessing.mean) == len(entry.preprocessing.std) == 3


def test_table_has_all_names_of_mmdet_resnet_configs():
    used = {
        *("detectron2/resnet50_caffe", "detectron2/resnet101_caffe", "detectron2/resnext101_32x8d"),
        *("detectron/resnet50_caffe", "detectron/resnet101_caffe", "detectron/resnet50_gn", "detectron/resnet101_gn"),
        *("contrib/resnet50_gn", "jhu/resnet50_gn_ws", "jhu/resnet101_gn_ws"),
        *("jhu/resnext50_32x4d_gn_ws", "jhu/resnext101_32x4d_gn_ws", "resnext101_32x4d", "resnext101_64x4d"),
        *("regnetx_400mf", "regnetx_800mf", "regnetx_1.6gf", "regnetx_3.2gf", "regnetx_4.0gf", "regnetx_6.4gf"),
        *("regnetx_8.0gf", "regnetx_12gf", "resnest50", "resnest101", "res2net101_v1d_26w_4s"),
    }
    assert used <= {entry.name for entry in NAMED}


# The hub


@pytest.fixture
def repository(monkeypatch, tmp_path, state):
    """A replacement for the hub, with requested names and files."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    files = {}
    calls = []

    def download(filename, repo_id, revision):
        calls.append((repo_id, revision, filename))
        if filename not in files:
            raise EntryNotFoundError(f"no {filename}")
        return str(files[filename])

    class Api:
        def list_repo_files(self, repo_id, revision):
            return list(files)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)

    def add(name, content=None):
        files[name] = tmp_path / name
        files[name].write_text(json.dumps(content)) if content else torch.save(state, files[name])
        return calls

    return add


def test_timm_from_the_hub(repository, state):
    from safetensors.torch import save_file

    calls = repository("config.json", {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}})
    repository("model.safetensors")
    save_file(state, resolve("timm://resnet18.a1_in1k").path)
    report = load_pretrained(ResNet(depth=18, base_channels=8), "timm://resnet18.a1_in1k")
    assert ("timm/resnet18.a1_in1k", None, "model.safetensors") in calls
    assert report.preprocessing == ((127.5, 127.5, 127.5), (63.75, 63.75, 63.75), True)


def test_timm_without_a_tag_uses_the_default(repository):
    calls = repository("model.safetensors")
    resolve("timm://resnet50d")
    assert calls[0][0].startswith("timm/resnet50d.")


def test_hf(repository):
    calls = repository("weights.pth")
    resolve("hf://org/repo@v1/weights.pth")
    assert calls[0] == ("org/repo", "v1", "weights.pth")
    assert resolve("hf://org/repo").path.name == "weights.pth"


def test_hf_with_several_files(repository):
    repository("a.pth")
    repository("b.pth")
    with raises(CheckpointNotFoundError, "org/repo", "a.pth", "b.pth", "hf://org/repo/FILE"):
        resolve("hf://org/repo")
    with raises(CheckpointNotFoundError, "c.pth", "org/repo"):
        resolve("hf://org/repo/c.pth")


PROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.1], "do_normalize": True}


@pytest.mark.parametrize(
    ("changes", "mean", "std"),
    [
        ({}, (127.5, 102.0, 76.5), (63.75, 51.0, 25.5)),
        ({"rescale_factor": 1 / 127.5}, (63.75, 51.0, 38.25), (31.875, 25.5, 12.75)),
        ({"do_rescale": False}, (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)),
        # RT-DETR's: images are rescaled alone.
        ({"do_normalize": False}, (0, 0, 0), (255, 255, 255)),
        ({"image_mean": [float("nan")] * 3}, None, None),
        ({"image_mean": "0.5"}, None, None),
        ({"rescale_factor": 0}, None, None),
    ],
)
def test_transformers_image_processor(changes, mean, std, repository, tmp_path, state):
    repository("model.safetensors")
    repository("preprocessor_config.json", {**PROCESSOR, **changes})
    save_file(state, tmp_path / "model.safetensors")
    expected = None if mean is None else (mean, std, True)
    for source in ("hf://org/repo", tmp_path, tmp_path / "model.safetensors"):
        assert resolve(source).preprocessing == expected
    assert resolve(tmp_path / "other.pth").preprocessing is None


def test_missing_hub_client(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with raises(CheckpointError, "org/repo", "pip install huggingface_hub safetensors"):
        resolve("hf://org/repo")
    assert download.timm_repository("resnet50.a1_in1k") == "timm/resnet50.a1_in1k"


# mmengine's loaders


class Petrel:
    """A replacement for the client of the object store."""

    def __init__(self, content):
        self.content = content

    def get(self, uri):
        assert uri.endswith("s3://bucket/model.pth")
        return self.content


@pytest.mark.parametrize("source", ["s3://bucket/model.pth", "cluster:s3://bucket/model.pth"])
def test_object_store(source, path, state, monkeypatch):
    content = Path(path).read_bytes()
    monkeypatch.setattr(sources, "get_file_backend", lambda uri, backend_args: Petrel(content))
    backbone = ResNet(depth=18, base_channels=8)
    load_pretrained(backbone, source, sha256=hashlib.sha256(content).hexdigest())
    assert holds(backbone, state)
    with raises(CheckpointError, "model.pth", "SHA-256", "12345678"):
        load_pretrained(backbone, source, sha256="12345678")


class Calls:
    def __reduce__(self):
        return print, ("hostile",)


def test_object_store_runs_no_code(monkeypatch, capsys):
    monkeypatch.setattr(sources, "get_file_backend", lambda uri, backend_args: Petrel(pickle.dumps(Calls())))
    with pytest.raises(UnsafeCheckpointError):
        load_pretrained(ResNet(depth=18, base_channels=8), "s3://bucket/model.pth")
    assert "hostile" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("s3://bucket/model.pth", "petrel_client"),
        ("petrel://bucket/model.pth", "petrel_client"),
        ("pavi://model.pth", "pavi"),
    ],
)
def test_missing_client_is_named(source, package):
    with raises(CheckpointError, source, package):
        resolve(source)


def test_failing_client(monkeypatch):
    def refuse(uri, backend_args):
        raise KeyError("credentials")

    monkeypatch.setattr(sources, "get_file_backend", refuse)
    with raises(DownloadError, "s3://bucket/model.pth", "credentials"):
        resolve("s3://bucket/model.pth")


def test_hash_with_a_custom_loader(state, monkeypatch):
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
    CheckpointLoader.register_scheme("mine://", lambda filename, map_location: {"state_dict": state})
    with raises(ArgumentError, "sha256", "'mine://bucket/model.pth'"):
        load_pretrained(ResNet(depth=18, base_channels=8), "mine://bucket/model.pth", sha256="12345678")


# Names, paths and caches


@pytest.mark.parametrize(("name", "rgb"), [("MSRA/R-50.pkl", False), ("torchvision/R-50.pkl", True)])
def test_detectron2(name, rgb, asked):
    assert resolve(f"detectron2://ImageNetPretrained/{name}").preprocessing.bgr_to_rgb is rgb
    assert asked == [f"https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/{name}"]


def test_detectron2_catalog(asked):
    # Caffe2's weights, which are not those of the same name under detectron2://.
    assert resolve("catalog://ImageNetPretrained/MSRA/R-50").preprocessing.bgr_to_rgb is False
    assert asked == ["https://dl.fbaipublicfiles.com/detectron/ImageNetPretrained/MSRA/R-50.pkl"]
    # detectron2's own release of this network takes a standard deviation of its own.
    assert resolve("catalog://ImageNetPretrained/FAIR/X-101-32x8d").preprocessing.std == (1, 1, 1)
    with raises(UnknownNameError, "'ImageNetPretrained/MSRA/R-51'", "'ImageNetPretrained/MSRA/R-50'"):
        resolve("catalog://ImageNetPretrained/MSRA/R-51")


@pytest.mark.parametrize(
    "source", ["~nosuchuser/model.pth", "no\0thing.pth", b"no\xffthing.pth", "\x1b[2J.pth", "x" * 300]
)
def test_missing_paths(source, capsys):
    with pytest.raises(CheckpointError):
        load_pretrained(ResNet(depth=18, base_channels=8), os.fsdecode(source))
    assert main(["weights", os.fsdecode(source)]) == 1
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("source", ["http://[", "https://[::1/model.pth"])
def test_invalid_urls(source):
    with raises(ArgumentError, "source", repr(source), "URL"):
        resolve(source)


@pytest.mark.parametrize("name", [b"mod\xe8le.pth", b"weights\x1b[2J.pth"])
def test_file_names_are_escaped(name, tmp_path, state, capsys):
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    with open(path, "wb") as file:
        torch.save(state, file)
    report = load_pretrained(ResNet(depth=18, base_channels=8), path)
    assert report.loaded
    assert str(report).isascii()
    assert "\x1b" not in report.summary()
    assert main(["weights", path]) == 0
    capsys.readouterr()
    for suffix in ("pth", "safetensors"):
        assert main(["convert", path, str(tmp_path / f"out.{suffix}")]) == 0


def test_unreadable_file(path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources, "matches_hash", forbidden)
    with raises(CheckpointError, path, "Permission denied"):
        load_pretrained(ResNet(depth=18, base_channels=8), path, sha256="12345678")


def test_damaged_cached_file_is_named(hub_dir):
    url = "https://example.com/model.pth"
    cached = cached_path(url)
    hub_dir.mkdir(parents=True)
    cached.write_bytes(b"PK\x03\x04 cut off")
    with raises(CheckpointError, str(cached), "Delete"):
        load_pretrained(ResNet(depth=18, base_channels=8), url)


def test_downloads_without_a_hash_are_read_before_caching(monkeypatch):
    checks = []
    monkeypatch.setattr(sources, "fetch", lambda *_, check, **__: checks.append(check) or Path("x"))
    resolve("https://example.com/model.pth")
    assert checks == [read_file]


# Several files


def shards(folder, state, suffix):
    names = list(state)
    parts = {"model-1-of-2": names[:50], "model-2-of-2": names[50:]}
    for part, keys in parts.items():
        tensors = {key: state[key].contiguous() for key in keys}
        if suffix == "safetensors":
            save_file(tensors, folder / f"{part}.{suffix}", metadata={"format": "pt"})
        else:
            torch.save(tensors, folder / f"{part}.{suffix}")
    name = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = folder / f"{name}.index.json"
    index.write_text(
        json.dumps({"weight_map": {key: f"{part}.{suffix}" for part, keys in parts.items() for key in keys}})
    )
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_all_shards_are_loaded(suffix, tmp_path, state):
    index = shards(tmp_path, state, suffix)
    for source in (index, tmp_path):
        backbone = ResNet(depth=18, base_channels=8)
        assert len(load_pretrained(backbone, source).loaded) == len(state)
        assert torch.equal(backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    with raises(ArgumentError, str(index), "sha256='12345678'"):
        load_pretrained(backbone, index, sha256="12345678")
    (tmp_path / f"model-2-of-2.{suffix}").unlink()
    with raises(CheckpointNotFoundError, str(tmp_path / f"model-2-of-2.{suffix}")):
        load_pretrained(backbone, index)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": 3}',
        '{"weight_map": {"a": 3}}',
        "[" * 100_000,
        '{"weight_map": {"a": "../x.bin"}}',
        '{"weight_map": {"a": "x.bin"}}' + " " * 5_000_000,
        # Integers that collide take minutes to hash.
        json.dumps({"weight_map": {str(number): number * (2**61 - 1) for number in range(80_000)}}),
    ]
    + [f'{{"weight_map": {{"a": {json.dumps(name)}}}}}' for name in ("/etc/passwd", "..", "", "a\\b")],
)
def test_invalid_index(content, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with raises(CheckpointError, str(index)):
        load_pretrained(ResNet(depth=18, base_channels=8), index)


def test_folders(tmp_path, state):
    with raises(CheckpointError, str(tmp_path), "directory", "model.safetensors", "pytorch_model.bin"):
        load_pretrained(ResNet(depth=18, base_channels=8), tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert load_pretrained(ResNet(depth=18, base_channels=8), tmp_path).loaded


def test_distributed_checkpoint_is_named(tmp_path):
    # What torch.distributed.checkpoint writes.
    (tmp_path / ".metadata").touch()
    (tmp_path / "__0_0.distcp").touch()
    with raises(CheckpointError, f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {tmp_path} FILE"):
        load_pretrained(ResNet(depth=18, base_channels=8), tmp_path)


def test_hub_repository_of_shards(repository, tmp_path, state):
    calls = repository("model-1-of-2.safetensors")
    repository("model-2-of-2.safetensors")
    repository("model.safetensors.index.json", {"weight_map": {}})
    shards(tmp_path, state, "safetensors")
    assert load_pretrained(ResNet(depth=18, base_channels=8), "hf://org/repo").loaded
    assert {name for _, _, name in calls} >= {"model-1-of-2.safetensors", "model-2-of-2.safetensors"}


# The command


def test_command_prints_the_report(full_width, capsys):
    assert main(["weights", full_width, "--depth", "18"]) == 0
    assert_mentions(capsys.readouterr().out, "loaded", "120 tensors")
    assert main(["weights", full_width]) == 0


def test_command_reports_mismatches(full_width, capsys):
    assert main(["weights", full_width, "--depth", "50"]) == 1
    assert_mentions(capsys.readouterr().err, full_width, "ResNet-18", "depth=50")
    assert main(["weights", full_width, "--depth", "34", "--no-strict"]) == 0
    assert "missing" in capsys.readouterr().out


def test_command_builds_no_network_larger_than_the_file(tmp_path, capsys):
    names = [f"layer{stage}.{block}.conv1.weight" for stage in (1, 2, 3, 4) for block in (0, 1)]
    state = {**dict.fromkeys(names, torch.zeros(3000, 1, 3, 3)), "layer1.0.bn1.running_var": torch.ones(1)}
    torch.save(state, tmp_path / "model.pth")
    assert main(["weights", str(tmp_path / "model.pth")]) == 1
    assert "without most of its tensors" in capsys.readouterr().err


def test_command_with_a_config(path, tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "backbone = dict(type='ResNet', depth=18, base_channels=8, init_cfg=dict(type='Pretrained', checkpoint='x'))"
    )
    assert main(["weights", path, "--config", str(config)]) == 0
    config.write_text("model = dict(neck=dict(type='FPN'))")
    assert main(["weights", path, "--config", str(config)]) == 1
    assert_mentions(capsys.readouterr().err, repr(str(config)), "model.backbone", "backbone")


def test_command_lists_the_table(capsys):
    assert main(["weights", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(entry.name in out and entry.source in out for entry in NAMED)
    assert main(["weights"]) == 1


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_convert(suffix, tmp_path, capsys, state):
    source = tmp_path / "detector.pth"
    torch.save({"state_dict": {f"module.encoder_q.{name}": value for name, value in state.items()}}, source)
    out = tmp_path / f"ours.{suffix}"
    assert main(["convert", str(source), str(out)]) == 0
    assert str(out) in capsys.readouterr().out.splitlines()[-1]
    backbone = ResNet(depth=18, base_channels=8)
    report = load_pretrained(backbone, out)
    assert holds(backbone, state)
    assert not report.renamed
    assert not report.unused
    assert report.preprocessing.bgr_to_rgb
    meta = read_file(out)["meta" if suffix == "pth" else "__metadata__"]["resnet_backbone"]
    meta = meta if suffix == "pth" else json.loads(meta)
    assert meta["format"] == "MoCo"
    assert len(meta["sha256"]) == 64
    assert not list(tmp_path.glob("*.part"))


def test_convert_keeps_caffe_preprocessing(tmp_path):
    from test_weights_fit import caffe_file

    assert main(["convert", str(caffe_file(tmp_path)), str(tmp_path / "ours.pth")]) == 0
    report = load_pretrained(ResNet(depth=50, base_channels=8), tmp_path / "ours.pth")
    assert report.style == "caffe"
    assert report.preprocessing.bgr_to_rgb is False
    assert report.warnings


def test_convert_rejects(path, tmp_path, capsys):
    assert main(["convert", path, str(tmp_path / "out.txt")]) == 1
    assert_mentions(capsys.readouterr().err, "OUT", repr(str(tmp_path / "out.txt")), ".safetensors", ".pth")
    torch.save(ones("resnext50_32x4d"), tmp_path / "x.pth")
    assert main(["convert", str(tmp_path / "x.pth"), str(tmp_path / "out.pth")]) == 1
    assert_mentions(capsys.readouterr().err, str(tmp_path / "x.pth"), "ResNeXt-50 32x4d", "--config")
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_convert_writes_no_tokens(suffix, path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "fetch", lambda *_, **__: Path(path))
    out = tmp_path / f"out.{suffix}"
    assert main(["convert", "https://user:secret@example.com/model.pth?token=secret#secret", str(out)]) == 0
    assert b"secret" not in out.read_bytes()
    assert b"example.com/model.pth" in out.read_bytes()
    assert "secret" not in capsys.readouterr().out


def test_convert_on_a_full_disk(path, tmp_path, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for suffix in ("pth", "safetensors"):
            assert main(["convert", path, str(tmp_path / f"out.{suffix}")]) == 1
            assert_mentions(capsys.readouterr().err, "OUT", repr(str(tmp_path / f"out.{suffix}")))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("out*"))


def test_convert_rejects_invalid_outputs(path, tmp_path, capsys, monkeypatch):
    (tmp_path / "folder.pth").mkdir()
    for out in ("no/out.pth", "folder.pth"):
        assert main(["convert", str(path), str(tmp_path / out)]) == 1
        assert_mentions(capsys.readouterr().err, "OUT", repr(str(tmp_path / out)), "file", "folder")

    def full(*_):
        raise RuntimeError("file write failed")

    monkeypatch.setattr(torch, "save", full)
    assert main(["convert", str(path), str(tmp_path / "out.pth")]) == 1
    assert_mentions(capsys.readouterr().err, "OUT", repr(str(tmp_path / "out.pth")), "file write failed")
    assert not list(tmp_path.glob("out.pth*"))


# Real downloads


@pytest.mark.network
@pytest.mark.parametrize(
    ("source", "cfg"),
    [
        ("torchvision://resnet18", dict(depth=18)),
        ("torchvision://ResNet50_Weights.IMAGENET1K_V2", dict(depth=50)),
        ("timm://resnet18d.ra2_in1k", dict(type="ResNetV1d", depth=18)),
        ("timm://resnet50_gn.a1h_in1k", dict(depth=50, norm_cfg=dict(type="GN", num_groups=32))),
        ("open-mmlab://detectron2/resnet50_caffe", dict(depth=50, style="caffe")),
        ("open-mmlab://detectron/resnet50_caffe", dict(depth=50, style="caffe")),
        ("open-mmlab://detectron2/resnet101_caffe", dict(depth=101, style="caffe")),
        ("open-mmlab://detectron/resnet50_gn", dict(depth=50, norm_cfg=dict(type="GN", num_groups=32))),
    ],
)
def test_real_download(source, cfg):
    backbone = build_backbone({"type": "ResNet", **cfg})
    report = load_pretrained(backbone, source)
    assert not report.missing
    assert not report.warnings
    levels = backbone.eval()(torch.rand(1, 3, 64, 64))
    assert all(torch.isfinite(level).all() for level in levels)


@pytest.mark.network
@pytest.mark.parametrize("entry", [e for e in NAMED if e.relation == "SAME"], ids=lambda entry: entry.name)
def test_named_source_responds(entry):
    import urllib.request

    request = urllib.request.Request(entry.source, method="HEAD")
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 1_000_000

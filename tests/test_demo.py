import numpy as np
import pytest
import torch
from helpers import assert_mentions, assert_same_bits, shake

pytest.importorskip("matplotlib", reason="the demo draws with it")

from matplotlib.image import imread
from matplotlib.text import Text
from PIL import Image

from resnet_backbone import ResNet
from resnet_backbone.errors import DownloadError
from resnet_backbone.tools import features
from resnet_backbone.tools.cli import main
from resnet_backbone.tools.features import Level, draw_feature_pyramid, load_photograph
from resnet_backbone.weights import sources


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def offline(monkeypatch):
    def fetch(url, *_args, **_kwargs):
        raise DownloadError(f"{url} cannot be fetched: Name or service not known")

    monkeypatch.setattr(sources, "fetch", fetch)


def test_demo_uses_random_weights_offline(offline, photo, tmp_path, capfd):
    out = tmp_path / "out.png"
    assert main(["demo", "--image", photo, "--out", str(out)]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    first, *table = printed.out.splitlines()
    assert_mentions(first, "resnet18-f37072fd.pth", "Name or service not known", "random weights")
    for name, shape in [("layer1", "(1, 64, 10, 16)"), ("layer4", "(1, 512, 2, 2)")]:
        assert any(name in line and shape in line for line in table)
    assert table[-1] == f"Picture: {out}"
    assert len(table) == 6
    assert imread(out).shape[1] >= 900


def test_fetched_weights_are_used(photo, tmp_path, monkeypatch, capfd):
    source = shake(ResNet(18))
    file = tmp_path / "resnet18.pth"
    torch.save(dict(source.state_dict(), **{"fc.weight": torch.zeros(1)}), file)
    monkeypatch.setattr(sources, "fetch", lambda *_args, **_kwargs: file)
    used = []
    extract = features.extract
    monkeypatch.setattr(features, "extract", lambda backbone, *rest: used.append(backbone) or extract(backbone, *rest))
    assert main(["demo", "--image", photo, "--out", str(tmp_path / "out.png")]) == 0
    assert_same_bits(used[0].state_dict().values(), source.state_dict().values())
    assert "random" not in capfd.readouterr().out


def test_default_photograph_is_grace_hopper():
    photo = load_photograph(None)
    assert photo.shape == (600, 512, 3)
    assert photo.dtype == torch.uint8


def test_photographs_are_rotated_and_resized(tmp_path):
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("L", (3000, 1500)).save(path, exif=exif)
    assert load_photograph(str(path)).shape == (1024, 512, 3)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.jpg", None, ["exist"]),
        ("text.jpg", b"hello", ["photograph"]),
        ("empty.png", b"", ["photograph"]),
        (
            "cut.png",
            b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x01\x00\x00\x00\x01\x00\x08\x02\x00\x00\x00",
            ["photograph"],
        ),
    ],
)
def test_unreadable_image_is_rejected(name, content, words, tmp_path, capsys):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert main(["demo", "--image", str(path), "--out", str(tmp_path / "out.png")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert_mentions(printed.err, "image", repr(str(path)), *words)


@pytest.mark.parametrize(("out", "words"), [("out.xyz", ".png"), ("missing/out.png", "folder")])
def test_invalid_output_path_is_rejected_before_computing(out, words, tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / out)]) == 1
    error = capsys.readouterr().err
    assert_mentions(error, "out", repr(str(tmp_path / out)), words)


def test_strongest_channels_come_first_and_ties_keep_their_order():
    maps = np.array([1.0, 3.0, 2.0, 3.0]).reshape(4, 1, 1)
    figure = draw_feature_pyramid(np.zeros((4, 4, 3), np.uint8), [Level("layer1", 4, maps)], "", "", num_channels=3)
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["1", "3", "2", "0"]


@pytest.mark.parametrize("size", [(30, 90), (90, 30), (1, 1)])
def test_draws_photographs_of_any_shape(size):
    height, width = size
    photo = np.zeros((height, width, 3), np.uint8)
    levels = [
        Level(
            f"layer{i}", stride, np.random.default_rng(i).random((channels, -(-height // stride), -(-width // stride)))
        )
        for i, (stride, channels) in enumerate([(4, 8), (8, 3)], start=1)
    ]
    figure = draw_feature_pyramid(photo, levels, "Title", "a fact")
    texts = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "Title" in texts
    assert "a fact" in texts
    for level in levels:
        channels, rows, columns = level.features.shape
        assert (
            f"{level.name}\nstride {level.stride}\n{columns} \N{MULTIPLICATION SIGN} {rows}\n{channels} channels"
            in texts
        )
    # The photograph, and for each level its energy and the same number of channels, in two rows.
    assert len(figure.axes) == 1 + len(levels) * (1 + 4)

"""``resnet-backbone features``: backbones, preprocessing of images, and the figure."""

import io
import os

import numpy as np
import pytest
import torch
from helpers import assert_mentions, assert_same_bits, raises, shake

pytest.importorskip("matplotlib", reason="the figure is drawn with it")

from matplotlib.image import imread
from matplotlib.text import Text
from PIL import Image

from resnet_backbone import ResNet
from resnet_backbone.errors import ArgumentError
from resnet_backbone.tools import features
from resnet_backbone.tools.cli import main
from resnet_backbone.tools.features import Level, draw_feature_pyramid
from resnet_backbone.weights.preprocessing import IMAGENET_RGB, MSRA_BGR

BGR = "model = dict(data_preprocessor=dict(mean=[103.53, 116.28, 123.675], std=[1, 1, 1], bgr_to_rgb=False))"


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(path)
    return str(path)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "model = dict(backbone=dict(type='ResNet', depth=18, base_channels=4, out_indices=(1, 3),"
        "init_cfg=dict(type='Pretrained', checkpoint='missing.pth')))"
    )
    return str(path)


@pytest.fixture
def drawn(monkeypatch):
    """The drawn levels, title and subtitle."""
    calls = []

    def draw(photo, levels, title, subtitle):
        calls.append((levels, title, subtitle))
        return draw_feature_pyramid(photo, levels, title, subtitle)

    monkeypatch.setattr(features, "draw_feature_pyramid", draw)
    return calls


def levels_of(backbone, photo, preprocessing):
    pixels = features.load_photograph(photo)
    return [level[0].numpy() for level in features.extract(backbone.eval(), pixels, preprocessing)]


def test_random_weights_are_reported(photo, config, drawn, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert main(["features", photo, "--config", config, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"Picture: {out}"
    assert "(1, 8, 5, 8)" in printed
    ((levels, title, subtitle),) = drawn
    assert title == "Feature pyramid of ResNet-18"
    assert subtitle == "64 \N{MULTIPLICATION SIGN} 40 pixels, random weights, seed 0"
    assert [(level.name, level.stride, level.features.shape) for level in levels] == [
        ("layer2", 8, (8, 5, 8)),
        ("layer4", 32, (32, 2, 2)),
    ]
    assert imread(out).shape[1] >= 900
    # Deterministic.
    torch.manual_seed(123)
    assert main(["features", photo, "--config", config, "--out", str(out)]) == 0
    for first, second in zip(levels, drawn[1][0]):
        np.testing.assert_array_equal(first.features, second.features)


def test_images_are_normalised_as_the_weights_expect(photo, drawn, tmp_path, capsys):
    source = shake(ResNet(18, base_channels=4))
    file = tmp_path / "epoch_12.pth"
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": state, "meta": {"cfg": BGR}}, file)
    assert main(["features", photo, "--weights", str(file), "--out", str(tmp_path / "out.png")]) == 0
    assert_mentions(capsys.readouterr().out.splitlines()[0], "ResNet-18")
    ((levels, _, subtitle),) = drawn
    assert subtitle.endswith(f"pixels, weights {file}, BGR images")
    expected, other = (levels_of(source, photo, preprocessing) for preprocessing in (MSRA_BGR, IMAGENET_RGB))
    for level, features_expected, features_other in zip(levels, expected, other):
        np.testing.assert_array_equal(level.features, features_expected)
        assert not np.allclose(level.features, features_other)


def test_rgb_is_assumed_without_preprocessing_in_the_weights(photo, drawn, tmp_path, capsys):
    source = shake(ResNet(18, base_channels=4))
    file = tmp_path / "mine.pth"
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in source.state_dict().items()}}, file)
    assert main(["features", photo, "--weights", str(file), "--out", str(tmp_path / "out.png")]) == 0
    assert_mentions(capsys.readouterr().out, "preprocessing", "unknown", "torchvision")
    assert drawn[0][2].endswith("RGB images")
    assert_same_bits(
        [torch.from_numpy(level.features) for level in drawn[0][0]],
        [torch.from_numpy(level) for level in levels_of(source, photo, IMAGENET_RGB)],
    )


@pytest.mark.parametrize(
    ("preprocessing", "order"), [(IMAGENET_RGB, (0, 1, 2)), (MSRA_BGR, (2, 1, 0))], ids=["RGB", "BGR"]
)
def test_images_are_normalised_in_the_weights_order(preprocessing, order):
    pixel = (10.0, 127.0, 255.0)
    seen = []
    features.extract(lambda x: seen.append(x) or (x,), torch.tensor([[pixel]], dtype=torch.uint8), preprocessing)
    expected = [(pixel[c] - mean) / std for c, mean, std in zip(order, preprocessing.mean, preprocessing.std)]
    torch.testing.assert_close(seen[0], torch.tensor(expected).reshape(1, 3, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.jpg"], ["image", "'missing.jpg'", "exist"]),
        (["{config}"], ["image", "{config}", "photograph"]),
        (["{photo}", "--depth", "51"], ["depth", "51", "18, 34, 50, 101, 152"]),
        (["{photo}", "--config", "missing.py"], ["config", "'missing.py'", "file"]),
        (["{photo}", "--config", "{neck}"], ["config", "{neck}", "model.backbone", "type"]),
        (["{photo}", "--config", "{signals}"], ["backbone", "(N, 3, H, W)", "ResNet", "1"]),
        (["{photo}", "--config", "{gray}"], ["backbone", "(N, 3, H, W)", "ResNet", "in_channels=1"]),
        (["{photo}", "--config", "{other}"], ["backbone", "ResNet", "Conv2d"]),
        (["{photo}", "--weights", "missing.pth"], ["missing.pth", "exist"]),
        (["{photo}", "--out", "out.xyz"], ["out", "'out.xyz'", ".png"]),
    ],
)
def test_invalid_arguments_are_named(arguments, words, photo, config, tmp_path, capsys):
    files = {
        "neck": "model = dict(neck=dict(type='FPN'))",
        "signals": "backbone = dict(type='ResNet', depth=18, conv_cfg=dict(type='Conv1d'), norm_cfg=dict(type='BN1d'))",
        "gray": "backbone = dict(type='ResNet', depth=18, base_channels=4, in_channels=1)",
        "other": "import torch\nbackbone = dict(type=torch.nn.Conv2d, in_channels=3, out_channels=4, kernel_size=1)",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    paths = {name: tmp_path / f"{name}.py" for name in files} | {"photo": photo, "config": config}
    out = tmp_path / "out.png"
    command = ["features", "--out", str(out), *(argument.format(**paths) for argument in arguments)]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert_mentions(error, *(word.format(**paths) for word in words))
    assert error.startswith("resnet-backbone features: ")
    assert len(error.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("mode", [np.uint16, np.int32])
def test_16_bit_images_are_scaled(mode, tmp_path):
    gray = np.arange(256).reshape(8, 32)
    Image.fromarray((gray * 257).astype(mode)).save(tmp_path / "deep.tiff")
    read = features.load_photograph(str(tmp_path / "deep.tiff"))
    assert torch.equal(read, torch.from_numpy(gray).to(torch.uint8)[..., None].expand(-1, -1, 3))


def test_named_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with raises(ArgumentError, "image", repr(str(tmp_path / "pipe.jpg")), "pipe", "socket", "device"):
        features.load_photograph(str(tmp_path / "pipe.jpg"))


def test_formats_that_run_programs_are_not_photographs(tmp_path):
    # Pillow reads these with Ghostscript.
    (tmp_path / "x.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with raises(ArgumentError, "image", "JPEG", str(tmp_path / "x.jpg")):
        features.load_photograph(str(tmp_path / "x.jpg"))


@pytest.mark.parametrize(
    ("size", "count"), [((90, 30), 2), ((30, 90), 4), ((64, 64), 1), ((900, 60), 4), ((40, 1000), 4)]
)
def test_figure_shows_levels_and_titles(size, count):
    height, width = size
    levels = [
        Level(f"layer{i}", 4, np.random.default_rng(i).random((16, -(-height // 4), -(-width // 4))))
        for i in range(1, count + 1)
    ]
    figure = draw_feature_pyramid(np.zeros((height, width, 3), np.uint8), levels, "ResNet-152", "a" * 90)
    figure.savefig(io.BytesIO())
    boxes = [text.get_window_extent() for text in figure.findobj(Text) if text.get_text()]
    assert len(boxes) >= 2 + count
    for box in [*boxes, *(axes.bbox for axes in figure.axes)]:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1

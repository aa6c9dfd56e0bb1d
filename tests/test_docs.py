"""The Python blocks, examples and commands in README and docs run."""

import importlib.util
import re
import shlex
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from torchvision.models import get_model

from resnet_backbone.tools.cli import _parser
from resnet_backbone.weights import sources

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Blocks in lists are indented.
BLOCK = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`resnet-backbone ([^`.]+)`|`((?:info|features|weights|convert) [^`]+)`")


def blocks(language):
    for page in PAGES:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            line = text[: found.start()].count("\n") + 2
            if found[2] == language:
                yield pytest.param(page, line, dedent(found[3]), id=f"{page.relative_to(ROOT)}:{line}")


def commands():
    """The ``resnet-backbone`` commands in shell blocks, text and tables."""
    for page in PAGES:
        yield from (found[1] or found[2] for found in INLINE.finditer(page.read_text()))
    for block in blocks("sh"):
        for command in re.split(r"\n|&&", block.values[2].replace("\\\n", " ")):
            if command.strip().startswith("resnet-backbone "):
                yield command.strip().removeprefix("resnet-backbone ")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_code_block_has_a_known_language(page):
    found = list(BLOCK.finditer(page.read_text()))
    assert {block[2] for block in found} <= {"python", "sh", "text"}
    assert 2 * len(found) == page.read_text().count("```")


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_command_has_these_options(command):
    # Exits if an option does not exist.
    _parser().parse_args(shlex.split(command))


def test_extras_exist():
    (section,) = re.findall(
        r"\[project\.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    shown = {
        name
        for page in PAGES
        for names in re.findall(r'"\.\[([\w,]+)\]"', page.read_text())
        for name in names.split(",")
    }
    assert {"lite", "test", "docs"} <= shown
    assert shown <= set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Replace downloads from torchvision's server by files of the same shapes."""

    def fetch(url, *_, **__):
        path = tmp_path / url.rpartition("/")[2]
        with torch.device("meta"):
            state = get_model(path.name.partition("-")[0], weights=None).state_dict()
        torch.save({name: torch.ones(value.shape) for name, value in state.items()}, path)
        return path

    monkeypatch.setattr(sources, "fetch", fetch)


@pytest.mark.usefixtures("downloads")
@pytest.mark.parametrize(("page", "line", "code"), list(blocks("python")))
def test_code_block_runs(page, line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Line numbers in a traceback are those of the page.
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), {"__name__": "__main__"})


def example(name):
    spec = importlib.util.spec_from_file_location(f"{name}_example", ROOT / f"docs/examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def signals_example():
    return example("signals")


def test_freezing_example(tmp_path):
    freezing = example("freezing")
    cells = {title.split(":")[0]: parts for title, parts in freezing.table().items()}
    usual = cells["mmdet's configs"]
    assert [usual[part] for part in ("stem", "layer1", "layer2")] == [(False,) * 3] * 2 + [(True, True, False)]
    assert set(cells["everything trains"].values()) == {(True, True, True)}
    assert set(cells["feature extractor"].values()) == {(False, False, False)}
    assert cells["caffe weights"]["layer4"] == (True, False, False)
    assert cells["fine-tuning"]["layer3"].folds == "folds"
    assert cells["everything trains"]["layer4"].folds == "cannot fold"
    freezing.main(["--out", str(tmp_path / "freezing.png")])
    assert (tmp_path / "freezing.png").read_bytes().startswith(b"\x89PNG")


def test_signals_example(signals_example, tmp_path, capsys):
    """With a narrow network and few steps, which suffice to classify most signals."""
    out = tmp_path / "scales.png"
    signals_example.main(["--out", str(out), "--steps", "40", "--base-channels", "8"])
    assert out.read_bytes().startswith(b"\x89PNG")
    (found,) = re.findall(r"accuracy on the test signals: ([\d.]+)", capsys.readouterr().out)
    assert float(found) > 0.8


def test_evidence_of_scales_sums_to_the_logits(signals_example):
    from resnet_backbone import MultiScaleResNet1d

    model = MultiScaleResNet1d(base_channels=4, num_classes=2).eval()
    x = torch.randn(3, 1, 150)
    with torch.no_grad():
        logits = model(x)
        expected = logits[:, 1] - logits[:, 0] - (model.fc.bias[1] - model.fc.bias[0])
        torch.testing.assert_close(signals_example.evidence(model, x).sum(dim=(1, 2)), expected)


def test_receptive_fields_grow_with_the_kernel(signals_example):
    from resnet_backbone import MultiScaleResNet1d

    model = MultiScaleResNet1d(base_channels=4, num_classes=2, stem_stride=4, strides=(2, 2, 2)).double().eval()
    fields = signals_example.receptive_fields(model, torch.randn(32, 1, 1200).double())
    # 11 samples of the stem and its pooling; each convolution adds kernel - 1 steps, of 4, 8, 8, 16, 16 and 32 samples.
    expected = [11 + 84 * (size - 1) for size in (3, 5, 7)]
    assert [int((field > 0).sum()) for field in fields] == expected
    assert fields.max(dim=1).values.tolist() == [1, 1, 1]

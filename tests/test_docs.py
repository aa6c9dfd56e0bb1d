"""What README and docs show runs: every block of Python, each by itself, and the examples."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Sources that are downloaded.
REMOTE = re.compile(r"[\"'](https?|torchvision|timm|hf|open-mmlab)://")


def blocks():
    for page in PAGES:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            line = text[: found.start()].count("\n") + 2
            marks = [pytest.mark.network] if REMOTE.search(found[1]) else []
            yield pytest.param(page, line, found[1], id=f"{page.relative_to(ROOT)}:{line}", marks=marks)


@pytest.mark.parametrize(("page", "line", "code"), list(blocks()))
def test_block_runs(page, line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # The numbers of its lines in a traceback are those of the page.
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), {"__name__": "__main__"})


def example(name):
    spec = importlib.util.spec_from_file_location(f"{name}_example", ROOT / f"docs/examples/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def signals_example():
    return example("signals")


def test_example_of_freezing_draws_what_the_networks_do(tmp_path):
    freezing = example("freezing")
    cells = {title.split(":")[0]: parts for title, parts in freezing.table().items()}
    usual = cells["mmdet's configs"]
    assert [usual[part] for part in ("stem", "layer1", "layer2")] == [(False,) * 3] * 2 + [(True, True, False)]
    assert set(cells["everything trains"].values()) == {(True, True, True)}
    assert set(cells["a fixed extractor"].values()) == {(False, False, False)}
    assert cells["caffe weights"]["layer4"] == (True, False, False)
    assert cells["fine-tuning"]["layer3"].folds == "folds once"
    assert cells["fine-tuning"]["layer4"].folds == "folds each step"
    freezing.main(["--out", str(tmp_path / "freezing.png")])
    assert (tmp_path / "freezing.png").read_bytes().startswith(b"\x89PNG")


def test_example_of_signals_beats_nearest_neighbour_and_draws(signals_example, tmp_path, capsys):
    out = tmp_path / "scales.png"
    signals_example.main(["--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")
    (found,) = re.findall(r"accuracy on the test signals: ([\d.]+)", capsys.readouterr().out)
    assert float(found) > 0.9067 + 0.05


def test_evidence_of_scales_adds_up_to_the_logits(signals_example):
    from resnet_backbone import MultiScaleResNet1d

    model = MultiScaleResNet1d(base_channels=4, num_classes=2).eval()
    x = torch.randn(3, 1, 150)
    with torch.no_grad():
        logits = model(x)
        expected = logits[:, 1] - logits[:, 0] - (model.fc.bias[1] - model.fc.bias[0])
        torch.testing.assert_close(signals_example.evidence(model, x).sum(dim=(1, 2)), expected)


def test_receptive_fields_grow_with_the_kernel(signals_example):
    from resnet_backbone import MultiScaleResNet1d

    model = MultiScaleResNet1d(base_channels=4, num_classes=2).double().eval()
    fields = signals_example.receptive_fields(model, torch.randn(32, 1, 1200).double())
    # 11 samples of the stem and its pooling; each convolution adds kernel - 1 steps, of 4, 8, 8, 16, 16 and 32 samples.
    expected = [11 + 84 * (size - 1) for size in (3, 5, 7)]
    assert [int((field > 0).sum()) for field in fields] == expected
    assert fields.max(dim=1).values.tolist() == [1, 1, 1]

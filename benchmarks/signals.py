"""Time of MultiScaleResNet1d, compared with the same network written by hand from torch.nn.

python benchmarks/signals.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from resnet_backbone import MultiScaleResNet1d

# Batch, leads, samples: a few short recordings, ten seconds of a 12-lead ECG at 100 Hz and at 500 Hz, one of them.
SHAPES = ((32, 1, 150), (16, 12, 1000), (8, 12, 5000), (1, 12, 5000))


class Block(nn.Module):
    """A residual block."""

    def __init__(self, inside: int, out: int, size: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inside, out, size, stride=2, padding=size // 2, bias=False)
        self.bn1 = nn.BatchNorm1d(out)
        self.conv2 = nn.Conv1d(out, out, size, padding=size // 2, bias=False)
        self.bn2 = nn.BatchNorm1d(out)
        self.downsample = nn.Sequential(nn.Conv1d(inside, out, 1, stride=2, bias=False), nn.BatchNorm1d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block."""
        out = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(out)) + self.downsample(x))


class ByHand(nn.Module):
    """A stem and three separate branches."""

    def __init__(self, leads: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(leads, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm1d(64)
        self.maxpool = nn.MaxPool1d(3, stride=2, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(Block(64, 64, size), Block(64, 128, size), Block(128, 256, size)) for size in (3, 5, 7)
        )
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits."""
        x = self.maxpool(torch.relu_(self.bn1(self.conv1(x))))
        return self.fc(torch.cat([branch(x).mean(dim=2) for branch in self.branches], dim=1))

    def load(self, ours: MultiScaleResNet1d) -> ByHand:
        """Load the weights of MultiScaleResNet1d."""
        state = {}
        for key, value in ours.state_dict().items():
            parts = key.split(".")
            if parts[0].startswith("layer"):  # layerS.branches.B.0.rest
                parts = ["branches", parts[2], str(int(parts[0][5:]) - 1), *parts[4:]]
            state[".".join(parts)] = value
        self.load_state_dict(state)
        return self


def step(model: nn.Module, x: Tensor) -> None:
    """Run one forward and backward pass."""
    model.zero_grad(set_to_none=True)
    model(x).square().mean().backward()


def measure(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Time the runs alternately.

    Returns:
        Of each, the median of its milliseconds, and that of its share of the time by hand in the same round: what slows
        the machine for a while slows a whole round.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 2):
        # The order alternates, so that none always benefits from a warm cache.
        for name in list(runs)[:: 1 if round_ % 2 else -1]:
            start = time.perf_counter()
            runs[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
    base = times["by hand"]
    return {
        name: (statistics.median(row[2:]), statistics.median(one / other for one, other in zip(row[2:], base[2:])))
        for name, row in times.items()
    }  # the first two rounds warm up


def compare(batch: int, leads: int, samples: int, repeats: int) -> None:
    """Measure one shape; print a line for inference and one for training."""
    torch.manual_seed(0)
    ours = MultiScaleResNet1d(in_channels=leads, num_classes=5, stem_stride=4, strides=(2, 2, 2))
    hand = ByHand(leads, 5).load(ours)
    deployed = MultiScaleResNet1d(in_channels=leads, num_classes=5, stem_stride=4, strides=(2, 2, 2))
    deployed.load_state_dict(ours.state_dict())
    deployed.eval().switch_to_deploy()
    x = torch.randn(batch, leads, samples)
    models: dict[str, nn.Module] = {"by hand": hand, "ours": ours, "ours, deployed": deployed}
    for model in models.values():
        torch.testing.assert_close(model.eval()(x), hand.eval()(x))
    with torch.inference_mode():
        infer = measure({name: lambda model=model: model(x) for name, model in models.items()}, repeats)
    del models["ours, deployed"]
    for model in models.values():
        model.train()
    train = measure({name: lambda model=model: step(model, x) for name, model in models.items()}, repeats)
    for what, row in (("inference", infer), ("training", train)):
        told = " | ".join(f"{ms:.1f} ({share:.2f})" for ms, share in row.values())
        print(f"| {batch}x{leads}x{samples} | {what} | {told} |" + " |" * (len(infer) - len(row)))


def main() -> None:
    """Compare at each shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21)
    repeats = parser.parse_args().repeats
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; milliseconds (share of the time by hand)")
    print("| batch x leads x samples | | by hand | ours | ours, deployed |\n| --- | --- | --- | --- | --- |")
    for shape in SHAPES:
        compare(*shape, repeats)


if __name__ == "__main__":
    main()

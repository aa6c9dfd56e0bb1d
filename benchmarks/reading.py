"""Time of reading a checkpoint, compared with ``torch.load(weights_only=True)``, in torch's zip and legacy formats.

python -m benchmarks.reading --megabytes 100
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from resnet_backbone import ResNet
from resnet_backbone.weights.read import read_file


def checkpoint(megabytes: int) -> dict[str, torch.Tensor]:
    """The weights of a ResNet-50, and a tensor that fills the file to the given size."""
    state = dict(ResNet(depth=50).state_dict())
    rest = megabytes * 10**6 - sum(value.nbytes for value in state.values())
    return state | {"rest": torch.zeros(max(rest, 0) // 4)}


def seconds(read: Callable[[], Any]) -> float:
    """The time of one reading."""
    start = time.perf_counter()
    read()
    return time.perf_counter() - start


def main() -> None:
    """Write both formats, read each with both readers alternately, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    state = checkpoint(options.megabytes)
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("zip", "legacy"):
            path = Path(folder) / f"{kind}.pth"
            torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
            theirs, ours = [], []
            for _ in range(options.rounds):
                theirs.append(seconds(lambda: torch.load(path, map_location="cpu", weights_only=True)))  # noqa: B023
                ours.append(seconds(lambda: read_file(path)))  # noqa: B023
            a, b = statistics.median(theirs), statistics.median(ours)
            print(f"{kind}: torch.load {a * 1000:.0f} ms, read_file {b * 1000:.0f} ms, {b / a:.2f}x")


if __name__ == "__main__":
    main()

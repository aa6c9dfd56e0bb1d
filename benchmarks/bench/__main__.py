"""Command of the benchmark: ``python -m benchmarks.bench --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console

from resnet_backbone.errors import ArgumentError, did_you_mean

from .plot import plot_reports
from .report import Report, make_report, write_json
from .rows import BASELINE, Builder, rows_for
from .settings import Settings

__all__ = ["main"]

# mmdet's usual size is larger; the default for training suits a CPU.
TRAIN_SIZE, INFER_SIZE = (2, 320, 480), (1, 480, 640)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the requested files.

    Args:
        argv: The arguments after the program's name; ``None`` means those of the process.

    Returns:
        The exit status: 0, or 1 where an option has a value that is not allowed or a file cannot be written.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    _add_arguments(parser)
    try:
        return _run(parser.parse_args(argv))
    except (ValueError, OSError, ImportError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--train", action="store_true", help="forward and backward pass")
    task.add_argument("--infer", action="store_true", help="forward pass only (default)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (%(default)s)")
    parser.add_argument("--model", default="resnet50", metavar="NAME", help="or resnext101_64x4d, ... (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels (train 320 480, infer 480 640)")
    parser.add_argument("--batch", type=int, metavar="N", help="images per step (train 2, infer 1)")
    parser.add_argument("--dtype", nargs="+", default=["fp32"], metavar="T", help="fp32, bf16; on cuda also tf32, fp16")
    parser.add_argument("--frozen-stages", type=int, default=1, metavar="N", help="in training (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the CPU (default: torch's)")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="timings of each row (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"rows in addition to {BASELINE!r}; 'list' shows them")
    parser.add_argument("--memory", action="store_true", help="bytes saved for the backward pass; peak memory on cuda")
    parser.add_argument("--json", metavar="FILE", help="write all measurements")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture")


def _run(arguments: argparse.Namespace) -> int:
    batch, height, width = TRAIN_SIZE if arguments.train else INFER_SIZE
    height, width = arguments.size or (height, width)
    base = Settings(
        arguments.train, arguments.model, arguments.batch or batch, height, width, arguments.dtype[0],
        arguments.device, arguments.repeats, arguments.frozen_stages,
    )  # fmt: skip
    series = [replace(base, dtype=dtype) for dtype in arguments.dtype]
    for settings in series:
        settings.check()
    builders = _chosen(rows_for(base), arguments.only)
    if arguments.only == ["list"]:
        print("\n".join(rows_for(base)))
        return 0
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    console = Console()
    if not console.is_terminal:
        console.width = 110  # files and pipes have no width
    reports: list[Report] = []
    for settings in series:
        with console.status(settings.dtype) as status:
            reports.append(make_report(settings, builders, memory=arguments.memory, progress=status.update))
        console.print(reports[-1].table(), *reports[-1].notes(), sep="\n")
        if arguments.json:
            write_json(reports, arguments.json)
        if arguments.plot:
            plot_reports(reports, arguments.plot)
    return 0


def _chosen(rows: dict[str, Builder], only: Sequence[str] | None) -> dict[str, Builder]:
    if only is None or list(only) == ["list"]:
        return rows
    for name in only:
        if name not in rows:
            raise ArgumentError(f"--only has no row {name!r}.{did_you_mean(name, rows)} Rows: {'; '.join(rows)}")
    return {name: build for name, build in rows.items() if name in only or name == BASELINE}


if __name__ == "__main__":
    sys.exit(main())

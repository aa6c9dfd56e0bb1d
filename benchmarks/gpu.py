"""Measure the tables for a GPU, the most important first: ``python -m benchmarks.gpu --json FILE``.

Each table is written as soon as it is measured, and no table is started after the time limit, so an interrupted run
loses only the last tables. ``--dry-run`` computes every row on the CPU, with a small network and small images.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .bench.report import Report, make_report, write_json
from .bench.rows import rows_for
from .bench.settings import Settings

__all__ = ["main", "tables"]

PEERS = ("torchvision", "timm")
TRAIN = ("exact", "exact, channels_last", "folded", "folded, channels_last", *PEERS, "mmengine efficient_conv_bn_eval")
TRAIN_COMPILED = ("exact", "exact, compiled", "folded, channels_last", "folded, channels_last, compiled")
INFER = ("exact", "exact, channels_last", "deployed", "deployed, channels_last", *PEERS)
INFER_COMPILED = ("exact", "exact, compiled", "deployed, channels_last", "deployed, channels_last, compiled")


def tables() -> Iterator[tuple[Settings, Sequence[str]]]:
    """Yield the conditions of each table and the names of its rows, the most important first."""
    detection = Settings(train=True, batch=2, height=800, width=1333, device="cuda", repeats=15)
    images = replace(detection, batch=16, height=640, width=640)
    for settings in (detection, images):
        for dtype in ("fp16", "bf16"):
            yield replace(settings, dtype=dtype), TRAIN
            yield replace(settings, dtype=dtype, train=False), INFER
    yield replace(detection, dtype="fp16", train=False), INFER_COMPILED
    yield replace(detection, dtype="fp16"), TRAIN_COMPILED
    for settings in (detection, images):
        for dtype in ("tf32", "fp32"):
            yield replace(settings, dtype=dtype), TRAIN
    for settings in (detection, images):
        resnext = replace(settings, model="resnext101_64x4d")
        yield replace(resnext, dtype="fp16"), TRAIN
        yield replace(resnext, dtype="fp16", train=False), INFER
    yield replace(images, dtype="fp16", train=False), INFER_COMPILED
    yield replace(images, dtype="fp16"), TRAIN_COMPILED
    yield replace(detection, dtype="bf16", train=False), INFER_COMPILED
    yield replace(detection, dtype="bf16"), TRAIN_COMPILED
    for dtype in ("tf32", "fp32"):
        yield replace(detection, dtype=dtype, train=False), INFER


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the tables until the time is up.

    Args:
        argv: The arguments after the program's name; ``None`` means those of the process.

    Returns:
        The exit status, 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--json", metavar="FILE", required=True, help="write all measurements")
    parser.add_argument("--seconds", type=float, default=280, metavar="S", help="time limit for starts (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="small sizes on the CPU, without compiling")
    arguments = parser.parse_args(argv)

    begin, reports = time.monotonic(), list[Report]()
    done = set[tuple[Settings, Sequence[str]]]()
    for settings, names in tables():
        if time.monotonic() - begin > arguments.seconds:
            break
        if arguments.dry_run:
            settings, names = _small(settings), tuple(name for name in names if "compiled" not in name)
            if (settings, names) in done:
                continue
            done.add((settings, names))
        settings.check()
        builders = {name: build for name, build in rows_for(settings).items() if name in names}
        try:
            reports.append(make_report(settings, builders, memory=True))
        except Exception as error:  # noqa: BLE001 - the tables that follow are measured all the same
            print(f"{settings}: {type(error).__name__}: {error}", flush=True)
            continue
        write_json(reports, arguments.json)
        print(f"{time.monotonic() - begin:.0f} s: {reports[-1].title}", *reports[-1].lines(), sep="\n", flush=True)
    return 0


def _small(settings: Settings) -> Settings:
    """The same conditions at a small size."""
    dtype = "bf16" if settings.is_half else "fp32"
    model = "resnet18" if settings.model.startswith("resnet") else "resnext50_32x4d"
    return replace(settings, model=model, batch=1, height=32, width=32, device="cpu", dtype=dtype, repeats=1)


if __name__ == "__main__":
    raise SystemExit(main())

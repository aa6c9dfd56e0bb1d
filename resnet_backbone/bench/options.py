"""The options of ``resnet-backbone bench``, apart from what it needs to run: a parser imports no torch."""

from __future__ import annotations

import argparse

__all__ = ["BASELINE", "add_arguments"]

BASELINE = "exact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--train", action="store_true", help="forward and backward pass of a step")
    task.add_argument("--infer", action="store_true", help="forward pass alone (default)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (%(default)s)")
    parser.add_argument("--depth", type=int, default=50, metavar="N", help="depth of the ResNet (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="pixels (train 320 480, infer 480 640)")
    parser.add_argument("--batch", type=int, metavar="N", help="images a step (train 2, infer 1)")
    parser.add_argument("--dtype", nargs="+", default=["fp32"], metavar="T", help="fp32, bf16; on cuda tf32, fp16 too")
    parser.add_argument("--frozen-stages", type=int, default=1, metavar="N", help="in training (%(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the CPU (default: torch's)")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="timings of each row (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"rows beside {BASELINE!r}; 'list' shows them")
    parser.add_argument("--memory", action="store_true", help="bytes kept for the backward pass; peak memory on cuda")
    parser.add_argument("--scaling", action="store_true", help="sizes 320 to 1333 and batches 1 to 8 in place of one")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture")

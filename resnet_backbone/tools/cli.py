"""The ``resnet-backbone`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import ArgumentError, CheckpointError, printable
from ..version import __version__
from .features import run_demo, run_features
from .info import show_info
from .weights import convert, show_report, table_text

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments after the program's name; ``None`` means those of the process.

    Returns:
        The exit status: 0, or 1 after an error.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        # Names and paths may contain control characters.
        reason = "\n".join(printable(line, 10_000) for line in str(error).splitlines())
        print(f"resnet-backbone {arguments.command}: {reason}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="resnet-backbone", description="mmdet's ResNet backbones, outside mmdet too.")
    parser.add_argument("--version", action="version", version=f"resnet_backbone {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", help="run a photograph through ResNet-18 and draw its feature pyramid")
    demo.add_argument("--image", metavar="FILE", help="photograph to use (default: grace_hopper.jpg from matplotlib)")
    demo.add_argument("--out", metavar="FILE", default="feature_pyramid.png", help="picture to write (%(default)s)")
    demo.set_defaults(run=lambda args: run_demo(args.image, args.out))

    features = commands.add_parser("features", help="draw the features that a backbone computes from a photograph")
    features.add_argument("image", metavar="IMAGE", help="the photograph")
    _add_backbone(features, "the weights', or 50")
    features.add_argument("--weights", metavar="SOURCE", help="a path, a URL, torchvision://resnet50, ... (random)")
    features.add_argument("--out", metavar="FILE", default="features.png", help="picture to write (%(default)s)")
    features.set_defaults(run=lambda args: run_features(args.image, args.config, args.depth, args.weights, args.out))

    info = commands.add_parser("info", help="list the stages of a backbone and what each one costs")
    _add_backbone(info, "50")
    info.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="arguments of the backbone")
    info.add_argument("--frozen-stages", type=int, metavar="N", help="the same as --cfg-options frozen_stages=N")
    info.add_argument("--size", type=int, nargs="+", metavar="N", help="height and width of the input (224 224)")
    info.add_argument("--batch", type=int, default=1, metavar="N", help="images in the batch (%(default)s)")
    info.add_argument("--eval", action="store_true", help="in eval mode (default: train mode)")
    info.set_defaults(run=show_info)

    weights = commands.add_parser("weights", help="report how a checkpoint loads into a backbone")
    weights.add_argument("source", metavar="SOURCE", nargs="?", help="a path, a URL, torchvision://resnet50, ...")
    weights.add_argument("--list", action="store_true", help="show the table of named weights")
    _add_backbone(weights, "the checkpoint's")
    weights.add_argument("--prefix", metavar="P", help="prefix of the network's keys in the file (default: found)")
    weights.add_argument("--no-strict", action="store_true", help="load what matches, and report the rest")
    weights.set_defaults(run=_weights)

    converting = commands.add_parser("convert", help="write a checkpoint with mmdet's names and its provenance")
    converting.add_argument("source", metavar="SOURCE", help="a path, a URL, torchvision://resnet50, ...")
    converting.add_argument("out", metavar="OUT", help="the file to write, .safetensors or .pth")
    _add_backbone(converting, "the checkpoint's")
    converting.add_argument("--prefix", metavar="P", help="prefix of the network's keys in the file (default: found)")
    converting.set_defaults(
        run=lambda args: print(convert(args.source, args.out, args.config, args.depth, args.prefix))
    )
    return parser


def _add_backbone(parser: argparse.ArgumentParser, default: str) -> None:
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--config", metavar="FILE", help="config with the backbone")
    target.add_argument("--depth", type=int, metavar="N", help=f"depth of the ResNet (default: {default})")


def _weights(args: argparse.Namespace) -> None:
    if args.list == (args.source is not None):
        raise ArgumentError("give either a SOURCE or --list")
    print(
        table_text()
        if args.list
        else show_report(args.source, args.config, args.depth, args.prefix, strict=not args.no_strict)
    )

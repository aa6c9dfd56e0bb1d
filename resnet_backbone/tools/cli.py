"""The ``resnet-backbone`` command: each subcommand parses here and runs in the module that does the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..errors import ArgumentError, printable
from ..version import __version__
from ..weights import CheckpointError

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
        return int(arguments.run(arguments))
    except (ValueError, OSError, ImportError, CheckpointError) as error:
        # Names and paths may contain control characters.
        reason = "\n".join(printable(line, 10_000) for line in str(error).splitlines())
        print(f"resnet-backbone {arguments.command}: {reason}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet-backbone", description="mmdet's ResNet backbones, outside of mmdet too."
    )
    parser.add_argument("--version", action="version", version=f"resnet_backbone {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    _add_features(commands)
    _add_info(commands)
    _add_weights(commands)
    _add_convert(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="run a photograph through ResNet-18 and draw its feature pyramid")
    parser.add_argument("--image", metavar="FILE", help="photograph to use (default: grace_hopper.jpg from matplotlib)")
    parser.add_argument("--out", metavar="FILE", default="feature_pyramid.png", help="picture to write (%(default)s)")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from .features import run_demo

    return run_demo(arguments.image, arguments.out)


def _add_features(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("features", help="draw what a backbone makes of a photograph, level by level")
    parser.add_argument("image", metavar="IMAGE", help="the photograph")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--config", metavar="FILE", help="config with the backbone")
    target.add_argument("--depth", type=int, metavar="N", help="depth of the ResNet (default: the weights', or 50)")
    parser.add_argument("--weights", metavar="SOURCE", help="a path, a URL, torchvision://resnet50, ... (random)")
    parser.add_argument("--out", metavar="FILE", default="features.png", help="picture to write (%(default)s)")
    parser.set_defaults(run=_features)


def _features(arguments: argparse.Namespace) -> int:
    from .features import run_features

    return run_features(arguments.image, arguments.config, arguments.depth, arguments.weights, arguments.out)


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("info", help="show what a backbone is made of and what it costs, stage by stage")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--config", metavar="FILE", help="config with the backbone")
    target.add_argument("--depth", type=int, default=50, metavar="N", help="depth of the ResNet (%(default)s)")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="arguments of the backbone")
    parser.add_argument("--frozen-stages", type=int, metavar="N", help="the same as --cfg-options frozen_stages=N")
    parser.add_argument("--size", type=int, nargs="+", metavar="N", help="height and width of the input (224 224)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images in the batch (%(default)s)")
    parser.add_argument("--eval", action="store_true", help="in eval mode (default: as it trains)")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    from .info import show_info

    options = list(arguments.cfg_options)
    if arguments.frozen_stages is not None:
        options.append(f"frozen_stages={arguments.frozen_stages}")
    return show_info(
        arguments.config, arguments.depth, options, arguments.size, arguments.batch, evaluate=arguments.eval
    )


def _add_weights(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("weights", help="say how a checkpoint would load, without changing anything")
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="a path, a URL, torchvision://resnet50, ...")
    parser.add_argument("--list", action="store_true", help="show the table of named weights")
    _add_target(parser)
    parser.add_argument("--no-strict", action="store_true", help="load what fits; say what does not")
    parser.set_defaults(run=_weights)


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("convert", help="write a checkpoint in mmdet's names, with its provenance")
    parser.add_argument("source", metavar="SOURCE", help="a path, a URL, torchvision://resnet50, ...")
    parser.add_argument("out", metavar="OUT", help="the file to write, .safetensors or .pth")
    _add_target(parser)
    parser.set_defaults(run=_convert)


def _add_target(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--config", metavar="FILE", help="config with the backbone (default: what the file holds)")
    target.add_argument("--depth", type=int, metavar="N", help="depth of the ResNet (default: what the file holds)")
    parser.add_argument("--prefix", metavar="P", help="what precedes the network's names in the file (default: found)")


def _weights(arguments: argparse.Namespace) -> int:
    from .weights import show_report, table_text

    if arguments.list == (arguments.source is not None):
        raise ArgumentError("give either a SOURCE or --list")
    if arguments.list:
        print(table_text())
    else:
        strict = not arguments.no_strict
        print(show_report(arguments.source, arguments.config, arguments.depth, arguments.prefix, strict))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from .weights import convert

    print(convert(arguments.source, arguments.out, arguments.config, arguments.depth, arguments.prefix))
    return 0

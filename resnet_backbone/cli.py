"""The ``resnet-backbone`` command: each subcommand parses here and runs in the module that does the work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .version import __version__

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: The arguments after the program's name; ``None`` means those of the process.

    Returns:
        The exit status: 0, or 1 where the subcommand says no.
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (ValueError, OSError, ImportError) as error:
        print(f"resnet-backbone {arguments.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="resnet-backbone", description="mmdet's ResNet backbones, outside of mmdet too."
    )
    parser.add_argument("--version", action="version", version=f"resnet_backbone {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_demo(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("demo", help="run a photograph through ResNet-18 and draw its feature pyramid")
    parser.add_argument("--image", metavar="FILE", help="photograph to use (default: grace_hopper.jpg from matplotlib)")
    parser.add_argument("--out", metavar="FILE", default="feature_pyramid.png", help="picture to write (%(default)s)")
    parser.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import run_demo

    return run_demo(arguments.image, arguments.out)

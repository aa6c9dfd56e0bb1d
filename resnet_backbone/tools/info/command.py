"""The work of ``resnet-backbone info``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, DictAction

from ...errors import ArgumentError
from ...integrations.mmdet.configs import load_backbone_cfg
from ...integrations.mmdet.registry import build_backbone
from .describe import describe
from .description import HEADINGS, Description

__all__ = ["show_info"]


def show_info(
    config: str | None,
    depth: int,
    options: Sequence[str],
    size: Sequence[int] | None,
    batch: int,
    evaluate: bool,
) -> int:
    """Print a table of a backbone's parts.

    Args:
        config: A config file with the backbone.
        depth: The depth of the ResNet where there is no config.
        options: Arguments of the backbone as ``key=value``, over those of the config.
        size: Size of the input, in pixels.
        batch: Number of images.
        evaluate: Show the backbone in eval mode, not as it trains.

    Returns:
        The exit status, 0.

    Raises:
        ArgumentError: An argument is not allowed, or the config cannot be read.
        ImportError: rich is missing.
    """
    cfg = load_backbone_cfg(config) if config is not None else {"type": "ResNet", "depth": depth}
    backbone = build_backbone(_with_options(cfg, options))
    # mmdet's own train() returns nothing.
    backbone.train(not evaluate)
    _print(describe(backbone, size, batch))
    return 0


def _with_options(cfg: dict[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """Set what ``--cfg-options`` gives, spelled as mmdet's tools take it."""
    for option in options:
        if not option.partition("=")[0] or "=" not in option:
            raise ArgumentError(f"--cfg-options must be key=value, such as fold_norm=True, got {option!r}")
    merged = Config({"backbone": cfg})
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="*", action=DictAction)
    for option in options:
        try:
            values = parser.parse_args(["--cfg-options", option]).cfg_options
            merged.merge_from_dict({f"backbone.{key}": value for key, value in values.items()})
        except (AssertionError, AttributeError, KeyError, RecursionError, TypeError) as error:
            # What mmengine's parser raises for what it cannot read, or put there, names neither.
            raise ArgumentError(
                f"--cfg-options cannot set {option!r}: values are numbers, words, [lists] and (tuples) without spaces; "
                f"a dict is given key by key, norm_cfg.type=GN norm_cfg.num_groups=32"
            ) from error
    return dict(merged.to_dict()["backbone"])


def _print(description: Description) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError as error:
        raise ImportError("the table needs rich: pip install rich") from error

    table = Table(title=description.title, title_justify="left", caption="\n".join(description.notes))
    table.caption_justify = "left"
    for heading in HEADINGS:
        text = heading in ("part", "layers", "trains", "norm layers")
        table.add_column(heading, justify="left" if text else "right", no_wrap=heading not in ("layers", "norm layers"))
    for part in description.parts:
        table.add_row(*part.cells, style=None if part.size is not None else "dim")
    table.add_section()
    table.add_row(*description.total_cells, style="bold")
    console = Console()
    if not console.is_terminal:
        console.width = 130  # a file or a pipe has no width of its own
    console.print(table)

"""Pictures of a feature pyramid: per level, where it is active on the photograph, and its strongest channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import ArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["Level", "check_picture_path", "draw_feature_pyramid", "energy", "strongest_channels"]

PAPER, INK, FAINT = "#ffffff", "#16181d", "#5b6270"
COLOURS = "inferno"
DPI = 110
NOTES = """\
Each row is one level of the pyramid; one square
is one position of that level.

Energy is the root mean square over all channels
of a position, laid over the photograph: grey where
the level is weak, bright where it is strong.

The channels shown are those of highest energy.
The number under each is its index. Each is scaled
to its own range, dark to bright."""


class Level(NamedTuple):
    """One level of a feature pyramid.

    Attributes:
        name: The stage that made it, such as ``'layer2'``.
        stride: Pixels of the image per position.
        features: Array of shape ``(C, H, W)``.
    """

    name: str
    stride: int
    features: Array


def energy(features: Array) -> Array:
    """Return how active each position is: the root mean square over the channels, of shape ``(H, W)``."""
    squares: Array = np.square(features.astype(np.float64)).mean(axis=0)
    return np.sqrt(squares)


def strongest_channels(features: Array, count: int) -> list[int]:
    """Return the channels of largest root mean square over the positions, the strongest first."""
    strength = np.square(features.astype(np.float64)).mean(axis=(1, 2))
    # A stable sort keeps the lower channel first among equals: the picture is the same on every machine.
    return [int(channel) for channel in np.argsort(-strength, kind="stable")[:count]]


def draw_feature_pyramid(
    photo: Array, levels: Sequence[Level], title: str, facts: Sequence[str] = (), num_channels: int = 6
) -> Figure:
    """Draw a photograph and what each level of a feature pyramid makes of it.

    Args:
        photo: ``uint8`` RGB of shape ``(H, W, 3)``.
        levels: The levels, the finest first.
        title: The headline.
        facts: Short lines under the photograph: its size, where the weights come from.
        num_channels: How many channels to show per level, at most.

    Returns:
        The figure; its ``savefig`` writes it.
    """
    num_channels = min(num_channels, *(len(level.features) for level in levels))
    page = _Page(photo, rows=len(levels), num_channels=num_channels)
    page.text(page.margin, 0.62, title, size=24, weight="bold")
    page.text(page.margin, 0.98, "   ·   ".join(facts), size=12, colour=FAINT)
    page.text(page.energy_left, page.head - 0.14, "energy", size=11, weight="bold")
    page.text(page.channel_left(0), page.head - 0.14, "strongest channels", size=11, weight="bold")

    axes = page.axes(page.margin, page.head, page.photo_width, page.photo_height)
    axes.imshow(photo, interpolation="antialiased")
    page.text(page.margin, page.head - 0.14, "photograph", size=11, weight="bold")
    page.text(page.margin, page.head + page.photo_height + 0.2, NOTES, size=10.5, colour=FAINT, va="top")
    for index, level in enumerate(levels):
        _draw_level(page, photo, index, level, num_channels)
    return page.figure


class _Page:
    """Where things stand, in inches from the top left corner: the photograph, and right of it a row per level."""

    margin: float = 0.4
    head: float = 1.6
    gap: float = 0.09
    label: float = 1.35

    def __init__(self, photo: Array, rows: int, num_channels: int) -> None:
        from matplotlib.figure import Figure

        aspect: float = photo.shape[1] / photo.shape[0]
        # Tiles have the photograph's shape, and about one area whatever that is.
        self.tile_height = float(np.clip(np.sqrt(2.7 / aspect), 0.6, 2.2))
        self.tile_width: float = self.tile_height * aspect
        self.row = max(self.tile_height, 1.2) + 0.32
        # The photograph leaves room for the notes under it, and is as wide as they are at least.
        self.photo_height = max(self.row * rows - 2.5, 3.6 / aspect)
        self.photo_width = min(self.photo_height * aspect, 6.0)
        self.photo_height = self.photo_width / aspect
        self.grid_left = self.margin + max(self.photo_width, 3.9) + 0.5
        self.energy_left = self.grid_left + self.label
        self.width = self.channel_left(num_channels) - self.gap + self.margin
        self.height = self.head + max(self.row * rows, self.photo_height + 2.5) + 0.1
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor=PAPER)

    def channel_left(self, index: int) -> float:
        """Left edge of a channel's tile; the energy's stands before the first."""
        return self.energy_left + self.tile_width + 4 * self.gap + index * (self.tile_width + self.gap)

    def row_top(self, index: int) -> float:
        """Top edge of a level's tiles."""
        return self.head + index * self.row

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes without ticks or frame."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box)
        axes.set_axis_off()
        return axes

    def text(self, left: float, baseline: float, text: str, size: float, colour: str = INK, **style: Any) -> None:
        """Write text."""
        self.figure.text(
            left / self.width, 1 - baseline / self.height, text, fontsize=size, color=colour, linespacing=1.45, **style
        )


def _draw_level(page: _Page, photo: Array, index: int, level: Level, num_channels: int) -> None:
    top, left = page.row_top(index), page.grid_left
    channels, height, width = level.features.shape
    page.text(left, top + 0.19, level.name, size=17, weight="bold")
    size = f"stride {level.stride}\n{width} \N{MULTIPLICATION SIGN} {height}\n{channels} channels"
    page.text(left, top + 0.3, size, size=11, colour=FAINT, va="top")
    tile = page.axes(page.energy_left, top, page.tile_width, page.tile_height)
    tile.imshow(_overlay(photo, energy(level.features), level.stride), interpolation="antialiased")
    for position, channel in enumerate(strongest_channels(level.features, num_channels)):
        left = page.channel_left(position)
        tile = page.axes(left, top, page.tile_width, page.tile_height)
        _show_positions(tile, level.features[channel], photo, level.stride)
        page.text(left, top + page.tile_height + 0.15, f"{channel}", size=8, colour=FAINT)


def _overlay(photo: Array, values: Array, stride: int) -> Array:
    """Lay colours over the photograph in grey: the stronger the value, the less of the photograph is left."""
    from matplotlib import colormaps

    grey = photo.astype(np.float64) @ np.array((0.299, 0.587, 0.114)) / 255
    strength = _to_pixels(_scaled(values), photo, stride)
    colours = colormaps[COLOURS](0.25 + 0.75 * strength)[..., :3]
    weight = 0.8 * strength[..., None]
    mixed: Array = (1 - weight) * grey[..., None] + weight * colours
    return mixed


def _show_positions(axes: Axes, values: Array, photo: Array, stride: int) -> None:
    axes.imshow(_to_pixels(_scaled(values), photo, stride), cmap=COLOURS, vmin=0, vmax=1, interpolation="antialiased")


def _to_pixels(values: Array, photo: Array, stride: int) -> Array:
    """Repeat each position over the pixels that it stands for."""
    pixels: Array = values.repeat(stride, axis=0).repeat(stride, axis=1)
    return pixels[: photo.shape[0], : photo.shape[1]]


def _scaled(values: Array) -> Array:
    """Scale to [0, 1] between the 1st and the 99th percentile, so that one hot position does not dim the rest."""
    low, high = np.percentile(values, (1, 99))
    scaled: Array = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return scaled


def check_picture_path(out: str) -> None:
    """Refuse, before any work is done, a path that no picture can be written to.

    Args:
        out: Path of the file; its ending tells the type.

    Raises:
        ArgumentError: The ending names no type that matplotlib writes, or the folder does not exist.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    types = FigureCanvasBase.get_supported_filetypes()
    if Path(out).suffix.lower().lstrip(".") not in types:
        raise ArgumentError(
            f"out must end in one of {', '.join(f'.{ending}' for ending in sorted(types))}, got {out!r}"
        )
    if not Path(out).parent.is_dir():
        raise ArgumentError(f"out must lie in a folder that exists, got {out!r}")

"""Pictures of a feature pyramid: per level, where it is active on the photograph, and its strongest channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import ArgumentError

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
Each row is one level of the pyramid.

Energy: the root mean square over all channels of
a position, laid over the photograph. Grey where the
level is weak, bright where it is strong.

Strongest channels: those of highest energy, with
their numbers. One square is one position. Each map
is scaled to its own range."""


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
    photo: Array,
    levels: Sequence[Level],
    title: str,
    facts: Sequence[str] = (),
    num_channels: int = 12,
    remark: str = "",
) -> Figure:
    """Draw a photograph and what each level of a feature pyramid makes of it.

    Args:
        photo: ``uint8`` RGB of shape ``(H, W, 3)``.
        levels: The levels, the finest first.
        title: The headline.
        facts: Short lines under the photograph: its size, where the weights come from.
        num_channels: How many channels to show per level, at most.
        remark: What to keep in mind, under the explanations; a few short lines.

    Returns:
        The figure; its ``savefig`` writes it.
    """
    num_channels = min(num_channels, *(len(level.features) for level in levels))
    subtitle = "   ·   ".join(facts)
    notes = f"{NOTES}\n\n{remark}" if remark else NOTES
    # Inches that a letter of each takes, roughly.
    head_width = max(0.21 * len(title), 0.1 * len(subtitle))
    page = _Page(photo, len(levels), num_channels, head_width, note_lines=notes.count("\n") + 1)
    page.text(page.margin, 0.62, title, size=24, weight="bold")
    page.text(page.margin, 0.98, subtitle, size=12, colour=FAINT)
    page.text(page.energy_left, page.head - 0.14, "energy", size=11, weight="bold")
    page.text(page.channels_left, page.head - 0.14, "strongest channels", size=11, weight="bold")

    axes = page.axes(page.margin, page.head, page.photo_width, page.photo_height)
    axes.imshow(photo, interpolation="antialiased")
    page.text(page.margin, page.head - 0.14, "photograph", size=11, weight="bold")
    _explain(page, notes)
    for index, level in enumerate(levels):
        _draw_level(page, photo, index, level, num_channels)
    return page.figure


def _explain(page: _Page, notes: str) -> None:
    top = page.head + page.photo_height + 0.3
    bar = page.axes(page.margin + 0.5, top, 2.4, 0.14)
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=COLOURS, aspect="auto")
    page.text(page.margin, top + 0.12, "weak", size=10.5, colour=FAINT)
    page.text(page.margin + 3.0, top + 0.12, "strong", size=10.5, colour=FAINT)
    page.text(page.margin, top + 0.4, notes, size=10.5, colour=FAINT, va="top")


class _Page:
    """Where things stand, in inches from the top left corner: the photograph, and right of it a row per level."""

    margin: float = 0.4
    head: float = 1.6
    gap: float = 0.08
    label: float = 1.55

    def __init__(self, photo: Array, rows: int, num_channels: int, head_width: float, note_lines: int) -> None:
        from matplotlib.figure import Figure

        # Panoramas and strips get the room of less extreme pictures, and do not fill it.
        aspect = float(np.clip(photo.shape[1] / photo.shape[0], 1 / 3, 3))
        self.notes = 0.8 + 0.22 * note_lines
        # Pictures have the photograph's shape, and about one area whatever that is; four channels fill one's.
        self.tile_height = float(np.clip(np.sqrt(4.6 / aspect), 1.3, 2.8))
        self.tile_width: float = self.tile_height * aspect
        self.map_height = (self.tile_height - self.gap) / 2
        self.map_width = self.map_height * aspect
        self.row = self.tile_height + 0.32
        # The photograph leaves room for the notes under it.
        self.photo_height = max(self.row * rows - self.notes, 4.0)
        self.photo_width = min(self.photo_height * aspect, 6.0)
        self.photo_height = self.photo_width / aspect
        self.grid_left = self.margin + max(self.photo_width, 3.9) + 0.5
        self.energy_left = self.grid_left + self.label
        self.channels_left = self.energy_left + self.tile_width + 4 * self.gap
        self.columns = -(-num_channels // 2)
        # The heading stands over the maps, however few.
        maps_width = max(self.columns * (self.map_width + self.gap) - self.gap, 1.6)
        self.width = max(self.channels_left + maps_width, self.margin + head_width) + self.margin
        self.height = self.head + max(self.row * rows, self.photo_height + self.notes) + 0.1
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor=PAPER)

    def map_at(self, row: int, position: int) -> tuple[float, float]:
        """Left and top edge of a channel's map: those of a level stand in two lines."""
        line, column = divmod(position, self.columns)
        left = self.channels_left + column * (self.map_width + self.gap)
        return left, self.row_top(row) + line * (self.map_height + self.gap)

    def row_top(self, index: int) -> float:
        """Top edge of a level's tiles."""
        return self.head + index * self.row

    def axes(self, left: float, top: float, width: float, height: float, anchor: str = "NW") -> Axes:
        """Add axes without ticks or frame; a picture of another shape lies in the corner that ``anchor`` names."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box, anchor=anchor)
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
        left, top = page.map_at(index, position)
        # Where a map is lower than its room, its number stands above it.
        tile = page.axes(left, top, page.map_width, page.map_height, anchor="SW")
        _show_positions(tile, level.features[channel], photo, level.stride)
        badge = {"facecolor": INK, "edgecolor": "none", "alpha": 0.75, "pad": 1.5}
        page.text(left + 0.05, top + 0.15, f"{channel}", size=8, colour=PAPER, bbox=badge)


def _overlay(photo: Array, values: Array, stride: int) -> Array:
    """Lay colours over the photograph in grey: the stronger the value, the less of the photograph is left."""
    from matplotlib import colormaps

    grey = photo.astype(np.float64) @ np.array((0.299, 0.587, 0.114)) / 255
    strength = _smooth(_scaled(values), photo, stride)
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


def _smooth(values: Array, photo: Array, stride: int) -> Array:
    """Interpolate between the middles of the squares that the positions stand for."""
    from PIL import Image

    height, width = values.shape
    size = (width * stride, height * stride)
    smooth: Array = np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    return smooth[: photo.shape[0], : photo.shape[1]]


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

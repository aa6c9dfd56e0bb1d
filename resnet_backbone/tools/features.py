"""``resnet-backbone features`` and ``resnet-backbone demo``: draw the feature pyramid of a photograph."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ArgumentError, DownloadError
from ..weights import Preprocessing, load_pretrained
from ..weights.preprocessing import IMAGENET_RGB
from ..weights.read import open_regular_file
from .info import aligned
from .weights import backbone_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Level", "draw_feature_pyramid", "extract", "load_photograph", "run_demo", "run_features"]

SEED = 0
DEMO_WEIGHTS = "torchvision://resnet18"
LONGEST_SIDE = 1024
"""In pixels. Larger photographs are scaled down, so that none takes more than a second."""
# Others run programs, such as Ghostscript.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
NOTES = """\
Energy: the root mean square over the channels at each position, on top of the photograph. Right: the channels with the
highest energy, with their indices; each is scaled to its own range."""


class Level(NamedTuple):
    """One level of a feature pyramid, with features of shape ``(C, H, W)``."""

    name: str
    stride: int
    features: Any


def run_demo(image: str | None, out: str) -> None:
    """Draw the features of a pretrained ResNet-18, or of one with random weights where none can be downloaded."""
    try:
        run_features(image, None, 18, DEMO_WEIGHTS, out)
    except DownloadError as error:
        print(f"{error}: continuing with random weights.")
        run_features(image, None, 18, None, out)


def run_features(image: str | None, config: str | None, depth: int | None, weights: str | None, out: str) -> None:
    """Draw the features of a photograph and print a table of them, for the command's arguments."""
    _check_output(out)
    photo = load_photograph(image)
    torch.manual_seed(SEED)
    backbone: Any = backbone_for(weights or "", config, depth or (None if weights else 50), None)
    _check_backbone(backbone)
    preprocessing = IMAGENET_RGB
    if weights is None:
        backbone.init_weights()
        about = f"random weights, seed {SEED}"
    else:
        report = load_pretrained(backbone, weights)
        print(report.summary())
        if report.preprocessing is None:
            print("The preprocessing of these weights is unknown: images are normalized as in torchvision.")
        preprocessing = report.preprocessing or IMAGENET_RGB
        about = f"weights {weights}, {'RGB' if preprocessing.bgr_to_rgb else 'BGR'} images"
    features = extract(backbone.eval(), photo, preprocessing)
    levels = [Level(i.module, i.reduction, level[0].numpy()) for i, level in zip(backbone.feature_info, features)]
    rows = [(v.name, str((1, *v.features.shape)), str(v.stride), f"{v.features.mean():.4f}") for v in levels]
    print(*aligned([("level", "shape (N, C, H, W)", "stride", "mean"), *rows]), sep="\n")
    title = f"Feature pyramid of {type(backbone).__name__}-{backbone.depth}"
    subtitle = f"{photo.shape[1]} \N{MULTIPLICATION SIGN} {photo.shape[0]} pixels, {about}"
    draw_feature_pyramid(photo.numpy(), levels, title, subtitle).savefig(out)
    print(f"Picture: {out}")


def _check_output(out: str) -> None:
    needed = {"matplotlib": "matplotlib", "PIL": "pillow"}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"pictures need {', '.join(missing)}: pip install {' '.join(missing)}")
    from matplotlib.backend_bases import FigureCanvasBase

    types = [f".{ending}" for ending in sorted(FigureCanvasBase.get_supported_filetypes())]
    if Path(out).suffix.lower() not in types:
        raise ArgumentError(f"out must end in one of {', '.join(types)}, got {out!r}")
    if not Path(out).parent.is_dir():
        raise ArgumentError(f"out must be in an existing folder, got {out!r}")


def _check_backbone(backbone: nn.Module) -> None:
    name = type(backbone).__name__
    if not hasattr(backbone, "feature_info"):
        raise ArgumentError(f"the backbone must be a ResNet of this package, got {name}")
    dims, channels = getattr(backbone, "spatial_dims", 2), getattr(backbone, "in_channels", None)
    if dims != 2 or channels not in (3, None):
        got = f"{name} with {dims} dimensions and in_channels={channels}"
        raise ArgumentError(f"the backbone must take photographs, (N, 3, H, W): got {got}")


def load_photograph(image: str | None) -> Tensor:
    """Read a photograph as ``uint8`` RGB of shape ``(H, W, 3)``, its longer side at most ``LONGEST_SIDE``.

    Raises:
        ArgumentError: The file cannot be read as an image.
    """
    from matplotlib.cbook import get_sample_data
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(image) if image is not None else Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
    try:
        with open_regular_file(path) as file, Image.open(file, formats=FORMATS) as opened:
            # Cameras store the orientation in the metadata.
            photo = ImageOps.exif_transpose(opened)
            if photo.mode.startswith("I"):  # 16 bits, which convert() would clip at 255
                photo = Image.fromarray((np.asarray(photo) >> 8).clip(0, 255).astype(np.uint8))
            photo = photo.convert("RGB")
    except UnidentifiedImageError:
        raise ArgumentError(f"image must be a photograph (JPEG, PNG, ...), got {str(path)!r}") from None
    except Exception as error:  # each format has its own
        reason = getattr(error, "strerror", None) or str(error)
        raise ArgumentError(f"image {str(path)!r} cannot be read: {reason}") from error
    photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return torch.from_numpy(np.array(photo))


@torch.inference_mode()
def extract(backbone: nn.Module, photo: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, ...]:
    """Compute the features of a photograph, ``uint8`` RGB of shape ``(H, W, 3)``, normalized for the weights."""
    pixels = (photo if preprocessing.bgr_to_rgb else photo.flip(-1)).float()
    x = (pixels - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    return cast(tuple[Tensor, ...], backbone(x.permute(2, 0, 1)[None]))


def draw_feature_pyramid(photo: Any, levels: list[Level], title: str, subtitle: str, num_channels: int = 10) -> Figure:
    """Draw a photograph, ``uint8`` RGB, and for each level the energy and the channels with the highest energy."""
    from matplotlib.figure import Figure

    columns = -(-min(num_channels, *(len(level.features) for level in levels)) // 2)
    aspect = float(np.clip(photo.shape[1] / photo.shape[0], 1 / 3, 3))
    # The channels of each level take two rows, which its energy spans.
    grid: list[Any] = [
        ["photo", f"energy {i}", *(f"{i} {row * columns + column}" for column in range(columns))]
        for i in range(len(levels))
        for row in range(2)
    ]
    width, height = 1.3 * aspect * (2 + columns) + 4.2 * min(aspect, 1) + 2.4, 2.8 * len(levels) + 1.4
    figure = Figure(figsize=(max(width, 9.0), max(height, 4.5)), layout="constrained", dpi=100)
    figure.suptitle(title, x=0.01, ha="left", fontsize=18, fontweight="bold")
    figure.supxlabel(f"{subtitle}\n{NOTES}", x=0.01, ha="left", fontsize=10)
    axes = figure.subplot_mosaic(grid, width_ratios=[2.6, 2, *[1] * columns])
    axes["photo"].imshow(photo)
    axes["photo"].set_anchor("N")
    for i, level in enumerate(levels):
        strength = np.square(level.features.astype(np.float64))
        channels, rows, cols = strength.shape
        energy = axes[f"energy {i}"]
        energy.imshow(photo.mean(axis=2), cmap="gray")
        extent = (0, cols * level.stride, rows * level.stride, 0)
        energy.imshow(_scaled(np.sqrt(strength.mean(axis=0))), extent=extent, cmap="inferno", alpha=0.7)
        energy.set(xlim=(0, photo.shape[1]), ylim=(photo.shape[0], 0))
        label = f"{level.name}\nstride {level.stride}\n{cols} \N{MULTIPLICATION SIGN} {rows}\n{channels} channels"
        energy.set_ylabel(label, rotation=0, ha="right", va="center")
        # A stable sort keeps the lower of equal channels first, so the picture is the same on every machine.
        strongest = np.argsort(-strength.mean(axis=(1, 2)), kind="stable")
        for position in range(2 * columns):
            tile = axes[f"{i} {position}"]
            if position < len(strongest):
                tile.imshow(_scaled(level.features[strongest[position]]), cmap="inferno", interpolation="nearest")
                tile.set_title(str(strongest[position]), fontsize=8, pad=2)
            else:
                tile.set_axis_off()
    for tile in axes.values():
        tile.set(xticks=[], yticks=[])
    return figure


def _scaled(values: Any) -> Any:
    """Scale the 1st to 99th percentile to [0, 1], so that outliers do not dim the rest."""
    low, high = np.percentile(values, (1, 99))
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)

"""``resnet-backbone features``: a photograph through a backbone, as a table and as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..weights import LoadReport, Preprocessing, load_pretrained
from ..weights.preprocessing import IMAGENET_RGB
from .figures import Level, check_picture_path, draw_feature_pyramid
from .weights import backbone_for

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["check_output", "extract", "load_photograph", "run_features", "show_pyramid"]

SEED = 0
LONGEST_SIDE = 1024
"""Pixels; larger photographs are scaled down, so that any photograph takes a second, not a minute."""
RANDOM = """\
The weights are random: the picture shows the
sizes and strides of the levels, and not what
training makes a network look for."""


def run_features(image: str, config: str | None, depth: int | None, weights: str | None, out: str) -> int:
    """Run a photograph through a backbone, print a table of its features and draw them.

    Args:
        image: The photograph.
        config: A config file with the backbone.
        depth: The depth of the ResNet. Without either, the network that ``weights`` hold, or ResNet-50.
        weights: What ``load_pretrained`` loads; ``None`` means random weights.
        out: The picture to write (PNG, or any other type that matplotlib writes).

    Returns:
        The exit status, 0.

    Raises:
        ArgumentError: The image cannot be read, the backbone is not for images, the weights do not fit, or ``out`` is
            of no type that matplotlib writes or in no folder.
        ImportError: A library that only pictures need is missing.
        OSError: ``out`` cannot be written.
    """
    check_output("features", out)
    photo = load_photograph(image)
    torch.manual_seed(SEED)
    if weights is None:
        backbone = backbone_for("", config, 50 if depth is None else depth, None)
    else:
        backbone = backbone_for(weights, config, depth, None)
    _check_backbone(backbone)
    report = None
    if weights is None:
        cast(Any, backbone).init_weights()
        print(f"No --weights: random weights, seed {SEED}. --weights torchvision://resnet50 loads trained ones.")
    else:
        report = load_pretrained(backbone, weights)
        print(report.summary())
    show_pyramid(backbone, photo, out, *_facts(weights, report), random=report is None)
    return 0


def show_pyramid(
    backbone: nn.Module, photo: Tensor, out: str, facts: list[str], preprocessing: Preprocessing, random: bool
) -> None:
    """Compute the features of a photograph, print a table of them and draw them.

    Args:
        backbone: The backbone.
        photo: ``uint8`` RGB of shape ``(H, W, 3)``.
        out: The picture to write.
        facts: What there is to say of the weights, in short lines.
        preprocessing: The images that the weights want.
        random: Whether the weights are random.
    """
    features = extract(backbone.eval(), photo, preprocessing)
    infos = cast(Any, backbone).feature_info
    levels = [Level(info.module, info.reduction, level[0].numpy()) for info, level in zip(infos, features)]
    print_table(levels)
    name = f"{type(backbone).__name__}-{cast(Any, backbone).depth}"
    title = f"The feature pyramid of {name}" + (", with random weights" if random else "")
    size = f"{photo.shape[1]} \N{MULTIPLICATION SIGN} {photo.shape[0]} pixels"
    figure = draw_feature_pyramid(photo.numpy(), levels, title, [size, *facts], remark=RANDOM if random else "")
    figure.savefig(out)
    print(f"Picture: {out}")


def check_output(command: str, out: str) -> None:
    """Refuse, before any work is done, what could not be drawn at its end.

    Args:
        command: The subcommand, for the message.
        out: The picture to write.

    Raises:
        ImportError: A library that only pictures need is missing.
        ArgumentError: No picture can be written to ``out``.
    """
    needed = {"matplotlib": "matplotlib", "PIL": "pillow", "rich": "rich"}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"{command} needs {', '.join(missing)}: pip install {' '.join(missing)}")
    check_picture_path(out)


def _check_backbone(backbone: nn.Module) -> None:
    name = type(backbone).__name__
    if not hasattr(backbone, "feature_info"):
        raise ArgumentError(f"the backbone must be a ResNet of this package, got {name}")
    dims, channels = getattr(backbone, "spatial_dims", 2), getattr(backbone, "in_channels", None)
    if dims != 2 or channels not in (3, None):
        raise ArgumentError(
            f"the backbone must take photographs, (N, 3, H, W): got {name} with {dims} dimensions and "
            f"in_channels={channels}"
        )


def _facts(weights: str | None, report: LoadReport | None) -> tuple[list[str], Preprocessing]:
    if report is None:
        return [f"seed {SEED}"], IMAGENET_RGB
    preprocessing = report.preprocessing
    if preprocessing is None:
        print("The weights do not say how to normalise images: taken as torchvision does, RGB.")
        return [f"weights {weights}", "images as torchvision normalises them, RGB"], IMAGENET_RGB
    return [f"weights {weights}", f"{'RGB' if preprocessing.bgr_to_rgb else 'BGR'} images"], preprocessing


def load_photograph(image: str | None) -> Tensor:
    """Read a photograph as ``uint8`` RGB of shape ``(H, W, 3)``, its longer side at most ``LONGEST_SIDE``.

    Raises:
        ArgumentError: The file cannot be read as an image.
    """
    import numpy as np
    from matplotlib.cbook import get_sample_data
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(image) if image is not None else Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
    try:
        with Image.open(path) as opened:
            # Cameras store portraits lying down, with a note on how to turn them.
            photo = _to_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError:
        raise ArgumentError(f"image must be a photograph (JPEG, PNG, ...), and {str(path)!r} is none") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArgumentError(f"image {str(path)!r} cannot be read: {reason}") from error
    photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return torch.from_numpy(np.array(photo))


def _to_rgb(image: Image) -> Image:
    """Convert to 8-bit RGB; of 16-bit values Pillow by itself keeps what is below 256, and all the rest is white."""
    import numpy as np
    from PIL.Image import fromarray

    if image.mode.startswith("I"):
        image = fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


@torch.inference_mode()
def extract(backbone: nn.Module, photo: Tensor, preprocessing: Preprocessing) -> tuple[Tensor, ...]:
    """Compute the features of a photograph.

    Args:
        backbone: The backbone.
        photo: ``uint8`` RGB of shape ``(H, W, 3)``.
        preprocessing: The images that the weights want.

    Returns:
        A tensor of shape ``(1, C, H / stride, W / stride)`` per level.
    """
    pixels = (photo if preprocessing.bgr_to_rgb else photo.flip(-1)).float()
    x = (pixels - torch.tensor(preprocessing.mean)) / torch.tensor(preprocessing.std)
    return cast(tuple[Tensor, ...], backbone(x.permute(2, 0, 1)[None]))


def print_table(levels: list[Level]) -> None:
    """Print a row per level."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("level", style="bold")
    for heading in ("shape (N, C, H, W)", "stride", "channels", "mean activation"):
        table.add_column(heading, justify="right")
    for level in levels:
        table.add_row(
            level.name,
            str((1, *level.features.shape)),
            str(level.stride),
            str(len(level.features)),
            f"{level.features.mean():.4f}",
        )
    Console().print(table)

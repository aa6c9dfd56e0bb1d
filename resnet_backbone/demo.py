"""``resnet-backbone demo``: a photograph through ResNet-18, as a table and as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from mmengine import Config
from torch import Tensor

from .configs import config_path
from .errors import ArgumentError
from .figures import Level, check_picture_path, draw_feature_pyramid
from .registry import build_backbone
from .resnet import ResNet
from .weights import load_pretrained
from .weights.errors import DownloadError

__all__ = ["run_demo"]

CONFIG = "_base_/backbones/resnet18.py"
SEED = 0
LONGEST_SIDE = 1024
"""Pixels; larger photographs are scaled down, so that any photograph takes a second, not a minute."""

# What torchvision's weights were trained on: RGB in [0, 1], normalised by ImageNet's statistics.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def run_demo(image: str | None, out: str) -> int:
    """Run a photograph through ResNet-18, print a table of its features and draw them.

    Args:
        image: The photograph; ``None`` means the portrait of Grace Hopper that matplotlib ships.
        out: The picture to write (PNG, or any other type that matplotlib writes).

    Returns:
        The exit status, 0.

    Raises:
        ArgumentError: ``image`` cannot be read, or ``out`` is of no type that matplotlib writes or in no folder.
        ImportError: A library that only the demo needs is missing.
        OSError: ``out`` cannot be written.
    """
    _check_installed()
    check_picture_path(out)
    photo = load_photograph(image)
    cfg = Config.fromfile(config_path(CONFIG)).model.backbone
    backbone, weights = build_with_weights(cfg)
    features = extract(backbone, photo)
    levels = [
        Level(info.module, info.reduction, level[0].numpy()) for info, level in zip(backbone.feature_info, features)
    ]
    print_table(levels)
    name = f"{cfg.type}-{cfg.depth}"
    size = f"{photo.shape[1]} \N{MULTIPLICATION SIGN} {photo.shape[0]} pixels"
    figure = draw_feature_pyramid(photo.numpy(), levels, title=f"The feature pyramid of {name}", facts=[size, weights])
    figure.savefig(out)
    print(f"Picture: {out}")
    return 0


def _check_installed() -> None:
    needed = {"matplotlib": "matplotlib", "PIL": "pillow", "rich": "rich", "torchvision": "torchvision"}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    if missing:
        raise ImportError(f"the demo needs {', '.join(missing)}: pip install {' '.join(missing)}")


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
            photo = ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError:
        raise ArgumentError(f"image must be a photograph (JPEG, PNG, ...), and {str(path)!r} is none") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ArgumentError(f"image {str(path)!r} cannot be read: {reason}") from error
    photo.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return torch.from_numpy(np.array(photo))


def build_with_weights(cfg: dict[str, Any]) -> tuple[ResNet, str]:
    """Build the backbone with the weights that its config asks for; without a network, with random ones.

    Args:
        cfg: The backbone's config, with a ``Pretrained`` ``init_cfg``.

    Returns:
        The backbone in eval mode, and where its weights come from.
    """
    source = cfg["init_cfg"]["checkpoint"]
    torch.manual_seed(SEED)
    backbone = cast(ResNet, build_backbone({**cfg, "init_cfg": None}))
    backbone.init_weights()
    try:
        load_pretrained(backbone, source)
        weights = f"ImageNet weights, {source}"
    except DownloadError as error:
        print(f"{error}: going on with random weights, seed {SEED}.")
        weights = f"random weights (seed {SEED}): {source} could not be fetched"
    return backbone.eval(), weights


@torch.inference_mode()
def extract(backbone: ResNet, photo: Tensor) -> tuple[Tensor, ...]:
    """Compute the features of a photograph.

    Args:
        backbone: The backbone.
        photo: ``uint8`` RGB of shape ``(H, W, 3)``.

    Returns:
        A tensor of shape ``(1, C, H / stride, W / stride)`` per level.
    """
    x = (photo / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
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

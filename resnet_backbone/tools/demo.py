"""``resnet-backbone demo``: a photograph through ResNet-18, as a table and as a picture."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

import torch
from mmengine import Config

from ..integrations.mmdet.configs import config_path
from ..integrations.mmdet.registry import build_backbone
from ..resnet import ResNet
from ..weights import load_pretrained
from ..weights.errors import DownloadError
from ..weights.preprocessing import IMAGENET_RGB
from .features import SEED, check_output, load_photograph, show_pyramid

__all__ = ["run_demo"]

CONFIG = "_base_/backbones/resnet18.py"


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
    check_output("the demo", out)
    if find_spec("torchvision") is None:
        raise ImportError("the demo needs torchvision: pip install torchvision")
    photo = load_photograph(image)
    backbone, weights, is_random = build_with_weights(Config.fromfile(config_path(CONFIG)).model.backbone)
    show_pyramid(backbone, photo, out, [weights], IMAGENET_RGB, random=is_random)
    return 0


def build_with_weights(cfg: dict[str, Any]) -> tuple[ResNet, str, bool]:
    """Build the backbone with the weights that its config asks for; without a network, with random ones.

    Args:
        cfg: The backbone's config, with a ``Pretrained`` ``init_cfg``.

    Returns:
        The backbone in eval mode, where its weights come from, and whether they are random.
    """
    source = cfg["init_cfg"]["checkpoint"]
    torch.manual_seed(SEED)
    backbone = cast(ResNet, build_backbone({**cfg, "init_cfg": None}))
    backbone.init_weights()
    try:
        load_pretrained(backbone, source)
    except DownloadError as error:
        print(f"{error}: going on with random weights, seed {SEED}.")
        return backbone.eval(), f"random weights (seed {SEED}): {source} could not be fetched", True
    return backbone.eval(), f"ImageNet weights, {source}", False

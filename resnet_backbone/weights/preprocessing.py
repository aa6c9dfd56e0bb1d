"""Which images a set of weights was trained on: mean, standard deviation and channel order.

Weights that came out of Caffe take BGR images of 0 to 255, torchvision's take RGB. A network that is given the other
kind still trains, and ends up worse; so the preprocessing travels with the weights.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from .match import SourceNetwork

__all__ = [
    "DETECTRON_BGR",
    "IMAGENET_RGB",
    "MSRA_BGR",
    "PYCLS_BGR",
    "RESNEST_RGB",
    "Preprocessing",
    "from_meta",
    "infer_preprocessing",
]


class Preprocessing(NamedTuple):
    """How images must be normalised, in the words of mmdet's ``data_preprocessor``.

    Attributes:
        mean: Mean of each channel, for pixels of 0 to 255, in the order in which the network receives them.
        std: Standard deviation of each channel.
        bgr_to_rgb: Whether the network takes RGB; images are read as BGR.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr_to_rgb: bool

    def as_config(self) -> dict[str, Any]:
        """The arguments of ``data_preprocessor=dict(type='DetDataPreprocessor', ...)``."""
        return {"mean": list(self.mean), "std": list(self.std), "bgr_to_rgb": self.bgr_to_rgb}

    def __str__(self) -> str:
        return f"mean={list(self.mean)}, std={list(self.std)}, bgr_to_rgb={self.bgr_to_rgb}"


IMAGENET_RGB = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), bgr_to_rgb=True)
MSRA_BGR = Preprocessing((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), bgr_to_rgb=False)
# Detectron, the Caffe2 code, subtracted these means, to more digits.
DETECTRON_BGR = Preprocessing((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), bgr_to_rgb=False)
PYCLS_BGR = Preprocessing((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), bgr_to_rgb=False)
RESNEST_RGB = Preprocessing((123.68, 116.779, 103.939), (58.393, 57.12, 57.375), bgr_to_rgb=True)


def from_meta(meta: Any) -> Preprocessing | None:
    """Read the preprocessing out of the config that mmengine writes into its checkpoints.

    Args:
        meta: The checkpoint's ``meta``.

    Returns:
        The preprocessing; ``None`` where ``meta`` holds none.
    """
    text = meta.get("cfg") if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        return None
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        values = _arguments(node)
        if {"mean", "std", "bgr_to_rgb"} <= values.keys():
            return _preprocessing(values)
    return None


def _preprocessing(values: Mapping[str, Any]) -> Preprocessing | None:
    try:
        mean, std = (tuple(float(value) for value in values[key]) for key in ("mean", "std"))
        sound = len(mean) == len(std) and all(map(math.isfinite, mean + std))
        return Preprocessing(mean, std, bool(values["bgr_to_rgb"])) if sound else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _arguments(node: ast.AST) -> dict[str, Any]:
    """The literal arguments of a ``dict(...)`` call, or the literal entries of a ``{...}``."""
    pairs: list[tuple[Any, ast.expr]] = []
    if isinstance(node, ast.Call):
        pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
    elif isinstance(node, ast.Dict):
        pairs = [(key.value, value) for key, value in zip(node.keys, node.values) if isinstance(key, ast.Constant)]
    values = {}
    for key, expression in pairs:
        if key in ("mean", "std", "bgr_to_rgb"):
            try:
                values[key] = ast.literal_eval(expression)
            except ValueError:
                continue
    return values


def infer_preprocessing(
    known: Preprocessing | None, style: str | None, meta: Mapping[str, Any], network: SourceNetwork
) -> tuple[Preprocessing | None, str | None]:
    """Infer which images weights take, and where their Bottlenecks stride.

    Args:
        known: The preprocessing that the source says.
        style: The style that the source says.
        meta: What the file says of itself.
        network: The network in the file.

    Returns:
        The preprocessing and the style; ``None`` for what nothing says.
    """
    provenance = meta.get("resnet_backbone")
    if isinstance(provenance, Mapping):
        written = provenance.get("style")
        values = provenance.get("preprocessing")
        preprocessing = _preprocessing(values) if isinstance(values, Mapping) else None
        return preprocessing, written if written in ("pytorch", "caffe") else None
    preprocessing = known or from_meta(meta)
    if not _takes_images(network):
        return preprocessing, style
    scheme, architecture = network.scheme.name, network.architecture
    plain = architecture is not None and architecture.groups == 1
    if scheme in ("Caffe2", "detectron2"):
        # FAIR's own trainings, ResNeXt and group norm, stride in the 3x3; the MSRA weights in the first 1x1.
        group_norm = any("_gn_" in name for name in network.names.values())
        style = style or ("caffe" if plain and not group_norm else "pytorch")
        return preprocessing or (MSRA_BGR if plain else PYCLS_BGR), style
    if scheme == "pycls":
        return preprocessing or PYCLS_BGR, "pytorch"
    # A detector's or a segmenter's file says nothing by its names: either style has them.
    if preprocessing is None and "backbone" in network.prefix and "bottom_up" not in network.prefix:
        return None, style
    return preprocessing or IMAGENET_RGB, style or ("pytorch" if preprocessing is None else None)


def _takes_images(network: SourceNetwork) -> bool:
    """Whether the network is for images, not for signals or volumes, as its first convolution tells."""
    first = network.tensors.get("stem.conv1.weight")
    return first is None or first.dim() == 4

"""Which images a set of weights was trained on: mean, standard deviation and channel order.

Weights that came out of Caffe want BGR images of 0 to 255, torchvision's want RGB. A network fed the other kind still
trains, and ends up worse; so the preprocessing travels with the weights.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = [
    "DETECTRON_BGR",
    "IMAGENET_RGB",
    "MSRA_BGR",
    "PYCLS_BGR",
    "RESNEST_RGB",
    "Preprocessing",
    "from_meta",
]


class Preprocessing(NamedTuple):
    """How images must be normalised, in the words of mmdet's ``data_preprocessor``.

    Attributes:
        mean: Mean of each channel, for pixels of 0 to 255, in the order in which the network receives them.
        std: Standard deviation of each channel.
        bgr_to_rgb: Whether the network wants RGB; images are read as BGR.
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
        return Preprocessing(tuple(values["mean"]), tuple(values["std"]), bool(values["bgr_to_rgb"]))
    except TypeError:
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

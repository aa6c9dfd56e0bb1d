"""Which images a set of weights was trained on, and where its Bottlenecks stride.

Weights that came out of Caffe take BGR images of 0 to 255, torchvision's take RGB. A network that is given the other
kind still trains, and ends up worse; so the preprocessing travels with the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .config import FileConfig, read_config
from .match import SourceNetwork
from .read import metadata_of

__all__ = [
    "DETECTRON_BGR",
    "IMAGENET_RGB",
    "MSRA_BGR",
    "PYCLS_BGR",
    "RESNEST_RGB",
    "Preprocessing",
    "WeightFacts",
    "infer_facts",
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


class WeightFacts(NamedTuple):
    """What is known of weights beyond their tensors.

    Attributes:
        preprocessing: The images that they take; ``None`` where nothing says.
        basis: Who says so: ``'source'``, ``'file'``, or ``'convention'``: usual with these names.
        style: Where their Bottlenecks stride, ``'pytorch'`` or ``'caffe'``; ``None`` where nothing says.
        origin: The path or URL that they came from.
        config: What the config in the file says.
    """

    preprocessing: Preprocessing | None
    basis: str | None
    style: str | None
    origin: str
    config: FileConfig


def infer_facts(
    known: Preprocessing | None, style: str | None, origin: str, checkpoint: Any, network: SourceNetwork
) -> WeightFacts:
    """Gather what the source, the file and its names say of weights.

    Args:
        known: The preprocessing that the source says.
        style: The style that the source says.
        origin: The checkpoint's path or URL.
        checkpoint: What was read.
        network: The network in it.
    """
    meta = metadata_of(checkpoint)
    config = read_config(meta)
    provenance = meta.get("resnet_backbone")
    if isinstance(provenance, Mapping):
        written = _of_mapping(provenance.get("preprocessing"))
        basis = provenance.get("preprocessing_basis", "file")
        said = basis if written and basis in ("source", "file", "convention") else None
        return WeightFacts(written, said, _style(provenance.get("style")), origin, config)
    style = style or _style(config.backbone.get("style"))
    usual, usual_style = infer_preprocessing(network)
    # Torchvision's names, which everybody uses, do not tell the style where somebody says other things.
    style_by_names = None if network.scheme.is_own else usual_style
    if known is not None:
        return WeightFacts(known, "source", style or style_by_names, origin, config)
    written = _of_mapping(config.preprocessing) or _of_detectron2(checkpoint, network)
    if written is not None:
        return WeightFacts(written, "file", style or style_by_names, origin, config)
    if isinstance(checkpoint, Mapping) and checkpoint.get("__author__") == "torchvision":
        return WeightFacts(IMAGENET_RGB, "file", style or "pytorch", origin, config)
    return WeightFacts(usual, "convention" if usual else None, style or usual_style, origin, config)


def infer_preprocessing(network: SourceNetwork) -> tuple[Preprocessing | None, str | None]:
    """Return which images and which style are usual for a network with such names and shapes.

    Args:
        network: The network in the file.

    Returns:
        The preprocessing and the style; ``None`` for what its names do not tell.
    """
    scheme, architecture = network.scheme.name, network.architecture
    first = network.tensors.get("stem.conv1.weight")
    # Signals, volumes and images of other than three channels are no ImageNet.
    if first is not None and (first.dim() != 4 or first.shape[1] != 3):
        return None, None
    plain = architecture is not None and architecture.groups == 1
    if scheme in ("Caffe2", "detectron2"):
        # FAIR's own trainings, ResNeXt and group norm, stride in the 3x3; the MSRA weights in the first 1x1.
        group_norm = any("_gn_" in name for name in network.names.values())
        return MSRA_BGR if plain else PYCLS_BGR, "caffe" if plain and not group_norm else "pytorch"
    if scheme == "pycls":
        return PYCLS_BGR, "pytorch"
    # A detector's or a segmenter's file says nothing by its names: either style has them.
    if "backbone" in network.prefix:
        return None, None
    return IMAGENET_RGB, "pytorch"


def _style(value: Any) -> str | None:
    return value if isinstance(value, str) and value in ("pytorch", "caffe") else None


def _of_mapping(values: Any) -> Preprocessing | None:
    """Read mean, std and channel order as mmengine's configs and our provenance write them, if they are sound."""
    if not isinstance(values, Mapping):
        return None
    try:
        mean, std = (tuple(map(float, _sequence(values[key]))) for key in ("mean", "std"))
        rgb = values["bgr_to_rgb"] if "bgr_to_rgb" in values else values["to_rgb"]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not 0 < len(mean) == len(std) or not all(map(math.isfinite, mean + std)) or not isinstance(rgb, bool):
        return None
    return Preprocessing(mean, std, rgb)


def _sequence(value: Any) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return value


def _of_detectron2(checkpoint: Any, network: SourceNetwork) -> Preprocessing | None:
    """Read the mean and standard deviation that detectron2 saves with a model; their order tells RGB from BGR."""
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, Mapping) else None
    if network.scheme.name != "detectron2" or not isinstance(state, Mapping):
        return None
    mean, std = (_numbers(state.get(key)) for key in ("pixel_mean", "pixel_std"))
    if len(mean) != 3 or len(std) != 3 or mean[0] == mean[2]:
        return None
    # ImageNet's red is brighter than its blue.
    return _of_mapping({"mean": mean, "std": std, "bgr_to_rgb": mean[0] > mean[2]})


def _numbers(value: Any) -> tuple[float, ...]:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy() if value.numel() <= 3 and value.is_floating_point() else None
    if value is None or getattr(value, "size", 0) > 3:
        return ()
    return tuple(round(float(number), 4) for number in value.reshape(-1))

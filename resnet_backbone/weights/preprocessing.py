"""Infer the preprocessing and the style of weights.

Caffe's weights expect BGR images from 0 to 255, torchvision's expect RGB. With the wrong kind a network still trains,
but becomes worse, so each set of weights has its preprocessing.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .match import SourceNetwork

__all__ = [
    "DETECTRON_BGR",
    "IMAGENET_RGB",
    "MSRA_BGR",
    "PYCLS_BGR",
    "RESNEST_RGB",
    "Preprocessing",
    "WeightFacts",
    "infer_facts",
    "metadata_of",
    "of_repository",
]


class Preprocessing(NamedTuple):
    """How images must be normalized, with the arguments of mmdet's ``data_preprocessor``.

    Attributes:
        mean: Mean of each channel, for pixels from 0 to 255, in the network's order of channels.
        std: Standard deviation of each channel.
        bgr_to_rgb: Whether the network expects RGB; images are read as BGR.
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
# Detectron (Caffe2) uses the same means with more digits.
DETECTRON_BGR = Preprocessing((102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0), bgr_to_rgb=False)
PYCLS_BGR = Preprocessing((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), bgr_to_rgb=False)
RESNEST_RGB = Preprocessing((123.68, 116.779, 103.939), (58.393, 57.12, 57.375), bgr_to_rgb=True)


class WeightFacts(NamedTuple):
    """What is known about weights beyond their tensors.

    Attributes:
        preprocessing: The preprocessing that they expect; ``None`` if unknown.
        basis: ``preprocessing_basis`` of ``LoadReport``.
        style: Style of their Bottlenecks, ``'pytorch'`` or ``'caffe'``; ``None`` if unknown.
        origin: Path or URL of the file.
        backbone_cfg: The backbone's arguments in the file's config, if they are literals.
    """

    preprocessing: Preprocessing | None
    basis: str | None
    style: str | None
    origin: str
    backbone_cfg: Mapping[str, Any]


def infer_facts(
    known: Preprocessing | None, style: str | None, origin: str, checkpoint: Any, network: SourceNetwork
) -> WeightFacts:
    """Collect what the source (``known`` and ``style``), the file and the parameter names say, in this order."""
    meta = metadata_of(checkpoint)
    config, backbone_cfg = _read_config(meta)
    provenance = meta.get("resnet_backbone")
    if isinstance(provenance, Mapping):
        written = _of_mapping(provenance.get("preprocessing"))
        basis = provenance.get("preprocessing_basis", "file")
        said = basis if written and isinstance(basis, str) and basis in ("source", "file", "convention") else None
        return WeightFacts(written, said, _style(provenance.get("style")), origin, backbone_cfg)
    usual, usual_style = _usual_facts(network)
    style = style or _style(backbone_cfg.get("style"))
    written = known or _of_mapping(config) or _of_detectron2(checkpoint, network)
    if written is not None:
        # Everybody uses torchvision's names, so they do not show the style of a file that states its preprocessing.
        style = style or (None if network.scheme.is_own else usual_style)
        return WeightFacts(written, "source" if known else "file", style, origin, backbone_cfg)
    author = checkpoint.get("__author__") if isinstance(checkpoint, Mapping) else None
    # Arrays cannot be compared.
    if isinstance(author, str) and author == "torchvision":
        return WeightFacts(IMAGENET_RGB, "file", style or "pytorch", origin, backbone_cfg)
    return WeightFacts(usual, "convention" if usual else None, style or usual_style, origin, backbone_cfg)


def _usual_facts(network: SourceNetwork) -> tuple[Preprocessing | None, str | None]:
    """Return the usual preprocessing and style of weights with a network's names; ``None`` if unknown."""
    scheme, architecture = network.scheme.name, network.architecture
    first = network.tensors.get("stem.conv1.weight")
    # Signals, volumes and images without three channels are not from ImageNet.
    if first is not None and (first.dim() != 4 or first.shape[1] != 3):
        return None, None
    plain = architecture is not None and architecture.groups == 1
    if scheme in ("Caffe2", "detectron2"):
        if "layer1.0.conv2.fc1.weight" in network.tensors:
            return RESNEST_RGB, "pytorch"
        # The networks that FAIR trained (ResNeXt, group norm) stride in the 3x3, MSRA's in the first 1x1.
        group_norm = any("_gn_" in name for name in network.names.values())
        return MSRA_BGR if plain else PYCLS_BGR, "caffe" if plain and not group_norm else "pytorch"
    if scheme == "pycls":
        return PYCLS_BGR, "pytorch"
    # The names in detectors and segmentation models are the same for either style.
    if "backbone" in network.prefix:
        return None, None
    return IMAGENET_RGB, "pytorch"


def of_repository(read: Callable[[str], str]) -> Preprocessing | None:
    """Return the preprocessing that timm or transformers store with weights. ``read`` returns the text of a file."""
    for name, parse in (("config.json", _of_timm), ("preprocessor_config.json", _of_transformers)):
        try:
            return parse(json.loads(read(name)))
        except Exception:  # noqa: BLE001 - the weights load without it
            continue
    return None


def _of_timm(config: Any) -> Preprocessing:
    mean, std = (_rgb(config["pretrained_cfg"][key], 255) for key in ("mean", "std"))
    return Preprocessing(mean, std, bgr_to_rgb=True)


def _of_transformers(config: Any) -> Preprocessing:
    """Read the config of an image processor, which may rescale images and then normalize them."""
    scale = 1 / float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1
    normalizes = config.get("do_normalize", True)
    mean = _rgb(config["image_mean"], scale) if normalizes else (0.0, 0.0, 0.0)
    std = _rgb(config["image_std"] if normalizes else (1, 1, 1), scale)
    return Preprocessing(mean, std, bgr_to_rgb=not config.get("do_flip_channel_order", False))


def _rgb(values: Any, scale: float) -> tuple[float, ...]:
    numbers = tuple(round(scale * value, 4) for value in _floats(values))
    if len(numbers) != 3:
        raise ValueError("must be three numbers")
    return numbers


def _floats(values: Any) -> tuple[float, ...]:
    numbers = tuple(map(float, values)) if isinstance(values, (list, tuple)) else ()
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError("must be finite numbers")
    return numbers


def _style(value: Any) -> str | None:
    return value if isinstance(value, str) and value in ("pytorch", "caffe") else None


def _of_mapping(values: Any) -> Preprocessing | None:
    """Read mean, standard deviation and channel order from a config or from our provenance, if they are valid."""
    if not isinstance(values, Mapping):
        return None
    try:
        mean, std = _floats(values["mean"]), _floats(values["std"])
        rgb = values["bgr_to_rgb"] if "bgr_to_rgb" in values else values["to_rgb"]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return Preprocessing(mean, std, rgb) if len(mean) == len(std) and isinstance(rgb, bool) else None


def _of_detectron2(checkpoint: Any, network: SourceNetwork) -> Preprocessing | None:
    """Read the mean and standard deviation that detectron2 saves with a model. Their order shows RGB or BGR."""
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, Mapping) else None
    if network.scheme.name != "detectron2" or not isinstance(state, Mapping):
        return None
    mean, std = _numbers(state.get("pixel_mean")), _numbers(state.get("pixel_std"))
    if len(mean) != 3 or len(std) != 3 or mean[0] == mean[2]:
        return None
    # In ImageNet, red is brighter than blue.
    return _of_mapping({"mean": mean, "std": std, "bgr_to_rgb": mean[0] > mean[2]})


def _numbers(value: Any) -> tuple[float, ...]:
    """Return the values of a tensor or array with at most three, and nothing for any other object."""
    if not isinstance(value, (Tensor, np.ndarray)) or math.prod(value.shape) > 3:
        return ()
    try:
        return tuple(round(float(number), 4) for number in value.reshape(-1).tolist())
    except (OverflowError, RuntimeError, TypeError, ValueError):  # on the meta device, or not numbers
        return ()


def metadata_of(checkpoint: Any) -> dict[str, Any]:
    """Return the metadata of a checkpoint: mmengine's ``meta``, or the provenance that ``convert`` writes."""
    meta = checkpoint.get("meta", checkpoint.get("__metadata__")) if isinstance(checkpoint, Mapping) else None
    meta = dict(meta) if isinstance(meta, Mapping) else {}
    if isinstance(meta.get("resnet_backbone"), str):
        try:
            meta["resnet_backbone"] = json.loads(meta["resnet_backbone"][:100_000])
        except (ValueError, RecursionError):
            del meta["resnet_backbone"]
    return meta


# Longer than any config, but still parsed quickly (an f-string takes quadratic time before Python 3.12).
_MAX_LENGTH = 100_000


def _read_config(meta: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Mapping[str, Any]]:
    """Read the preprocessing and the backbone of a config, which mmengine saves as ``cfg``, mmcv 1 as ``config``."""
    names = _top_level(meta.get("cfg", meta.get("config")))
    model = names.get("model")
    model = model if isinstance(model, Mapping) else {}
    backbone = model.get("backbone")
    # The model's own comes first, then module-level names, then mmdet 2's pipelines.
    places = model.get("data_preprocessor"), names.get("data_preprocessor"), names.get("img_norm_cfg")
    preprocessing = next(filter(None, map(_of_config, places)), None)
    if preprocessing is None:
        steps = [step for step in _mappings(names) if step.get("type") == "Normalize" and _of_config(step)]
        preprocessing = steps[0] if steps and all(_same(step, steps[0]) for step in steps) else None
    return preprocessing, backbone if isinstance(backbone, Mapping) else {}


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("mean", "std", "to_rgb"))


def _of_config(values: Any) -> Mapping[str, Any] | None:
    """Find the mean, standard deviation and channel order of a data preprocessor, or of the one that it wraps."""
    if not isinstance(values, Mapping):
        return None
    if "mean" in values and "std" in values and ("bgr_to_rgb" in values or "to_rgb" in values):
        return values
    return _of_config(values.get("data_preprocessor"))


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _mappings(item)


def _top_level(text: Any) -> dict[str, Any]:
    """Return the names that a config assigns and their values, if these are literals."""
    if not isinstance(text, str) or len(text) > _MAX_LENGTH:
        return {}
    try:
        return {
            target.id: _literal(node.value)
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _literal(node: ast.expr) -> Any:
    """Evaluate a literal, including ``dict(...)``; anything else is ``None``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values)
        return {key.value: _literal(value) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    try:
        return ast.literal_eval(node) if isinstance(node, (ast.Constant, ast.UnaryOp)) else None
    except ValueError:
        return None

"""What weights want of the network around them: their images, their style, their norm layers' mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .fit import File, Fit
from .network import Network
from .preprocessing import IMAGENET_RGB, MSRA_BGR, PYCLS_BGR, Preprocessing, from_meta
from .read import metadata_of
from .sources import Resolved

__all__ = ["wants", "warnings_about"]


def wants(resolved: Resolved, checkpoint: Any, file: File) -> tuple[Preprocessing | None, str | None]:
    """Say which images and which style weights want: by their source, by what the file says, by their names."""
    meta = metadata_of(checkpoint)
    provenance = meta.get("resnet_backbone")
    if isinstance(provenance, Mapping):
        values = provenance.get("preprocessing")
        known = Preprocessing(tuple(values["mean"]), tuple(values["std"]), values["bgr_to_rgb"]) if values else None
        return known, provenance.get("style")
    preprocessing = resolved.preprocessing or from_meta(meta)
    if not _sees_images(file):
        return preprocessing, resolved.style
    family, network = file.candidate.family.name, file.network
    plain = network is not None and network.groups == 1
    if family in ("Caffe2", "detectron2"):
        # FAIR's own trainings, ResNeXt and group norm, stride in the 3x3; the MSRA weights in the first 1x1.
        group_norm = any("_gn_" in name for name in file.names.values())
        style = resolved.style or ("caffe" if plain and not group_norm else "pytorch")
        return preprocessing or (MSRA_BGR if plain else PYCLS_BGR), style
    if family == "pycls":
        return preprocessing or PYCLS_BGR, "pytorch"
    # A detector's or a segmenter's file says nothing by its names: either style has them.
    if preprocessing is None and "backbone" in file.candidate.prefix and "bottom_up" not in file.candidate.prefix:
        return None, resolved.style
    return preprocessing or IMAGENET_RGB, resolved.style or ("pytorch" if preprocessing is None else None)


def _sees_images(file: File) -> bool:
    """Whether the network is for images, not for signals or volumes, as its first convolution tells."""
    first = file.tensors.get("conv1.weight", file.tensors.get("stem.0.weight"))
    return first is None or first.dim() == 4


def warnings_about(
    style: str | None, preprocessing: Preprocessing | None, network: Network | None, result: Fit, backbone: nn.Module
) -> Iterator[str]:
    """Find what deserves a second look where weights and backbone meet.

    Args:
        style: Where the weights' Bottlenecks stride; ``None`` where nothing says.
        preprocessing: The images that they want; ``None`` where nothing says.
        network: The network that they are of.
        result: How they fit.
        backbone: The backbone.

    Yields:
        Warnings, in words.
    """
    own = getattr(backbone, "style", None)
    if style is not None and own is not None and own != style and network is not None and network.bottleneck:
        yield (
            f"these weights stride as style='{style}' does and want images of {preprocessing}; "
            f"the backbone has style={own!r}"
        )
    trains = [
        module
        for module in backbone.modules()
        if isinstance(module, _BatchNorm) and getattr(backbone, "norm_eval", False) is not True
    ]
    if result.folded and trains:
        yield (
            "the norm layers of these weights are folded: they have no statistics to go on from, so keep them in eval "
            "mode (norm_eval=True) with norm_cfg=dict(type='BN', requires_grad=False)"
        )

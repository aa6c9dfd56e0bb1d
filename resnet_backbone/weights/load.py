"""Load a checkpoint into a backbone: all of it that belongs there, or nothing and a reason."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import ArgumentTypeError
from .checkpoint import FoundNetwork, find_network, open_checkpoint
from .checks import check_match, check_values, warnings_about
from .errors import MismatchError
from .match import Match, match_state_dict
from .names import PrefixMatch, source_name
from .preprocessing import infer_preprocessing
from .read import metadata_of
from .report import LoadReport
from .sources import ResolvedSource

__all__ = ["load_pretrained"]


def load_pretrained(
    backbone: nn.Module,
    source: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    strict: bool = True,
    sha256: str | None = None,
    progress: bool = True,
    map_location: Any = "cpu",
) -> LoadReport:
    """Load pretrained weights, whatever framework wrote them, into a backbone.

    The file's names are recognised and translated. Nothing is changed unless everything that the backbone needs is
    there and sound; after an exception the backbone is as it was before.

    Args:
        backbone: A ResNet of this package, or a network that names its parts likewise.
        source: A path (``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors``, detectron2's ``.pkl``), an http or https URL,
            ``torchvision://resnet50``, ``torchvision://ResNet50_Weights.IMAGENET1K_V2``, ``timm://resnet50d.ra2_in1k``,
            ``hf://ORG/REPO/FILE``, ``open-mmlab://NAME``, or whatever mmengine has a loader for.
        prefix: What precedes the network's names in the file, such as ``'backbone.'``; ``None`` finds it.
        strict: Refuse a file that lacks a tensor of the backbone, holds one of another shape, or is of another network.
            Otherwise what matches is loaded, and the report says what does not.
        sha256: The file's SHA-256, or its first 8 digits or more.
        progress: Whether to show a progress bar while downloading.
        map_location: Where the file's tensors are read to, as in ``torch.load``. The backbone stays where it is.

    Returns:
        What was loaded, what was not, and which images the weights take.

    Raises:
        CheckpointError: The file cannot be had or read, or does not match; the subclasses tell these apart.
        ArgumentTypeError: ``backbone``, ``source`` or ``prefix`` is of another type than above.

    Examples:
        >>> from resnet_backbone import ResNet, load_pretrained
        >>> report = load_pretrained(ResNet(depth=18), "torchvision://resnet18")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    _check_arguments(backbone, prefix)
    resolved, checkpoint = open_checkpoint(source, sha256, progress, map_location)
    found = find_network(checkpoint, prefix, resolved.origin, backbone)
    match = match_state_dict(backbone, found.network)
    report = _report(os.fsdecode(source), resolved, checkpoint, found, match, backbone)
    check_match(report, found.network, backbone, strict)
    check_values(report.origin, match.loaded, backbone.state_dict())
    _copy(backbone, match.loaded)
    for warning in report.warnings:
        print_log(f"resnet_backbone: {warning}", logger="current", level=logging.WARNING)
    return report


def _check_arguments(backbone: Any, prefix: Any) -> None:
    if not isinstance(backbone, nn.Module):
        raise ArgumentTypeError(f"backbone must be a torch.nn.Module, got {backbone!r}")
    if prefix is not None and not isinstance(prefix, str):
        raise ArgumentTypeError(f"prefix must be a string, such as 'backbone.', or None, got {prefix!r}")
    unreal = next((name for name, value in backbone.state_dict().items() if value.is_meta), None)
    if unreal is not None:
        raise MismatchError(
            f"backbone has no memory for {unreal}: it is on the meta device; call backbone.to_empty(device='cpu') first"
        )


def _report(
    source: str, resolved: ResolvedSource, checkpoint: Any, found: FoundNetwork, match: Match, backbone: nn.Module
) -> LoadReport:
    network = found.network
    meta = metadata_of(checkpoint)
    preprocessing, style = infer_preprocessing(resolved.preprocessing, resolved.style, meta, network)
    outside = [key for key in found.keys if not key.startswith(network.prefix)]
    return LoadReport(
        source=source,
        origin=resolved.origin,
        format=source_name(PrefixMatch(network.prefix, network.scheme), found.keys),
        network=network.architecture.name if network.architecture else "network",
        prefix=network.prefix,
        loaded=tuple(match.loaded),
        renamed=match.renamed,
        unused=tuple(match.unused + outside),
        unexpected=tuple(match.unexpected),
        missing=tuple(match.missing),
        added=tuple(match.added),
        mismatched=tuple(match.mismatched),
        changes=tuple(match.changes),
        warnings=tuple(warnings_about(style, preprocessing, network.architecture, match, backbone)),
        preprocessing=preprocessing,
        style=style,
    )


def _copy(backbone: nn.Module, loaded: Mapping[str, Tensor]) -> None:
    """Load tensors, all of which are known to match, into a backbone; undo it should that fail all the same.

    ``load_state_dict`` does it, so that the backbone's own checks and hooks have their say.
    """
    state = backbone.state_dict()
    before = {name: state[name].detach().clone() for name in loaded}
    new = OrderedDict(loaded)
    new._metadata = getattr(state, "_metadata", None)  # type: ignore[attr-defined]
    try:
        backbone.load_state_dict(new, strict=False)
    except BaseException:
        with torch.no_grad():
            for name, value in before.items():
                state[name].copy_(value)
        raise

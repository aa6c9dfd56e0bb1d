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

from ..errors import ArgumentError, ArgumentTypeError, MismatchError
from .checkpoint import FoundNetwork, find_network, open_checkpoint
from .match import InputChannels, Match, check_input_channels, match_state_dict
from .names import PrefixMatch, find_prefixes, source_name, strip_wrappers
from .preprocessing import WeightFacts, infer_facts
from .report import LoadReport, check_function, check_match, check_values, warnings_about
from .sources import ResolvedSource

__all__ = ["find_backbone", "load_pretrained"]


def load_pretrained(
    backbone: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    prefix: str | None = None,
    strict: bool = True,
    sha256: str | None = None,
    progress: bool = True,
    map_location: Any = "cpu",
    input_channels: InputChannels = "repeat",
) -> LoadReport:
    """Load pretrained weights, whatever framework wrote them, into a backbone.

    The file's names are recognised and translated. Nothing is changed unless everything that the backbone needs is
    there and sound; after an exception the backbone is as it was before.

    Args:
        backbone: A ResNet of this package, or a network that names its parts likewise; or a module that holds one:
            ``DistributedDataParallel``, ``torch.compile``'s, an averaged model, ``with_fpn``'s, a whole detector.
        source: A path (``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors``, detectron2's ``.pkl``, Paddle's
            ``.pdparams``, the index of a sharded checkpoint), an http or https URL, ``torchvision://resnet50``,
            ``torchvision://ResNet50_Weights.IMAGENET1K_V2``, ``timm://resnet50d.ra2_in1k``, ``hf://ORG/REPO/FILE``,
            ``detectron2://PATH``, ``open-mmlab://NAME``, or whatever mmengine has a loader for; or a state dict.
        prefix: What precedes the network's names in the file, such as ``'backbone.'``; ``None`` finds it.
        strict: Refuse a file that lacks a tensor of the backbone, holds one of another shape, or is of another network.
            Otherwise what matches is loaded, and the report says what does not.
        sha256: The file's SHA-256, or its first 8 digits or more.
        progress: Whether to show a progress bar while downloading.
        map_location: Where the file's tensors are read to, as in ``torch.load``. The backbone stays where it is.
        input_channels: The first convolution's weights where the backbone has another number of input channels than
            the file: ``'repeat'`` repeats the file's and keeps the sum (and adds them up for one channel), ``'red'``
            adds copies of the red one, ``'zeros'`` adds zeros; a mapping names, for each of the backbone's channels,
            the file's channel to copy, by its index or as ``'red'``, ``'green'`` or ``'blue'``, and zeros the others.

    Returns:
        What was loaded, what was not, and which images the weights take.

    Raises:
        CheckpointError: The file cannot be had or read, or does not match; the subclasses tell these apart.
        ArgumentError: An argument has a value that is not allowed, or ``backbone`` holds several ResNets.
        DeployedError: The backbone is deployed and compiled: its weights are constants.

    Examples:
        >>> from resnet_backbone import ResNet, load_pretrained
        >>> report = load_pretrained(ResNet(depth=18), "torchvision://resnet18")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    _check_arguments(backbone, source, prefix, sha256)
    check_input_channels(input_channels)
    backbone = find_backbone(backbone)
    if isinstance(source, Mapping):
        resolved, checkpoint = ResolvedSource(None, "the state dict"), source
    else:
        resolved, checkpoint = open_checkpoint(source, sha256, progress, map_location)
    found = find_network(checkpoint, prefix, resolved.origin, backbone)
    facts = infer_facts(resolved.preprocessing, resolved.style, resolved.origin, checkpoint, found.network)
    bgr = facts.preprocessing is not None and not facts.preprocessing.bgr_to_rgb
    match = match_state_dict(backbone, found.network, input_channels, bgr)
    report = _report(source, resolved, found, match, facts, backbone)
    check_match(report, found.network, backbone, strict)
    if strict:
        check_function(report.origin, facts, backbone)
    check_values(report.origin, match.loaded, backbone.state_dict())
    _copy(backbone, match.loaded)
    for warning in report.warnings:
        print_log(f"resnet_backbone: {warning}", logger="current", level=logging.WARNING)
    return report


def find_backbone(module: nn.Module) -> nn.Module:
    """Return the ResNet in a module: the module itself, or what it wraps or holds.

    Args:
        module: A network, or a wrapper or detector around one.

    Raises:
        ArgumentError: It holds several.
    """
    matches = find_prefixes(strip_wrappers(key) for key in module.state_dict())
    prefixes = list(dict.fromkeys(match.prefix for match in matches if match.scheme.is_own))
    if len(prefixes) > 1 and "" not in prefixes:
        names = ", ".join(prefix.rstrip(".") for prefix in prefixes)
        raise ArgumentError(f"backbone must be one ResNet; this {type(module).__name__} holds several: {names}")
    prefix = "" if not prefixes or "" in prefixes else prefixes[0]
    # Of a wrapper and what it wraps, the latter: a compiled module inside DistributedDataParallel, for example.
    paths = [name for name, _ in module.named_modules() if strip_wrappers(f"{name}." if name else "") == prefix]
    return module.get_submodule(max(paths, key=len))


def _check_arguments(backbone: Any, source: Any, prefix: Any, sha256: Any) -> None:
    if not isinstance(backbone, nn.Module):
        raise ArgumentTypeError(f"backbone must be a torch.nn.Module, got {backbone!r}")
    if prefix is not None and not isinstance(prefix, str):
        raise ArgumentTypeError(f"prefix must be a string, such as 'backbone.', or None, got {prefix!r}")
    if isinstance(source, nn.Module):
        raise ArgumentTypeError("source must be a state dict, a path or a name, got a module: pass its state_dict()")
    if isinstance(source, Mapping) and sha256 is not None:
        raise ArgumentError(f"sha256 is for files, and source is a state dict: got sha256={sha256!r}")
    for name, value in backbone.state_dict().items():
        if value.is_meta:
            raise MismatchError(
                f"backbone has no memory for {name}: it is on the meta device; call "
                "backbone.to_empty(device='cpu') first"
            )
        if type(value).__name__ == "DTensor":
            raise MismatchError(f"backbone's {name} is sharded (a DTensor): load before fully_shard()")


def _report(
    source: str | os.PathLike[str] | Mapping[str, Any],
    resolved: ResolvedSource,
    found: FoundNetwork,
    match: Match,
    facts: WeightFacts,
    backbone: nn.Module,
) -> LoadReport:
    network = found.network
    outside = [key for key in found.keys if not key.startswith(network.prefix)]
    return LoadReport(
        source=resolved.origin if isinstance(source, Mapping) else os.fsdecode(source),
        origin=resolved.origin,
        format=source_name(PrefixMatch(network.prefix, network.scheme), found.keys),
        network=network.architecture.name if network.architecture else "network",
        prefix=network.prefix,
        container=found.container,
        averaged=found.averaged,
        loaded=tuple(match.loaded),
        renamed=match.renamed,
        unused=tuple(match.unused + outside),
        unexpected=tuple(match.unexpected),
        missing=tuple(match.missing),
        added=tuple(match.added),
        mismatched=tuple(match.mismatched),
        changes=tuple(match.changes),
        warnings=tuple(warnings_about(facts, network, match, backbone)),
        preprocessing=facts.preprocessing,
        preprocessing_basis=facts.basis,
        style=facts.style,
    )


def _copy(backbone: nn.Module, loaded: Mapping[str, Tensor]) -> None:
    """Load tensors, all of which are known to match, into a backbone; undo it should that fail all the same.

    ``load_state_dict`` does it, so that the backbone's own checks and hooks apply.
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

"""Load a checkpoint into a backbone: all of it that belongs there, or nothing and a reason."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import ArgumentTypeError
from .errors import CheckpointError, MismatchError
from .find import find_network, open_checkpoint
from .fit import File, Fit, backbone_names, fit
from .formats import label
from .network import Network, describe_difference
from .report import LoadReport
from .sources import Resolved
from .wants import wants, warnings_about

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
            Otherwise what fits is loaded, and the report says what did not.
        sha256: The file's SHA-256, or its first 8 digits or more.
        progress: Whether to show a progress bar while downloading.
        map_location: Where the file's tensors are read to, as in ``torch.load``. The backbone stays where it is.

    Returns:
        What was loaded, what was not, and which images the weights want.

    Raises:
        CheckpointError: The file cannot be had or read, or does not fit; the subclasses tell these apart.
        ArgumentTypeError: ``backbone``, ``source`` or ``prefix`` is of another type than above.

    Examples:
        >>> from resnet_backbone import ResNet, load_pretrained
        >>> report = load_pretrained(ResNet(depth=18), "torchvision://resnet18")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    _check_arguments(backbone, prefix)
    resolved, checkpoint = open_checkpoint(source, sha256, progress, map_location)
    file, all_keys = find_network(checkpoint, prefix, resolved.origin, backbone)
    result = fit(backbone, file)
    report = _report(os.fsdecode(source), resolved, checkpoint, file, all_keys, result, backbone)
    _check(report, file, result, backbone, strict)
    _check_values(report.origin, result.loaded, backbone.state_dict())
    _copy(backbone, result.loaded)
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
    source: str,
    resolved: Resolved,
    checkpoint: Any,
    file: File,
    all_keys: list[str],
    result: Fit,
    backbone: nn.Module,
) -> LoadReport:
    preprocessing, style = wants(resolved, checkpoint, file)
    outside = [key for key in all_keys if not key.startswith(file.candidate.prefix)]
    return LoadReport(
        source=source,
        origin=resolved.origin,
        format=label(file.candidate, all_keys),
        network=file.network.name if file.network else "network",
        prefix=file.candidate.prefix,
        loaded=tuple(result.loaded),
        renamed=result.renamed,
        unused=tuple(result.unused + outside),
        unexpected=tuple(result.unexpected),
        missing=tuple(result.missing),
        added=tuple(result.added),
        mismatched=tuple(result.mismatched),
        changes=tuple(result.changes),
        warnings=tuple(warnings_about(style, preprocessing, file.network, result, backbone)),
        preprocessing=preprocessing,
        style=style,
    )


def _check(report: LoadReport, file: File, result: Fit, backbone: nn.Module, strict: bool) -> None:
    """Refuse what does not fit, with the reason that says most."""
    if not result.loaded:
        raise MismatchError(f"nothing of {report.origin} fits the backbone: it holds a {report.network}")
    # Convolutions alone, their norm layers left out, would compute something else: no caller can want that.
    if getattr(backbone, "deployed", False) and _has_other_norms(file, backbone):
        raise MismatchError(
            f"{report.origin} does not fit: it has norm layers, and switch_to_deploy() has folded the backbone's away: "
            "load it before switch_to_deploy()"
        )
    if strict:
        problem = _problem(report, file, backbone)
        if problem is not None:
            raise MismatchError(f"{report.origin} does not fit: {problem}")


def _has_other_norms(file: File, backbone: nn.Module) -> bool:
    ours = set(backbone_names(backbone)[0].values())
    return any(re.search(r"\bnorm\d?\.weight$", name) and name not in ours for name in file.tensors)


def _check_values(origin: str, loaded: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that hold no usable numbers, in the file or in the backbone's dtype."""
    for name, value in loaded.items():
        refused = f"{origin} is not loaded: {name}"
        if value.is_meta:
            raise CheckpointError(f"{refused} is on the meta device: it has a shape and no numbers")
        if not value.is_floating_point():
            if name.endswith("num_batches_tracked"):
                continue
            raise CheckpointError(f"{refused} is of dtype {value.dtype}, not floating-point")
        # float32 holds every number of the narrower dtypes, and some of these have no isfinite of their own.
        wide = value if value.dtype == torch.float64 else value.float()
        if not bool(torch.isfinite(wide).all()):
            raise CheckpointError(f"{refused} holds NaN or Inf")
        if not bool(torch.isfinite(wide.to(state[name].dtype)).all()):
            raise CheckpointError(f"{refused} holds numbers beyond {state[name].dtype}, the backbone's dtype")


def _problem(report: LoadReport, file: File, backbone: nn.Module) -> str | None:
    _, own = backbone_names(backbone)
    if file.network is not None and own is not None:
        difference = describe_difference(file.network, own, getattr(backbone, "depth", None))
        if difference is not None:
            return difference
        norms = _norm_difference(report, file.network, own)
        if norms is not None:
            return norms
    problems = []
    if report.missing:
        problems.append(f"the file lacks {_listed(report.missing)}")
    if report.mismatched:
        shapes = [f"{name} ({theirs} in the file, {ours} in the backbone)" for name, theirs, ours in report.mismatched]
        problems.append(f"shapes differ: {_listed(shapes)}")
    if report.unexpected:
        problems.append(f"the backbone lacks {_listed(report.unexpected)}")
    return f"{'; '.join(problems)}. strict=False loads the rest" if problems else None


def _norm_difference(report: LoadReport, file: Network, own: Network) -> str | None:
    lacks_statistics = any(name.endswith("running_var") for name in report.missing)
    if own.running_statistics and not file.running_statistics and lacks_statistics:
        return (
            "its norm layers have no running statistics, so they are group norm, or another kind, where the backbone "
            "has batch norm; norm_cfg=dict(type='GN', num_groups=32) is usual"
        )
    if file.running_statistics and not own.running_statistics:
        return "its norm layers are batch norm, with running statistics; the backbone's keep none"
    return None


def _listed(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _copy(backbone: nn.Module, loaded: Mapping[str, Tensor]) -> None:
    """Copy tensors, all of which are known to fit, into a backbone; undo it should that fail all the same."""
    state = backbone.state_dict()
    before = {name: state[name].detach().clone() for name in loaded}
    try:
        with torch.no_grad():
            for name, value in loaded.items():
                state[name].copy_(value)
    except BaseException:
        with torch.no_grad():
            for name, value in before.items():
                state[name].copy_(value)
        raise

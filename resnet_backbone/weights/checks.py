"""What refuses a match between a file and a backbone, and what only deserves a warning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .architecture import Architecture, describe_difference
from .errors import CheckpointError, MismatchError
from .match import Match, SourceNetwork, architecture_of, canonical_names_of
from .preprocessing import Preprocessing
from .report import LoadReport

__all__ = ["check_match", "check_values", "warnings_about"]


def check_match(report: LoadReport, network: SourceNetwork, backbone: nn.Module, strict: bool) -> None:
    """Refuse what does not match, with the reason that says most."""
    if not report.loaded:
        raise MismatchError(f"nothing of {report.origin} matches the backbone: it holds a {report.network}")
    # Convolutions alone, their norm layers left out, would compute something else: no caller can want that.
    if getattr(backbone, "deployed", False) and _has_other_norms(network, backbone):
        raise MismatchError(
            f"{report.origin} does not match: it has norm layers, and switch_to_deploy() has folded those of the "
            "backbone: load it before switch_to_deploy()"
        )
    if strict:
        problem = _problem(report, network.architecture, backbone)
        if problem is not None:
            raise MismatchError(f"{report.origin} does not match: {problem}")


def _has_other_norms(network: SourceNetwork, backbone: nn.Module) -> bool:
    ours = set(canonical_names_of(backbone).values())
    return any(re.search(r"\bnorm\d?\.weight$", name) and name not in ours for name in network.tensors)


def check_values(origin: str, loaded: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
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


def _problem(report: LoadReport, file: Architecture | None, backbone: nn.Module) -> str | None:
    own = architecture_of(backbone)
    if file is not None and own is not None:
        difference = describe_difference(file, own, getattr(backbone, "depth", None))
        if difference is not None:
            return difference
        norms = _norm_difference(report, file, own)
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


def _norm_difference(report: LoadReport, file: Architecture, own: Architecture) -> str | None:
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


def warnings_about(
    style: str | None,
    preprocessing: Preprocessing | None,
    architecture: Architecture | None,
    match: Match,
    backbone: nn.Module,
) -> Iterator[str]:
    """Find what deserves a second look where weights and backbone meet.

    Args:
        style: Where the weights' Bottlenecks stride; ``None`` where nothing says.
        preprocessing: The images that they take; ``None`` where nothing says.
        architecture: Their architecture.
        match: How they match.
        backbone: The backbone.

    Yields:
        Warnings, in words.
    """
    own = getattr(backbone, "style", None)
    if style is not None and own is not None and own != style and architecture is not None and architecture.bottleneck:
        yield (
            f"these weights stride as style='{style}' does and take images of {preprocessing}; "
            f"the backbone has style={own!r}"
        )
    trains = [
        module
        for module in backbone.modules()
        if isinstance(module, _BatchNorm) and getattr(backbone, "norm_eval", False) is not True
    ]
    if match.folded and trains:
        yield (
            "the norm layers of these weights are folded: they have no statistics to go on from, so keep them in eval "
            "mode (norm_eval=True) with norm_cfg=dict(type='BN', requires_grad=False)"
        )

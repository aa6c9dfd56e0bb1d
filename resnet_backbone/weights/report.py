"""The report of a load, and the checks that refuse a match or warn about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import CheckpointError, MismatchError, printable
from .architecture import Architecture, describe_difference
from .match import Match, SourceNetwork, architecture_of, canonical_names_of
from .names import Shape
from .preprocessing import Preprocessing, WeightFacts

__all__ = ["LoadReport", "check_match", "check_values", "group", "listed", "warnings_about"]


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint matched a backbone.

    Attributes:
        source: The argument ``source``.
        origin: The path or URL of the file.
        format: The framework whose parameter names the file has.
        network: The network in the file, such as ``'ResNet-50'``.
        prefix: Prefix of the network's keys in the file.
        container: The keys that lead to its state dict in the file, joined by dots, such as ``'ema.module'``.
        averaged: Whether these are weights averaged over training (EMA).
        loaded: Names of the backbone's tensors that were loaded.
        renamed: Name in the file of each loaded tensor with another name there, by its name in the backbone.
        unused: Names of the file's tensors outside the backbone: classifiers, necks, heads, later stages.
        unexpected: Names of the file's tensors in the stem or a stage for which the backbone has none.
        missing: Names of the backbone's tensors that the file does not have.
        added: Names of the backbone's tensors that pretrained files never have: offsets of deformable convolutions,
            plugins.
        mismatched: Name, shape in the file and shape in the backbone of tensors that were not loaded.
        changes: Descriptions of what was computed instead of copied: an adapted first convolution, folded norm layers.
        warnings: Descriptions of possible problems.
        preprocessing: The preprocessing that the weights expect; ``None`` if unknown.
        preprocessing_basis: How it is known: from the ``'source'``, from the ``'file'``, or by ``'convention'``,
            because weights with such names usually expect it.
        style: Style of the weights' Bottlenecks, ``'pytorch'`` or ``'caffe'``; ``None`` if unknown.
    """

    source: str
    origin: str
    format: str
    network: str
    prefix: str
    loaded: tuple[str, ...]
    renamed: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    style: str | None = None
    container: str = ""
    averaged: bool = False
    preprocessing_basis: str | None = None

    def summary(self) -> str:
        """The report in one line."""
        return printable(
            f"{len(self.loaded)} tensors of a {self.network} ({self.format} names) from {self.origin}", 10_000
        )

    def __str__(self) -> str:
        rows = [("names", self.format + (f", under {self.prefix!r}" if self.prefix else ""))]
        if self.averaged:
            place = ".".join(part for part in (self.container, self.prefix.rstrip(".")) if part)
            rows.append(("averaged", f"these are weights averaged over training, under {place!r}"))
        rows.append(("loaded", group(self.loaded)))
        if self.renamed:
            ours, theirs = next(iter(self.renamed.items()))
            rows.append(("renamed", f"{len(self.renamed)} tensors, such as {theirs} -> {ours}"))
        rows += [("changed", change) for change in self.changes]
        titles = ("not used", "unexpected", "missing", "new")
        names = (self.unused, self.unexpected, self.missing, self.added)
        rows += [(title, group(those)) for title, those in zip(titles, names) if those]
        rows += [("shape", f"{name}: {file} in the file, {own} in the backbone") for name, file, own in self.mismatched]
        rows.append(("images", self._images()))
        rows += [("warning", warning) for warning in self.warnings]
        lines = [f"{self.network} from {self.origin}", *(f"  {title:<11} {text}" for title, text in rows)]
        # Names and paths may have control characters, or characters that cannot be encoded.
        return "\n".join(printable(line, 10_000) for line in lines)

    def _images(self) -> str:
        if self.preprocessing is None:
            return "unknown: the file does not state the preprocessing"
        usual = (
            " (usual for these names; the file does not state it)" if self.preprocessing_basis == "convention" else ""
        )
        return f"{self.preprocessing}{usual}"


def group(names: Iterable[str]) -> str:
    """Count tensors by module, such as ``'66 tensors: conv1 (1), bn1 (5), layer1 (60)'``."""
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split("." if "." in name else "_")
        # The name of a wrapper alone is not informative.
        key = ".".join(parts[:2]) if parts[0] in ("module", "model", "backbone", "teacher", "student") else parts[0]
        counts[key] = counts.get(key, 0) + 1
    total = sum(counts.values())
    listed = [f"{name} ({count})" for name, count in list(counts.items())[:12]]
    more = f", and {len(counts) - 12} more groups" if len(counts) > 12 else ""
    return f"{total} tensor{'s' * (total != 1)}: {', '.join(listed)}{more}" if total else "nothing"


def listed(names: Iterable[str], most: int = 20) -> str:
    """Join names by commas, at most ``most`` of them, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def check_match(
    report: LoadReport, network: SourceNetwork, facts: WeightFacts, backbone: nn.Module, strict: bool
) -> None:
    """Raise if the file does not match the backbone, with the most informative reason."""
    if not report.loaded:
        raise MismatchError(f"nothing of {report.origin} matches the backbone: the file has a {report.network}")
    # Convolutions without their norm layers would compute something else, so this is refused even if not strict.
    if getattr(backbone, "deployed", False):
        ours = set(canonical_names_of(backbone).values())
        if any(re.search(r"\bnorm\d?\.weight$", name) and name not in ours for name in network.tensors):
            raise MismatchError(
                f"{report.origin} does not match: it has norm layers, which switch_to_deploy() has removed from the "
                "backbone: load it before switch_to_deploy()"
            )
    problem = _problem(report, network.architecture, backbone) if strict else None
    if problem is not None:
        raise MismatchError(f"{report.origin} does not match: {problem}")
    problem = _other_function(facts, backbone) if strict else None
    if problem is not None:
        raise MismatchError(
            f"{report.origin} does not match, although its names do: {problem}. strict=False loads it anyway"
        )


def check_values(origin: str, loaded: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise if a tensor has no finite floating-point values, in the file's dtype and in the backbone's."""
    for name, value in loaded.items():
        refused = f"{origin} cannot be loaded: {name}"
        if value.is_meta:
            raise CheckpointError(f"{refused} is on the meta device, which has no data")
        if type(value).__name__ == "DTensor":
            raise CheckpointError(
                f"{refused} is a DTensor, the shard of one process: save full_tensor(), or gather the state dict with "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict(options=StateDictOptions("
                "full_state_dict=True))"
            )
        if value.is_quantized:
            raise CheckpointError(f"{refused} is quantized ({value.dtype}), not floating-point")
        if not value.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise CheckpointError(f"{refused} is of dtype {value.dtype}, not floating-point")
        # isfinite does not support all of the narrower dtypes, whose values float32 can represent.
        try:
            wide = value if value.dtype == torch.float64 else value.float()
        except (RuntimeError, NotImplementedError) as error:
            raise CheckpointError(f"{refused} is of dtype {value.dtype}, which cannot be converted") from error
        if not bool(torch.isfinite(wide).all()):
            raise CheckpointError(f"{refused} has NaN or Inf")
        if not bool(torch.isfinite(wide.to(state[name].dtype)).all()):
            raise CheckpointError(f"{refused} has values beyond the range of {state[name].dtype}, the backbone's dtype")


def _problem(report: LoadReport, file: Architecture | None, backbone: nn.Module) -> str | None:
    own = architecture_of(backbone)
    if file is not None and own is not None:
        difference = describe_difference(file, own, getattr(backbone, "depth", None))
        difference = difference or _norm_difference(report, file, own)
        if difference is not None:
            return difference
    problems = []
    if report.missing:
        problems.append(f"the file lacks {listed(report.missing)}")
    if report.mismatched:
        shapes = [f"{name} ({theirs} in the file, {ours} in the backbone)" for name, theirs, ours in report.mismatched]
        problems.append(f"shapes differ: {listed(shapes)}")
    if report.unexpected:
        problems.append(f"the backbone lacks {listed(report.unexpected)}")
    return f"{'; '.join(problems)}. strict=False loads the rest" if problems else None


def _norm_difference(report: LoadReport, file: Architecture, own: Architecture) -> str | None:
    lacks_statistics = any(name.endswith("running_var") for name in report.missing)
    if own.running_statistics and not file.running_statistics and lacks_statistics:
        return (
            "its norm layers have no running statistics, so they are probably group norm; the backbone has batch norm. "
            "norm_cfg=dict(type='GN', num_groups=32) is usual"
        )
    if file.running_statistics and not own.running_statistics:
        return "its norm layers are batch norm, with running statistics; the backbone's have none"
    return None


def _other_function(facts: WeightFacts, backbone: nn.Module) -> str | None:
    """Describe how the weights' network computes something else than the backbone, if it is known to."""
    name = facts.origin.lower()
    if re.search(r"res(net|next)(aa|blur)\d|_lpf\d", name):
        return "the weights are of an anti-aliased network, which blurs before striding and is not available here"
    standardizes = "WS" in str(_type(getattr(backbone, "conv_cfg", None)))
    if not standardizes and ("_ws" in name or "WS" in str(_type(facts.backbone_cfg.get("conv_cfg")))):
        return "the weights were trained with weight standardization: conv_cfg=dict(type='ConvWS')"
    return None


def _type(cfg: object) -> object:
    return cfg.get("type") if isinstance(cfg, Mapping) else None


def warnings_about(facts: WeightFacts, network: SourceNetwork, match: Match, backbone: nn.Module) -> Iterator[str]:
    """Yield descriptions of possible problems with these weights in this backbone."""
    problem = _other_function(facts, backbone)
    if problem is not None:
        yield f"the backbone computes something else: {problem}"
    own, architecture = getattr(backbone, "style", None), network.architecture
    if None not in (facts.style, own) and own != facts.style and architecture is not None and architecture.bottleneck:
        yield (
            f"the weights are of style='{facts.style}' and expect images of {facts.preprocessing}; "
            f"the backbone has style={own!r}"
        )
    yield from _config_differences(facts, backbone)
    is_dilated = any(dilation != 1 for dilation in getattr(backbone, "dilations", ()))
    if is_dilated and getattr(backbone, "avg_down", False) and _is_timms(facts, network):
        yield (
            "these are timm's weights of a D variant: in dilated stages, timm's shortcuts pool 2x2 with stride 1, and "
            "the backbone's do not pool"
        )
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in backbone.modules())
    if match.folded and has_batch_norm and getattr(backbone, "norm_eval", False) is not True:
        yield (
            "the norm layers of these weights are folded and have no running statistics: keep them in eval mode "
            "(norm_eval=True) with norm_cfg=dict(type='BN', requires_grad=False)"
        )


# Arguments that do not change the names and shapes of weights, with mmdet's defaults.
_FUNCTION = {"strides": (1, 2, 2, 2), "dilations": (1, 1, 1, 1), "contract_dilation": False, "multi_grid": None}


def _config_differences(facts: WeightFacts, backbone: nn.Module) -> Iterator[str]:
    """Compare the backbone with the one in the file's config."""
    config = facts.backbone_cfg
    if not str(config.get("type", "")).startswith("ResNet"):
        return
    for name, default in _FUNCTION.items():
        theirs, ours = config.get(name, default), getattr(backbone, name, default)
        # The file may have any values.
        if not (theirs is None or isinstance(theirs, (bool, list, tuple))) or (not theirs and default):
            continue
        theirs, ours = (tuple(value) if isinstance(value, (list, tuple)) else value for value in (theirs, ours))
        # Only stages that both have are compared.
        pairs = zip(theirs, ours) if isinstance(theirs, tuple) and isinstance(ours, tuple) else [(theirs, ours)]
        if any(one != other for one, other in pairs):
            yield f"the config in the file says {name}={theirs!r}; the backbone has {name}={ours!r}"


def _is_timms(facts: WeightFacts, network: SourceNetwork) -> bool:
    by_name = facts.origin.startswith(("timm://", "hf://timm/"))
    return by_name or any(re.search(r"(^|\.)conv1\.0\.weight$", key) for key in network.names.values())

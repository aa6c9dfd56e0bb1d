"""What refuses a match between a file and a backbone, and what only deserves a warning."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import CheckpointError, MismatchError
from .architecture import Architecture, describe_difference
from .match import Match, SourceNetwork, architecture_of, canonical_names_of
from .preprocessing import WeightFacts
from .report import LoadReport

__all__ = ["check_function", "check_match", "check_values", "warnings_about"]


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
        if type(value).__name__ == "DTensor":
            raise CheckpointError(
                f"{refused} is a DTensor, one process's shard: save full_tensor(), or gather the state dict with "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict(options=StateDictOptions("
                "full_state_dict=True))"
            )
        if value.is_quantized:
            raise CheckpointError(f"{refused} is quantised ({value.dtype}), not floating-point")
        if not value.is_floating_point():
            if name.endswith("num_batches_tracked"):
                continue
            raise CheckpointError(f"{refused} is of dtype {value.dtype}, not floating-point")
        # float32 holds every number of the narrower dtypes, and some of these have no isfinite of their own.
        try:
            wide = value if value.dtype == torch.float64 else value.float()
        except (RuntimeError, NotImplementedError) as error:
            raise CheckpointError(f"{refused} is of dtype {value.dtype}, which cannot be converted") from error
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


def check_function(origin: str, facts: WeightFacts, backbone: nn.Module) -> None:
    """Refuse weights that have the backbone's keys and are of a network that computes something else.

    Args:
        origin: The checkpoint's path or URL.
        facts: What is known of the weights.
        backbone: The backbone.

    Raises:
        MismatchError: The source's name, or the config in the file, says so.
    """
    problem = _other_function(facts, backbone)
    if problem is not None:
        raise MismatchError(
            f"{origin} does not match, though its names do: {problem}. strict=False loads it all the same"
        )


def _other_function(facts: WeightFacts, backbone: nn.Module) -> str | None:
    """Say which function the weights are of, where it is not the backbone's."""
    name = facts.origin.lower()
    if re.search(r"res(net|next)(aa|blur)\d|_lpf\d", name):
        return "they are of an anti-aliased network, which blurs before it strides; this package has none"
    standardises = "WS" in str(_type(getattr(backbone, "conv_cfg", None)))
    if not standardises and ("_ws" in name or "WS" in str(_type(facts.config.backbone.get("conv_cfg")))):
        return "they were trained with weight standardization: conv_cfg=dict(type='ConvWS')"
    return None


def _type(cfg: object) -> object:
    return cfg.get("type") if isinstance(cfg, Mapping) else None


def warnings_about(facts: WeightFacts, network: SourceNetwork, match: Match, backbone: nn.Module) -> Iterator[str]:
    """Find what deserves a second look where weights and backbone meet.

    Args:
        facts: What is known of the weights.
        network: The network in the file.
        match: How they match.
        backbone: The backbone.

    Yields:
        Warnings, in words.
    """
    problem = _other_function(facts, backbone)
    if problem is not None:
        yield f"these weights are for another function: {problem}"
    own, architecture = getattr(backbone, "style", None), network.architecture
    if None not in (facts.style, own) and own != facts.style and architecture is not None and architecture.bottleneck:
        yield (
            f"these weights stride as style='{facts.style}' does and take images of {facts.preprocessing}; "
            f"the backbone has style={own!r}"
        )
    yield from _config_differences(facts, backbone)
    if _is_dilated(backbone) and getattr(backbone, "avg_down", False) and _is_timms(facts, network):
        yield (
            "these are timm's weights of a D variant: where timm dilates a stage, its shortcut pools 2x2 at stride 1, "
            "and the backbone's does not pool"
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


# What changes the function of a network and not the names or shapes of its weights, with mmdet's defaults.
_FUNCTION = {
    "strides": (1, 2, 2, 2),
    "dilations": (1, 1, 1, 1),
    "contract_dilation": False,
    "multi_grid": None,
}


def _config_differences(facts: WeightFacts, backbone: nn.Module) -> Iterator[str]:
    """Compare the backbone with the one in the config that the file holds."""
    config = facts.config.backbone
    if not str(config.get("type", "")).startswith("ResNet"):
        return
    for name, default in _FUNCTION.items():
        theirs, ours = config.get(name, default), getattr(backbone, name, default)
        # The file may say anything.
        if not (theirs is None or isinstance(theirs, (bool, list, tuple))) or (not theirs and default):
            continue
        theirs, ours = (tuple(value) if isinstance(value, (list, tuple)) else value for value in (theirs, ours))
        # Stages that only one of the two has do not count.
        pairs = zip(theirs, ours) if isinstance(theirs, tuple) and isinstance(ours, tuple) else [(theirs, ours)]
        if any(one != other for one, other in pairs):
            yield f"the config in the file says {name}={theirs!r}; the backbone has {name}={ours!r}"


def _is_dilated(backbone: nn.Module) -> bool:
    return any(dilation != 1 for dilation in getattr(backbone, "dilations", ()))


def _is_timms(facts: WeightFacts, network: SourceNetwork) -> bool:
    by_name = facts.origin.startswith(("timm://", "hf://timm/"))
    return by_name or any(re.search(r"(^|\.)conv1\.0\.weight$", key) for key in network.names.values())

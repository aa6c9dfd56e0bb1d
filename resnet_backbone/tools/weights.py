"""The commands ``resnet-backbone weights`` and ``resnet-backbone convert``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, CheckpointError
from ..integrations.mmdet.configs import load_backbone_cfg
from ..integrations.mmdet.registry import build_backbone
from ..version import __version__
from ..weights.download import sha256_of, without_credentials
from ..weights.load import find_network, load_pretrained, open_checkpoint
from ..weights.match import SourceNetwork
from ..weights.report import LoadReport
from ..weights.sources import resolve
from ..weights.zoo import NAMED

__all__ = ["backbone_for", "convert", "show_report", "table_text"]


def table_text() -> str:
    """Return the table of named weights."""
    meaning = {
        "SAME": "the same weights",
        "RETRAINED": "the same network, trained again",
        "NONE": "a different network",
    }
    lines = ["open-mmlab:// names and where to find their weights. The tensors were not compared.", ""]
    for relation, title in meaning.items():
        lines.append(f"{title}:")
        for entry in (entry for entry in NAMED if entry.relation == relation):
            lines.append(f"  {entry.name}")
            lines.append(f"      {entry.source}")
            lines.append(f"      {entry.origin}; images {entry.preprocessing}; style {entry.style}")
        lines.append("")
    lines.append(
        "Only the same weights are used in place of others. torchvision://, timm:// and hf:// accept every name"
    )
    lines.append("in torchvision, in timm and on the Hugging Face hub.")
    return "\n".join(lines)


def show_report(source: str, config: str | None, depth: int | None, prefix: str | None, strict: bool = True) -> str:
    """Return the report of loading a checkpoint into the result of ``backbone_for``."""
    backbone = backbone_for(source, config, depth, prefix)
    return str(load_pretrained(backbone, source, prefix=prefix, strict=strict))


def convert(source: str, out: str, config: str | None, depth: int | None, prefix: str | None) -> str:
    """Write a checkpoint with mmdet's names to ``out``, a ``.safetensors`` or ``.pth`` file, and return a report.

    Raises:
        CheckpointError: The checkpoint does not load into the result of ``backbone_for``.
        ArgumentError: ``out`` has a different suffix or cannot be written.
    """
    target = Path(out)
    if target.suffix not in (".safetensors", ".pth"):
        raise ArgumentError(f"OUT must end in .safetensors or .pth, got {out!r}")
    if target.is_dir() or not target.parent.is_dir():
        problem = "is a folder" if target.is_dir() else "is in a folder that does not exist"
        raise ArgumentError(f"OUT must be a file in an existing folder; {out!r} {problem}")
    backbone = backbone_for(source, config, depth, prefix)
    report = load_pretrained(backbone, source, prefix=prefix)
    state = {name: value.contiguous() for name, value in backbone.state_dict().items() if name not in report.added}
    provenance = _provenance(source, report)
    # The file gets its name when it is complete.
    part = target.with_name(f"{target.name}.part")
    try:
        _save(state, provenance, part, target.suffix)
        part.replace(target)
    except ArgumentError:
        raise
    except Exception as error:  # torch and safetensors have their own exceptions for a full disk
        raise ArgumentError(f"OUT {out!r} cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return f"{report}\nwrote {target}"


def _save(state: dict[str, torch.Tensor], provenance: dict[str, Any], path: Path, suffix: str) -> None:
    if suffix == ".pth":
        torch.save({"meta": {"resnet_backbone": provenance}, "state_dict": state}, path)
        return
    try:
        from safetensors.torch import save_file
    except ImportError as error:
        raise ArgumentError("writing .safetensors needs the safetensors package: pip install safetensors") from error
    save_file(state, path, metadata={"format": "pt", "resnet_backbone": json.dumps(provenance)})


def _provenance(source: str, report: LoadReport) -> dict[str, Any]:
    """Return the source of the weights and the preprocessing that they expect, as plain types."""
    path = resolve(source, progress=False).path
    return {
        "version": __version__,
        "source": without_credentials(report.source),
        "origin": report.origin,
        "sha256": sha256_of(path) if path is not None and path.is_file() else None,
        "format": report.format,
        "network": report.network,
        "style": report.style,
        "preprocessing": report.preprocessing.as_config() if report.preprocessing else None,
        "preprocessing_basis": report.preprocessing_basis,
        "changes": list(report.changes),
    }


def backbone_for(source: str, config: str | None, depth: int | None, prefix: str | None) -> nn.Module:
    """Build the backbone that a checkpoint is for, without its weights.

    Args:
        source: The checkpoint.
        config: A config file with the backbone.
        depth: The depth of the ResNet. If it and ``config`` are ``None``, the network in the file is built.
        prefix: Prefix of the network's keys in the file.

    Raises:
        ArgumentError: The config or the depth is invalid.
        CheckpointError: The file cannot be read, or has no ResNet that can be inferred.
    """
    if config is not None:
        return build_backbone(load_backbone_cfg(config))
    if depth is not None:
        return build_backbone({"type": "ResNet", "depth": depth})
    resolved, checkpoint = open_checkpoint(source)
    return _for_network(find_network(checkpoint, prefix, resolved.origin), resolved.origin)


def _for_network(network: SourceNetwork, origin: str) -> nn.Module:
    """Build the ResNet in a file, except for the style, which does not affect the weights."""
    architecture = network.architecture
    if architecture is None or architecture.depth not in (18, 34, 50, 101, 152) or architecture.groups > 1:
        name = "network" if architecture is None else architecture.name
        raise CheckpointError(f"{origin} has a {name}: give the config of its backbone with --config")
    cfg = architecture.config()
    if network.scheme.name == "Caffe2" and not any("_gn_" in name for name in network.names.values()):
        cfg["norm_cfg"] = {"type": "BN"}
    empty = build_backbone({"type": "ResNet", **cfg, "device": "meta"})
    needed = sum(value.numel() for value in empty.state_dict().values())
    # One shape is enough to ask for a network that does not fit in memory.
    if needed > 2 * sum(value.numel() for value in network.tensors.values()):
        raise CheckpointError(f"{origin} has a {architecture.name} without most of its tensors")
    return build_backbone({"type": "ResNet", **cfg})

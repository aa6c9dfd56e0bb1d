"""The work of ``resnet-backbone weights`` and ``resnet-backbone convert``."""

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
    """The table of named weights, as text."""
    meaning = {"SAME": "same weights", "RETRAINED": "another training", "NONE": "another network"}
    lines = ["open-mmlab:// names, and where their weights can be had. None of them is verified tensor by tensor.", ""]
    for relation, title in meaning.items():
        lines.append(f"{title}:")
        for entry in (entry for entry in NAMED if entry.relation == relation):
            lines.append(f"  {entry.name}")
            lines.append(f"      {entry.source}")
            lines.append(f"      {entry.origin}; images {entry.preprocessing}; style {entry.style}")
        lines.append("")
    lines.append(
        "Any other training is loaded only where you name it. torchvision://, timm:// and hf:// take every name"
    )
    lines.append("that torchvision, timm and the Hugging Face hub have.")
    return "\n".join(lines)


def show_report(source: str, config: str | None, depth: int | None, prefix: str | None, strict: bool = True) -> str:
    """Say how a checkpoint would load into the backbone of ``backbone_for``; raise if it would not."""
    backbone = backbone_for(source, config, depth, prefix)
    return str(load_pretrained(backbone, source, prefix=prefix, strict=strict))


def convert(source: str, out: str, config: str | None, depth: int | None, prefix: str | None) -> str:
    """Write a checkpoint in mmdet's names to the file ``out``, ``.safetensors`` or ``.pth``, and say what was done.

    Raises:
        CheckpointError: The checkpoint would not load into the backbone of ``backbone_for``.
        ArgumentError: ``out`` has another suffix or cannot be written.
    """
    target = Path(out)
    if target.suffix not in (".safetensors", ".pth"):
        raise ArgumentError(f"OUT must end in .safetensors or .pth, got {out!r}")
    if target.is_dir() or not target.parent.is_dir():
        problem = "is a folder" if target.is_dir() else "lies in a folder that does not exist"
        raise ArgumentError(f"OUT must be a file in a folder that exists; {out!r} {problem}")
    backbone = backbone_for(source, config, depth, prefix)
    report = load_pretrained(backbone, source, prefix=prefix)
    state = {name: value.contiguous() for name, value in backbone.state_dict().items() if name not in report.added}
    provenance = _provenance(source, report)
    # The file gets its name when it is whole.
    part = target.with_name(f"{target.name}.part")
    try:
        _save(state, provenance, part, target.suffix)
        part.replace(target)
    except ArgumentError:
        raise
    except Exception as error:  # where the disk is full, torch and safetensors have exceptions of their own
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
    """Where the weights came from and what they want, in plain types."""
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
        depth: The depth of the ResNet; without either, the network that the file holds.
        prefix: What precedes the network's names in the file.

    Raises:
        ArgumentError: The config or the depth is not allowed, or the file cannot be read or holds no known ResNet.
    """
    if config is not None:
        return build_backbone(load_backbone_cfg(config))
    if depth is not None:
        return build_backbone({"type": "ResNet", "depth": depth})
    resolved, checkpoint = open_checkpoint(source)
    return _for_network(find_network(checkpoint, prefix, resolved.origin), resolved.origin)


def _for_network(network: SourceNetwork, origin: str) -> nn.Module:
    """Build the ResNet that a file holds, style aside, which no weight depends on."""
    architecture = network.architecture
    if architecture is None or architecture.depth not in (18, 34, 50, 101, 152) or architecture.groups > 1:
        name = "network" if architecture is None else architecture.name
        raise CheckpointError(f"{origin} holds a {name}: give the config of its backbone with --config")
    cfg = architecture.config()
    if network.scheme.name == "Caffe2" and not any("_gn_" in name for name in network.names.values()):
        cfg["norm_cfg"] = {"type": "BN"}
    return build_backbone({"type": "ResNet", **cfg})

"""The config files that ship with the package, and the backbone's part of a config file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...errors import ArgumentError, did_you_mean

__all__ = ["config_path", "load_backbone_cfg"]

CONFIGS = Path(__file__).parents[2] / ".mim" / "configs"


def config_path(name: str) -> str:
    """Return the path of a config that ships with the package.

    Args:
        name: Path below ``configs/``, such as ``'_base_/backbones/resnet18.py'``.

    Returns:
        The path of the file, for ``mmengine.Config.fromfile``.

    Raises:
        ArgumentError: No config of this name ships with the package.
    """
    path = CONFIGS / name
    if not path.is_file():
        known = sorted(file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.py"))
        raise ArgumentError(f"no config {name!r} ships with resnet_backbone.{did_you_mean(name, known)}")
    return str(path)


def load_backbone_cfg(config: str) -> dict[str, Any]:
    """Read the backbone's config from a config file, without ``init_cfg`` and ``pretrained``.

    Args:
        config: Path of a config file with ``model.backbone``, ``backbone`` or ``type``, or the name of a config that
            ships with the package.

    Returns:
        ``dict(type='ResNet', depth=50, ...)``.

    Raises:
        ArgumentError: The file does not exist, is not a config, or has no backbone.
    """
    try:
        root = Config.fromfile(config if Path(config).exists() else config_path(config))
    except ArgumentError as error:
        raise ArgumentError(f"config {config!r} is not a file, and {error}") from None
    except Exception as error:  # a config is code, which may raise anything
        reason = " ".join(str(error).split())
        raise ArgumentError(f"config {config!r} cannot be read: {type(error).__name__}: {reason}") from error
    model: Any = root.get("model", root)
    backbone: Any = model.get("backbone", model) if hasattr(model, "get") else {}
    if not hasattr(backbone, "items") or "type" not in backbone:
        raise ArgumentError(f"config {config!r} has neither model.backbone nor backbone with a type")
    return {key: value for key, value in backbone.items() if key not in ("init_cfg", "pretrained")}

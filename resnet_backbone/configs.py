"""Where the configs that ship with the package lie."""

from __future__ import annotations

from pathlib import Path

from .errors import ArgumentError, did_you_mean

__all__ = ["config_path"]

CONFIGS = Path(__file__).parent / ".mim" / "configs"


def config_path(name: str) -> str:
    """Return the path of a config that ships with the package.

    Args:
        name: Path below ``configs/``, such as ``'_base_/backbones/resnet18.py'``.

    Returns:
        The path of the file, for ``mmengine.Config.fromfile``.

    Raises:
        ArgumentError: No such config ships.
    """
    path = CONFIGS / name
    if not path.is_file():
        known = sorted(file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob("*.py"))
        raise ArgumentError(f"no config {name!r} ships with resnet_backbone.{did_you_mean(name, known)}")
    return str(path)

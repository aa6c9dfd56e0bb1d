"""The distinct ResNet backbone dicts in the configs that the installed mmdet ships."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import mmdet
from mmengine.config import Config

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"


@functools.cache
def distinct_backbones(types: tuple[str, ...] = ("ResNet", "ResNetV1d")) -> dict[str, dict[str, Any]]:
    """Every distinct backbone dict of the given types, without its init_cfg, under the name of a config that has it."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(CONFIGS.rglob("*.py")):
        for backbone in _backbones(_model_of(path)):
            name = str(backbone["type"]).removeprefix("mmdet.")
            if name not in types:
                continue
            backbone = {key: value for key, value in backbone.items() if key not in ("init_cfg", "_scope_")}
            backbone["type"] = name
            found.setdefault(json.dumps(backbone, sort_keys=True), (str(path.relative_to(CONFIGS)), backbone))
    return dict(found.values())


@functools.cache
def count_configs() -> int:
    """How many of the shipped files are configs with a model."""
    return sum(bool(_model_of(path)) for path in CONFIGS.rglob("*.py"))


@functools.cache
def _model_of(path: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            config = Config.fromfile(str(path), import_custom_modules=False)
        except (ImportError, FileNotFoundError, KeyError):
            # Configs that inherit from a library that is not installed here (mmpretrain, mmseg): not mmdet's to build.
            return {}
    return config.get("model", {})


def _backbones(node: Any) -> list[dict[str, Any]]:
    """The backbones anywhere below a model: of its teacher, its detectors, its ReID network too."""
    if isinstance(node, (list, tuple)):
        return [backbone for item in node for backbone in _backbones(item)]
    if not isinstance(node, dict):
        return []
    own = (
        [node["backbone"].to_dict() if hasattr(node["backbone"], "to_dict") else dict(node["backbone"])]
        if isinstance(node.get("backbone"), dict) and "type" in node["backbone"]
        else []
    )
    return own + [backbone for key, value in node.items() for backbone in _backbones(value)]

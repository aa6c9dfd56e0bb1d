"""The distinct backbone dicts in the configs of the installed mmdet."""

from __future__ import annotations

import copy
import functools
import json
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import mmdet
from mmengine.config import Config

CONFIGS = Path(mmdet.__file__).parent / ".mim" / "configs"


@functools.cache
def distinct_backbones(types: tuple[str, ...] = ("ResNet", "ResNetV1d")) -> dict[str, dict[str, Any]]:
    """Every distinct backbone dict of the given types, without its init_cfg, under the name of a config that has it."""
    return {users[0]: backbone for users, backbone in _distinct(types)}


@functools.cache
def users_of_backbones(types: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The names of all configs with each of ``distinct_backbones``, by the same key."""
    return {users[0]: tuple(user.partition(":")[0] for user in users) for users, _ in _distinct(types)}


@functools.cache
def _distinct(types: tuple[str, ...]) -> list[tuple[list[str], dict[str, Any]]]:
    found: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for path in sorted(CONFIGS.rglob("*.py")):
        for place, backbone in _backbones(_model_of(path)):
            name = str(backbone["type"]).removeprefix("mmdet.")
            if name not in types:
                continue
            backbone = {key: value for key, value in backbone.items() if key not in ("init_cfg", "_scope_")}
            backbone["type"] = name
            user = str(path.relative_to(CONFIGS)) + (f":{place}" if place != "backbone" else "")
            found.setdefault(json.dumps(backbone, sort_keys=True), ([], backbone))[0].append(user)
    return list(found.values())


@functools.cache
def configs_by_backbone() -> dict[str, list[str]]:
    """The names of the configs with each type of backbone, including backbones of nested detectors."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONFIGS.rglob("*.py")):
        model = _model_of(path)
        backbone = model.get("backbone") or model.get("detector", {}).get("backbone") or {}
        name = str(backbone.get("type")).removeprefix("mmdet.")
        found.setdefault(name, []).append(str(path.relative_to(CONFIGS)))
    return found


_read = functools.cache(Config._file2dict)


@functools.cache
def _model_of(path: Path) -> dict[str, Any]:
    # Most of the time goes into files that many configs inherit from: each is read once.
    cached = mock.patch.object(Config, "_file2dict", lambda *args, **kwargs: copy.deepcopy(_read(*args, **kwargs)))
    with warnings.catch_warnings(), cached:
        warnings.simplefilter("ignore")
        try:
            config = Config.fromfile(str(path), import_custom_modules=False)
        except (ImportError, FileNotFoundError, KeyError):
            # Configs that inherit from a library that is not installed here (mmpretrain, mmseg): not mmdet's to build.
            return {}
    return config.get("model", {})


def _backbones(node: Any) -> list[tuple[str, dict[str, Any]]]:
    """All backbone dicts nested in a model's config, including those of teachers and necks, with their keys."""
    if isinstance(node, (list, tuple)):
        return [backbone for item in node for backbone in _backbones(item)]
    if not isinstance(node, dict):
        return []
    own = [
        (key, value.to_dict() if hasattr(value, "to_dict") else dict(value))
        for key, value in node.items()
        if key.endswith("backbone") and isinstance(value, dict) and "type" in value
    ]
    return own + [backbone for value in node.values() for backbone in _backbones(value)]

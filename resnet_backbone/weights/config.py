"""What the config that OpenMMLab's libraries save in a checkpoint says of its weights; it is parsed and never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["FileConfig", "read_config"]

# Longer than any config, and short enough to be parsed quickly.
_MAX_LENGTH = 200_000


class FileConfig(NamedTuple):
    """What a config says.

    Attributes:
        preprocessing: ``mean``, ``std`` and ``bgr_to_rgb`` or ``to_rgb``; empty where it has none.
        backbone: The arguments of the backbone that have literal values; empty where it has none.
    """

    preprocessing: Mapping[str, Any]
    backbone: Mapping[str, Any]


def read_config(meta: Mapping[str, Any]) -> FileConfig:
    """Read the config in a checkpoint's metadata.

    Args:
        meta: The checkpoint's metadata: mmengine keeps the config under ``cfg``, mmcv 1 under ``config``.
    """
    names = _top_level(meta.get("cfg", meta.get("config")))
    model = names.get("model", {})
    backbone = model.get("backbone") if isinstance(model, Mapping) else None
    preprocessing = _preprocessing(model.get("data_preprocessor")) if isinstance(model, Mapping) else None
    if preprocessing is None:
        # What holds for the model comes first, then what a module-level name says, then mmdet 2's pipelines.
        preprocessing = _preprocessing(names.get("data_preprocessor")) or _preprocessing(names.get("img_norm_cfg"))
    if preprocessing is None:
        steps = [step for step in _mappings(names) if step.get("type") == "Normalize" and _preprocessing(step)]
        preprocessing = steps[0] if steps and all(_same(step, steps[0]) for step in steps) else None
    return FileConfig(preprocessing or {}, backbone if isinstance(backbone, Mapping) else {})


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in ("mean", "std", "to_rgb"))


def _preprocessing(values: Any) -> Mapping[str, Any] | None:
    """Find mean, std and channel order in a data preprocessor or in the one that it wraps."""
    if not isinstance(values, Mapping):
        return None
    if "mean" in values and "std" in values and ("bgr_to_rgb" in values or "to_rgb" in values):
        return values
    return _preprocessing(values.get("data_preprocessor"))


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _mappings(item)


def _top_level(text: Any) -> dict[str, Any]:
    """Return the names that a config assigns, with their values as far as these are literals."""
    if not isinstance(text, str) or len(text) > _MAX_LENGTH:
        return {}
    try:
        return {
            target.id: _literal(node.value)
            for node in ast.parse(text).body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}


def _literal(node: ast.expr) -> Any:
    """Evaluate a literal, ``dict(...)`` included; what is not a literal is ``None``."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values)
        return {key.value: _literal(value) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value = node.operand.value
        return -value if isinstance(value, (int, float)) else None
    return node.value if isinstance(node, ast.Constant) else None

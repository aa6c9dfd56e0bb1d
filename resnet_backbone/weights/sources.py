"""Where a checkpoint comes from: a SOURCE, as users write it, becomes a file on this machine.

A source is a path, an http or https URL, ``torchvision://``, ``timm://``, ``hf://``, ``open-mmlab://``, or anything
that mmengine has a loader for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.runner.checkpoint import CheckpointLoader, get_external_models, get_mmcls_models

from ..errors import ArgumentTypeError, did_you_mean
from . import table
from .download import cached_path, fetch, hash_in_name, matches_hash
from .errors import CheckpointError, CheckpointNotFoundError, DownloadError
from .hub import fetch_from_hub, timm_repository
from .preprocessing import IMAGENET_RGB, Preprocessing

__all__ = ["Resolved", "resolve"]


class Resolved(NamedTuple):
    """What a source led to.

    Attributes:
        path: The file; ``None`` where mmengine's loader gave the content itself.
        origin: Where the file comes from, for the report.
        preprocessing: The images that its weights want, where the source says so.
        style: Where its Bottlenecks stride, where the source says so.
        content: What mmengine's loader returned.
    """

    path: Path | None
    origin: str
    preprocessing: Preprocessing | None = None
    style: str | None = None
    content: Any = None


class _Options(NamedTuple):
    sha256: str | None
    progress: bool
    map_location: Any


def resolve(
    source: str | os.PathLike[str], sha256: str | None = None, progress: bool = True, map_location: Any = "cpu"
) -> Resolved:
    """Get hold of a checkpoint.

    Args:
        source: See the module's description.
        sha256: The file's SHA-256, or its first 8 digits or more.
        progress: Whether to show a progress bar while downloading.
        map_location: Passed on to mmengine's loaders, for sources that are theirs.

    Raises:
        CheckpointNotFoundError: A path without a file, or a name that nothing equal is known for.
        DownloadError: The file could not be fetched.
        CheckpointError: A name that does not exist, or the file has another hash than ``sha256``.
        ArgumentTypeError: ``source`` is neither string nor path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentTypeError(
            f"source must be a path, a URL or a name such as torchvision://resnet50, got {source!r}"
        )
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256)):
        raise CheckpointError(f"sha256 must be 8 to 64 hexadecimal digits, got {sha256!r}")
    options = _Options(sha256, progress, map_location)
    text = os.fsdecode(source)
    if not text:
        raise CheckpointError("source is empty: it must be a path, a URL or a name such as torchvision://resnet50")
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _SCHEMES:
        resolved = _SCHEMES[scheme](rest, options)
    elif CheckpointLoader._get_checkpoint_loader(text) is not CheckpointLoader._schemes[""]:
        content = CheckpointLoader.load_checkpoint(text, map_location)
        return Resolved(None, f"{text}, by mmengine", content=content)
    elif separator and not Path(text).exists():
        raise CheckpointError(f"source {text!r} has an unknown scheme; known: {', '.join(f'{s}://' for s in _SCHEMES)}")
    else:
        resolved = _local(text)
    if sha256 is not None and resolved.path is not None and resolved.path.is_file():
        _check_hash(resolved.path, sha256)
    return resolved


def _check_hash(path: Path, sha256: str) -> None:
    if not matches_hash(path, sha256):
        raise CheckpointError(f"{path} is not the file that was asked for: its SHA-256 does not begin with {sha256}")


def _local(text: str) -> Resolved:
    path = Path(text).expanduser()
    entry = table.by_file(path.name)
    if entry is not None:
        return Resolved(path, str(path), entry.preprocessing, entry.style)
    return Resolved(path, str(path))


def _url(url: str, options: _Options) -> Resolved:
    entry = table.by_url(url)
    if entry is not None:
        return _named(entry, url, options)
    known = table.by_source(url)
    preprocessing, style = known if known is not None else (None, None)
    return Resolved(fetch(url, options.sha256, options.progress), url, preprocessing, style)


def _torchvision(name: str, options: _Options) -> Resolved:
    url = _torchvision_url(name)
    return Resolved(fetch(url, options.sha256, options.progress), url, IMAGENET_RGB, "pytorch")


def _torchvision_url(name: str) -> str:
    """Find the URL of ``resnet50``, ``resnet50.imagenet1k_v2`` or ``ResNet50_Weights.IMAGENET1K_V2``."""
    try:
        from torchvision.models import get_model_weights, list_models
    except ImportError as error:
        raise CheckpointError(f"torchvision://{name} needs torchvision: pip install torchvision") from error
    model, _, version = name.partition(".")
    model = model.removesuffix("_Weights").lower()
    if model not in list_models():
        raise CheckpointError(f"torchvision has no model {model!r}.{did_you_mean(model, list_models())}")
    weights = get_model_weights(model)
    # mmdet's configs mean the first weights that torchvision had: the plain name stays with them.
    version = version.upper() or next(iter(weights.__members__))
    if version not in weights.__members__:
        raise CheckpointError(
            f"torchvision has no weights {version!r} for {model!r}; it has {', '.join(weights.__members__)}"
        )
    return str(weights[version].url)


def _timm(name: str, options: _Options) -> Resolved:
    file, preprocessing = fetch_from_hub(timm_repository(name), None)
    return Resolved(file, f"timm://{name}", preprocessing or IMAGENET_RGB, "pytorch")


def _hugging_face(name: str, options: _Options) -> Resolved:
    parts = name.split("/", 2)
    if len(parts) < 2 or not all(parts[:2]):
        raise CheckpointError(f"source 'hf://{name}' must read hf://ORG/REPO or hf://ORG/REPO/FILE")
    file, preprocessing = fetch_from_hub("/".join(parts[:2]), parts[2] if len(parts) > 2 else None)
    return Resolved(file, f"hf://{name}", preprocessing, None)


def _open_mmlab(name: str, options: _Options) -> Resolved:
    known = get_external_models()
    entry = table.by_name(name)
    # A user's own open_mmlab.json, in MMENGINE_HOME, has the last word.
    url = known.get(name)
    if entry is not None and (url is None or entry.original == url):
        return _named(entry, f"open-mmlab://{name}", options)
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        return _url(url, options)
    names = [*known, *(item.name for item in table.NAMED)]
    raise CheckpointNotFoundError(f"open-mmlab://{name} is not a name that OpenMMLab had.{did_you_mean(name, names)}")


def _named(entry: table.NamedWeights, asked: str, options: _Options) -> Resolved:
    """Get OpenMMLab's file if it is in the cache, else the same weights from elsewhere, else the file itself."""
    cached = cached_path(entry.original)
    digest = options.sha256 or hash_in_name(cached.name)
    if cached.is_file() and (digest is None or matches_hash(cached, digest)):
        return Resolved(cached, f"{entry.original}, from the cache", entry.preprocessing, entry.style)
    failure = ""
    if entry.relation == "SAME":
        try:
            path = fetch(entry.source, options.sha256, options.progress)
            return Resolved(path, f"{entry.source} ({entry.origin})", entry.preprocessing, entry.style)
        except DownloadError as error:
            failure = f"{error}. "
    try:
        path = fetch(entry.original, options.sha256, options.progress, patient=False)
        return Resolved(path, entry.original, entry.preprocessing, entry.style)
    except DownloadError as error:
        raise CheckpointNotFoundError(f"{asked} cannot be had: {failure}{error}. {_advice(entry)}") from error


def _advice(entry: table.NamedWeights) -> str:
    if entry.relation == "SAME":
        return f"If you have OpenMMLab's file, put it at {cached_path(entry.original)}"
    kind = {"RETRAINED": "another training of the same network", "NONE": "another network"}[entry.relation]
    return (
        f"OpenMMLab's server is gone, and nobody else has this file ({entry.origin}). The nearest is "
        f"{entry.source}, {kind}: write that instead, or put OpenMMLab's file, if you have it, at "
        f"{cached_path(entry.original)}"
    )


def _mmcls(name: str, options: _Options) -> Resolved:
    known = get_mmcls_models()
    if name not in known:
        raise CheckpointNotFoundError(f"mmcls://{name} is not a name that OpenMMLab had.{did_you_mean(name, known)}")
    return _url(known[name], options)


_SCHEMES: dict[str, Callable[[str, _Options], Resolved]] = {
    "http": lambda rest, options: _url(f"http://{rest}", options),
    "https": lambda rest, options: _url(f"https://{rest}", options),
    "torchvision": _torchvision,
    "modelzoo": _torchvision,
    "timm": _timm,
    "hf": _hugging_face,
    "open-mmlab": _open_mmlab,
    "openmmlab": _open_mmlab,
    "mmcls": _mmcls,
}

"""Resolve the source of a checkpoint to a local file.

A source is a path, an http or https URL, ``torchvision://``, ``timm://``, ``hf://``, ``detectron2://``,
``catalog://``, ``open-mmlab://``, or anything that mmengine has a loader for.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.fileio import get_file_backend
from mmengine.runner.checkpoint import CheckpointLoader, get_external_models, get_mmcls_models

from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    CheckpointNotFoundError,
    DownloadError,
    UnknownNameError,
    did_you_mean,
)
from . import zoo
from .download import (
    cached_path,
    fetch,
    fetch_from_hub,
    hash_in_name,
    matches_hash,
    timm_repository,
    without_credentials,
)
from .preprocessing import IMAGENET_RGB, Preprocessing, of_repository
from .read import INDEX_NAMES, SINGLE_NAMES, is_index, open_regular_file, read_file

__all__ = ["ResolvedSource", "resolve"]


class ResolvedSource(NamedTuple):
    """A checkpoint and what its source says about it.

    Attributes:
        path: The file; ``None`` if mmengine's loader returned the content itself.
        origin: Where the file comes from, for the report.
        preprocessing: The preprocessing that its weights expect, if known.
        style: Style of its Bottlenecks, if known.
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
) -> ResolvedSource:
    """Find or download a checkpoint; the arguments are those of ``load_pretrained``.

    Raises:
        CheckpointNotFoundError: The file does not exist, or the weights are no longer available.
        DownloadError: The file could not be downloaded.
        CheckpointError: The file's hash is not ``sha256``.
        ArgumentError: ``source`` is unknown, or ``sha256`` is not a hash.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ArgumentTypeError(
            f"source must be a path, a URL or a name such as torchvision://resnet50, got {source!r}"
        )
    if sha256 is not None and not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256)):
        raise ArgumentError(f"sha256 must be 8 to 64 hexadecimal digits, got {sha256!r}")
    options = _Options(sha256, progress, map_location)
    text = os.fsdecode(source)
    if not text:
        raise ArgumentError("source is empty: it must be a path, a URL or a name such as torchvision://resnet50")
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _SCHEMES:
        resolved = _SCHEMES[scheme](rest, options)
    elif (loader := CheckpointLoader._get_checkpoint_loader(text)) is not CheckpointLoader._schemes[""]:
        return _by_mmengine(text, loader, options)
    elif separator and not os.path.exists(text):
        raise ArgumentError(f"source {text!r} has an unknown scheme; known: {', '.join(f'{s}://' for s in _SCHEMES)}")
    else:
        resolved = _local(text)
    if resolved.path is not None:
        _check_hash(resolved.path, sha256)
    return resolved


def _check_hash(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    if os.path.isdir(path) or is_index(path.name):
        raise ArgumentError(f"sha256 is for one file, and {path} is several: got sha256={sha256!r}")
    # A missing or special file is refused when it is read.
    try:
        good = not os.path.isfile(path) or matches_hash(path, sha256)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from error
    if not good:
        raise CheckpointError(f"{path} is not the requested file: its SHA-256 does not begin with {sha256}")


def _by_mmengine(text: str, loader: Callable[..., Any], options: _Options) -> ResolvedSource:
    """Load a source that mmengine has a loader for.

    mmengine's own loaders read files with ``torch.load``, so files are only downloaded as they do. A loader that the
    user registered returns the content.
    """
    origin = f"{without_credentials(text)}, by mmengine"
    download = _MMENGINE_DOWNLOADS.get(getattr(loader, "__name__", "")) if loader.__module__ == _MMENGINE else None
    if download is None:
        if options.sha256 is not None:
            raise ArgumentError(f"sha256 cannot be checked: the loader of {text!r} returns no file")
        return ResolvedSource(None, origin, content=loader(text, map_location=options.map_location))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (Path(text).name or "checkpoint")
        try:
            download(text, path)
        except ImportError as error:
            raise CheckpointError(f"{without_credentials(text)} needs a package that is missing: {error}") from error
        except Exception as error:  # each client has its own exceptions
            raise DownloadError(f"{without_credentials(text)} cannot be downloaded: {error}") from error
        _check_hash(path, options.sha256)
        return ResolvedSource(None, origin, content=read_file(path, options.map_location))


def _from_petrel(text: str, path: Path) -> None:
    path.write_bytes(get_file_backend(text, backend_args={"backend": "petrel"}).get(text))


def _from_pavi(text: str, path: Path) -> None:
    from pavi import modelcloud  # type: ignore[import-not-found]

    modelcloud.get(text.removeprefix("pavi://")).download(str(path))


_MMENGINE = "mmengine.runner.checkpoint"
_MMENGINE_DOWNLOADS: dict[str, Callable[[str, Path], None]] = {
    "load_from_ceph": _from_petrel,
    "load_from_pavi": _from_pavi,
}


def _local(text: str) -> ResolvedSource:
    # Unlike Path.expanduser, this keeps ~nosuchuser.
    path = Path(os.path.expanduser(text))
    entry = zoo.by_file(path.name)
    preprocessing, style = (entry.preprocessing, entry.style) if entry is not None else (_of_folder(path), None)
    return ResolvedSource(path, str(path), preprocessing, style)


_MAX_CONFIG_BYTES = 1_000_000


def _of_folder(path: Path) -> Preprocessing | None:
    """Read the preprocessing that Hugging Face's libraries store next to their weights."""
    if not os.path.isdir(path):
        if path.name not in (*SINGLE_NAMES, *INDEX_NAMES):
            return None
        path = path.parent

    def read(name: str) -> str:
        with open_regular_file(path / name) as file:
            return file.read(_MAX_CONFIG_BYTES).decode()

    return of_repository(read)


def _download(url: str, options: _Options, patient: bool = True) -> Path:
    # A file without a hash is read before it is cached, so that a truncated or re-encoded one is not.
    return fetch(url, options.sha256, options.progress, patient, check=read_file)


def _url(url: str, options: _Options) -> ResolvedSource:
    entry = zoo.by_url(url)
    if entry is not None:
        return _named(entry, url, options)
    preprocessing, style = zoo.by_source(url) or (None, None)
    return ResolvedSource(_download(url, options), without_credentials(url), preprocessing, style)


# The names of Detectron's weights in detectron2's configs.
_CATALOG = {
    "ImageNetPretrained/MSRA/R-50": "ImageNetPretrained/MSRA/R-50.pkl",
    "ImageNetPretrained/MSRA/R-101": "ImageNetPretrained/MSRA/R-101.pkl",
    "ImageNetPretrained/FAIR/R-50-GN": "ImageNetPretrained/47261647/R-50-GN.pkl",
    "ImageNetPretrained/FAIR/R-101-GN": "ImageNetPretrained/47592356/R-101-GN.pkl",
    "ImageNetPretrained/FAIR/X-101-32x8d": "ImageNetPretrained/20171220/X-101-32x8d.pkl",
    "ImageNetPretrained/FAIR/X-101-64x4d": "ImageNetPretrained/FBResNeXt/X-101-64x4d.pkl",
    "ImageNetPretrained/FAIR/X-152-32x8d-IN5k": "ImageNetPretrained/25093814/X-152-32x8d-IN5k.pkl",
}


def _catalog(name: str, options: _Options) -> ResolvedSource:
    if name not in _CATALOG:
        raise UnknownNameError(f"detectron2's catalog has no backbone {name!r}.{did_you_mean(name, _CATALOG)}")
    return _url(f"https://dl.fbaipublicfiles.com/detectron/{_CATALOG[name]}", options)


def _detectron2(name: str, options: _Options) -> ResolvedSource:
    return _url(f"https://dl.fbaipublicfiles.com/detectron2/{name}", options)


def _torchvision(name: str, options: _Options) -> ResolvedSource:
    """Resolve ``resnet50``, ``resnet50.imagenet1k_v2`` or ``ResNet50_Weights.IMAGENET1K_V2``."""
    try:
        from torchvision.models import get_model_weights, list_models
    except ImportError as error:
        raise CheckpointError(f"torchvision://{name} needs torchvision: pip install torchvision") from error
    model, _, version = name.partition(".")
    model = model.removesuffix("_Weights").lower()
    if model not in list_models():
        raise UnknownNameError(f"torchvision has no model {model!r}.{did_you_mean(model, list_models())}")
    weights = get_model_weights(model)
    # In mmdet's configs, a plain name means torchvision's first weights.
    version = version.upper() or next(iter(weights.__members__))
    if version not in weights.__members__:
        raise UnknownNameError(
            f"torchvision has no weights {version!r} for {model!r}; it has {', '.join(weights.__members__)}"
        )
    url = str(weights[version].url)
    return ResolvedSource(_download(url, options), url, IMAGENET_RGB, "pytorch")


def _timm(name: str, options: _Options) -> ResolvedSource:
    file, preprocessing = fetch_from_hub(timm_repository(name), None)
    return ResolvedSource(file, f"timm://{name}", preprocessing, "pytorch")


def _hugging_face(name: str, options: _Options) -> ResolvedSource:
    parts = name.split("/", 2)
    if len(parts) < 2 or not all(parts[:2]):
        raise ArgumentError(f"source must be hf://ORG/REPO or hf://ORG/REPO/FILE, got 'hf://{name}'")
    file, preprocessing = fetch_from_hub("/".join(parts[:2]), parts[2] if len(parts) > 2 else None)
    return ResolvedSource(file, f"hf://{name}", preprocessing, None)


def _open_mmlab(name: str, options: _Options) -> ResolvedSource:
    known = get_external_models()
    entry = zoo.by_name(name)
    # A user's own open_mmlab.json, in MMENGINE_HOME, takes precedence.
    url = known.get(name)
    if entry is not None and (url is None or entry.original == url):
        return _named(entry, f"open-mmlab://{name}", options)
    if isinstance(url, str) and url.startswith(("http://", "https://")):
        return _url(url, options)
    names = [*known, *(item.name for item in zoo.NAMED)]
    raise CheckpointNotFoundError(f"OpenMMLab has no weights named {name!r}.{did_you_mean(name, names)}")


def _named(entry: zoo.NamedWeights, asked: str, options: _Options) -> ResolvedSource:
    """Use OpenMMLab's file if it is cached, otherwise download the same weights from elsewhere, or the file itself."""
    cached = cached_path(entry.original)
    digest = options.sha256 or hash_in_name(cached.name)
    if os.path.isfile(cached) and os.access(cached, os.R_OK) and (digest is None or matches_hash(cached, digest)):
        return ResolvedSource(cached, f"{entry.original}, from the cache", entry.preprocessing, entry.style)
    failure = ""
    if entry.relation == "SAME":
        try:
            path = _download(entry.source, options)
            return ResolvedSource(path, f"{entry.source} ({entry.origin})", entry.preprocessing, entry.style)
        except DownloadError as error:
            failure = f"{error}. "
    try:
        path = _download(entry.original, options, patient=False)
        return ResolvedSource(path, entry.original, entry.preprocessing, entry.style)
    except DownloadError as error:
        raise CheckpointNotFoundError(f"{asked} is not available: {failure}{error}. {_advice(entry)}") from error


def _advice(entry: zoo.NamedWeights) -> str:
    if entry.relation == "SAME":
        return f"If you have OpenMMLab's file, put it at {cached_path(entry.original)}"
    kind = {"RETRAINED": "the same network, trained again", "NONE": "a different network"}[entry.relation]
    return (
        f"OpenMMLab's server is gone, and this file is not available elsewhere ({entry.origin}). The closest weights "
        f"are {entry.source} ({kind}): use them instead, or put OpenMMLab's file, if you have it, at "
        f"{cached_path(entry.original)}"
    )


def _mmcls(name: str, options: _Options) -> ResolvedSource:
    known = get_mmcls_models()
    if name not in known:
        raise CheckpointNotFoundError(f"OpenMMLab has no classifier named {name!r}.{did_you_mean(name, known)}")
    return _url(known[name], options)


_SCHEMES: dict[str, Callable[[str, _Options], ResolvedSource]] = {
    "http": lambda rest, options: _url(f"http://{rest}", options),
    "https": lambda rest, options: _url(f"https://{rest}", options),
    "torchvision": _torchvision,
    "modelzoo": _torchvision,
    "timm": _timm,
    "hf": _hugging_face,
    "detectron2": _detectron2,
    "catalog": _catalog,
    "open-mmlab": _open_mmlab,
    "openmmlab": _open_mmlab,
    "mmcls": _mmcls,
}

"""Files on the Hugging Face hub, through huggingface_hub."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import CheckpointError, CheckpointNotFoundError, DownloadError
from .preprocessing import Preprocessing
from .shards import INDEX_NAMES, is_index, shard_names

__all__ = ["fetch_from_hub", "timm_repository"]

_USUAL_NAME = "model.safetensors"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pth.tar", ".pkl")


def timm_repository(name: str) -> str:
    """Return the repository of a timm model.

    Args:
        name: ``resnet50d.ra2_in1k``, or ``resnet50d`` where timm is installed and knows which weights it means.

    Raises:
        CheckpointError: There is no tag, and no timm to ask, or timm knows no such weights.
    """
    if "." in name:
        return f"timm/{name}"
    try:
        from timm.models import get_pretrained_cfg
    except ImportError as error:
        raise CheckpointError(
            f"timm://{name} does not say which weights: write them, as in timm://resnet50d.ra2_in1k, "
            "or pip install timm for its default"
        ) from error
    try:
        tag = getattr(get_pretrained_cfg(name), "tag")  # noqa: B009 - None where timm has no weights
    except (RuntimeError, AttributeError) as error:
        raise CheckpointError(f"timm://{name}: timm has no weights of this name") from error
    return f"timm/{name}.{tag}"


def fetch_from_hub(repository: str, file: str | None) -> tuple[Path, Preprocessing | None]:
    """Return the local copy of a file, after downloading it if there is none yet.

    Args:
        repository: ``ORG/REPO``; ``ORG/REPO@REVISION`` for other than the newest version.
        file: The file; ``None`` means the repository's weights.

    Returns:
        The path, and the preprocessing that the repository's timm config gives, if there is one.

    Raises:
        CheckpointError: huggingface_hub is not installed.
        CheckpointNotFoundError: There is no such repository or file.
        DownloadError: The file could not be fetched.
    """
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise CheckpointError(
            f"{repository} lies on the Hugging Face hub, which needs the hub extra: pip install 'resnet_backbone[hub]'"
        ) from error
    repository, _, revision = repository.partition("@")
    where: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    try:
        path = _download(file, where)
    except errors.LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{file or _USUAL_NAME} of {repository} cannot be downloaded from the hub: {_brief(error)}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        raise CheckpointNotFoundError(f"the hub has no {file or 'weights'} in {repository}: {_brief(error)}") from error
    except CheckpointError:
        raise
    except Exception as error:  # the client's transport changed from version to version, and its errors too
        raise DownloadError(f"{repository} cannot be downloaded from the hub: {_brief(error)}") from error
    return path, _timm_preprocessing(where)


def _download(file: str | None, where: dict[str, Any]) -> Path:
    """Download a file, or the one that holds a repository's weights; with an index, the shards that it lists."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if file is None:
        try:
            return Path(hf_hub_download(filename=_USUAL_NAME, **where))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            file = _choose(where["repo_id"], HfApi().list_repo_files(**where))
    path = Path(hf_hub_download(filename=file, **where))
    if is_index(path.name):
        for name in shard_names(path):
            hf_hub_download(filename=str(PurePosixPath(file).with_name(name)), **where)
    return path


def _choose(repository: str, files: list[str]) -> str:
    """Choose the file that holds a repository's weights."""
    for name in ("pytorch_model.bin", *INDEX_NAMES):
        if name in files:
            return name
    candidates = [name for name in files if name.endswith(_SUFFIXES)]
    if len(candidates) == 1:
        return candidates[0]
    found = ", ".join(candidates) or "none"
    raise CheckpointNotFoundError(f"{repository} has not one file of weights but {found}: write hf://{repository}/FILE")


def _timm_preprocessing(where: dict[str, Any]) -> Preprocessing | None:
    """Read mean and standard deviation out of the config.json that timm writes beside its weights."""
    from huggingface_hub import hf_hub_download

    try:
        config = json.loads(Path(hf_hub_download(filename="config.json", **where)).read_text())
        values = config["pretrained_cfg"]
        mean, std = (tuple(round(255 * float(value), 4) for value in values[key]) for key in ("mean", "std"))
    except Exception:  # noqa: BLE001 - the weights are there; what else the repository holds is a bonus
        return None
    return Preprocessing(mean, std, bgr_to_rgb=True)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

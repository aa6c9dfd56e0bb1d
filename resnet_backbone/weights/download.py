"""Download files into torch.hub's cache or, with huggingface_hub, into its own.

A file is cached only if it is complete. ``torch.hub.download_url_to_file`` has no timeout, accepts truncated responses,
and follows redirects to ftp. A failed download starts over; it is not resumed.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from filelock import FileLock
from torch.hub import tqdm  # type: ignore[attr-defined] # works without tqdm

from ..errors import ArgumentError, CheckpointError, CheckpointNotFoundError, DownloadError, printable
from ..version import __version__
from .preprocessing import Preprocessing, of_repository
from .read import INDEX_NAMES, SINGLE_NAMES, is_index, looks_like_html, shard_names

__all__ = [
    "cache_dir",
    "cached_path",
    "fetch",
    "fetch_from_hub",
    "hash_in_name",
    "matches_hash",
    "sha256_of",
    "timm_repository",
    "without_credentials",
]

ATTEMPTS = 4
TIMEOUT = 30.0
"""Seconds without data after which a download fails."""
IMPATIENT_TIMEOUT = 10.0
"""The same, for a server that is probably gone."""
PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""
_CHUNK = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def cache_dir() -> Path:
    """The folder of torch.hub's checkpoints, which this package shares."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def hash_in_name(name: str) -> str | None:
    """Return the start of the SHA-256 in a file's name, as in ``resnet18-f37072fd.pth``; a date does not count."""
    match = re.search(r"-([0-9a-f]{8,64})\.", name)
    if match is None or re.fullmatch(r"(19|20)\d\d[01]\d[0-3]\d", match[1]):
        return None
    return match[1]


def cached_path(url: str) -> Path:
    """Return the path in the cache of the file at a URL: torch.hub's, if the file's name has a hash.

    Different files share other names (detectron2 has several ``R-50.pkl``), so a hash of the URL is added.
    """
    try:
        name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "checkpoint"
    except ValueError as error:
        raise ArgumentError(f"source {url!r} is not a URL: {error}") from None
    name = name.replace("\0", "")[-150:]
    if hash_in_name(name) is None:
        stem, dot, suffix = name.partition(".")
        name = f"{stem}@{hashlib.sha256(url.encode(errors='surrogateescape')).hexdigest()[:10]}{dot}{suffix}"
    return cache_dir() / name


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def matches_hash(path: Path, expected: str) -> bool:
    """Whether a file's SHA-256 begins with ``expected``."""
    return sha256_of(path).startswith(expected.lower())


def without_credentials(url: str) -> str:
    """Return a URL without user name, password and query, which may be secret, and any other text unchanged."""
    scheme, separator, rest = url.partition("://")
    if not separator or not re.fullmatch(r"[\w.+-]+", scheme):
        return url
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def fetch(
    url: str,
    sha256: str | None = None,
    progress: bool = True,
    patient: bool = True,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Return the cached copy of a file; download it if there is none.

    Args:
        url: An http or https URL.
        sha256: The file's SHA-256 or its first digits; ``None`` means those in its name, if any.
        progress: Whether to show a progress bar.
        patient: Whether to retry after a failure, and to wait longer for the server.
        check: Called with a new file that has no hash; if it raises, the file is not cached.

    Raises:
        DownloadError: The file could not be downloaded or stored, has a different hash, or is a web page.
    """
    final = cached_path(url)
    expected = sha256 or hash_in_name(final.name)
    try:
        # A file gets its name when it is complete, so reading it needs no lock, and the cache may be read-only.
        if _is_good(final, expected):
            return final
        locks = final.parent / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{final.name}.lock"):
            if _is_good(final, expected):
                return final
            if sha256 is not None and final.exists() and final.stat().st_size > 0:
                raise DownloadError(
                    f"{final} exists, and its SHA-256 does not begin with sha256={sha256!r}: delete the file, or "
                    "correct the argument"
                )
            _download(url, final, expected, progress, patient, check)
            return final
    except CheckpointError:
        raise
    except OSError as error:
        shown = without_credentials(url)
        raise DownloadError(f"{shown} cannot be stored at {final} ({error.strerror or error})") from error


def _is_good(path: Path, expected: str | None) -> bool:
    """Whether a file exists, is not empty, and has the expected hash, if any."""
    return path.is_file() and path.stat().st_size > 0 and (expected is None or matches_hash(path, expected))


def _download(
    url: str,
    final: Path,
    expected: str | None,
    progress: bool,
    patient: bool,
    check: Callable[[Path], object] | None,
) -> None:
    shown = without_credentials(url)
    # The suffix may determine how the file is read.
    temporary = final.with_name(f".{uuid.uuid4().hex}.{final.name}")
    try:
        _transfer_with_retries(url, temporary, progress, patient)
        with temporary.open("rb") as file:
            head = file.read(1024)
        if not head:
            raise DownloadError(f"{shown} was discarded: the server sent no data")
        if looks_like_html(head):
            raise DownloadError(f"{shown} was discarded: the server sent a web page instead of the file")
        if expected is not None and not matches_hash(temporary, expected):
            raise DownloadError(f"{shown} was discarded: its SHA-256 does not begin with {expected}")
        if expected is None and check is not None:
            check(temporary)
        temporary.replace(final)
    except CheckpointError as error:
        # The temporary file no longer exists when the message is read.
        raise type(error)(str(error).replace(str(temporary), shown)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _transfer_with_retries(url: str, path: Path, progress: bool, patient: bool) -> None:
    attempts, timeout = (ATTEMPTS, TIMEOUT) if patient else (1, IMPATIENT_TIMEOUT)
    for attempt in range(attempts):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            return _transfer(url, path, progress, timeout)
        except CheckpointError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _NO_SPACE:
                raise
            failure: Exception = error
            if not _is_temporary(error):
                break
    raise DownloadError(f"{without_credentials(url)} cannot be downloaded: {_reason(failure)}") from failure


def _reason(error: Exception) -> str:
    reason = str(getattr(error, "reason", error)) or type(error).__name__
    if isinstance(error, urllib.error.HTTPError):
        reason = f"HTTP {error.code} {reason}"
    # The server may have sent it, and urllib takes a password for a port.
    return printable(re.sub(r"'.*@", "'", reason))


def _is_temporary(error: Exception) -> bool:
    """Whether another attempt may succeed: not with an unknown host, a refused connection, or an invalid URL."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 425, 429) or error.code >= 500
    reason = getattr(error, "reason", error)
    return not (
        isinstance(reason, (ConnectionRefusedError, http.client.InvalidURL, ValueError, str))
        or type(reason).__name__ in ("gaierror", "SSLCertVerificationError")
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to http and https, and not from https to http."""

    # urllib follows 308 only since Python 3.11.
    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        allowed = ("https://",) if req.type == "https" else ("http://", "https://")
        if not newurl.lower().startswith(allowed):
            scheme = newurl.partition(":")[0]
            raise urllib.error.HTTPError(
                req.full_url, code, f"redirects to {scheme}, which is not followed", headers, fp
            )
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)


def _transfer(url: str, path: Path, progress: bool, timeout: float) -> None:
    # Escape spaces and non-ASCII characters, as browsers do.
    escaped = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]", errors="surrogateescape")
    headers = {"User-Agent": f"resnet_backbone/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(escaped, headers=headers)
    with urllib.request.build_opener(_Redirects).open(request, timeout=timeout) as response, path.open("wb") as file:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise DownloadError(
                f"{without_credentials(url)} was discarded: the server sent it encoded ({printable(encoding)})"
            )
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        name = os.fsdecode(path.name).partition(".")[2].partition(".")[2]
        with tqdm(total=total, desc=name, disable=not progress, unit="B", unit_scale=True) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and file.tell() != total:
            raise http.client.HTTPException(f"the connection ended after {file.tell()} of {total} bytes")


_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pth.tar", ".pkl")


def timm_repository(name: str) -> str:
    """Return the repository of a timm model such as ``resnet50d.ra2_in1k``; timm knows the default tag."""
    if "." in name:
        return f"timm/{name}"
    try:
        from timm.models import get_pretrained_cfg
    except ImportError as error:
        raise CheckpointError(
            f"timm://{name} has no tag: add one, as in timm://resnet50d.ra2_in1k, or pip install timm, which knows "
            "the default"
        ) from error
    try:
        tag = getattr(get_pretrained_cfg(name), "tag")  # noqa: B009 - None where timm has no weights
    except (RuntimeError, AttributeError) as error:
        raise CheckpointError(f"timm://{name}: timm has no weights with this name") from error
    return f"timm/{name}.{tag}"


def fetch_from_hub(repository: str, file: str | None) -> tuple[Path, Preprocessing | None]:
    """Return the cached copy of a file on the Hugging Face hub, and the preprocessing that its repository states.

    Args:
        repository: ``ORG/REPO`` or ``ORG/REPO@REVISION``.
        file: The file; ``None`` means the repository's weights.

    Raises:
        CheckpointError: The repository or file does not exist or cannot be downloaded, or huggingface_hub is missing.
    """
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise CheckpointError(
            f"{repository} is on the Hugging Face hub: pip install huggingface_hub safetensors"
        ) from error
    repository, _, revision = repository.partition("@")
    where: dict[str, Any] = {"repo_id": repository, "revision": revision or None}
    try:
        path = _fetch_file(file, where)
    except errors.LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{file or SINGLE_NAMES[0]} of {repository} cannot be downloaded from the hub: {_brief(error)}"
        ) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        raise CheckpointNotFoundError(f"the hub has no {file or 'weights'} in {repository}: {_brief(error)}") from error
    except CheckpointError:
        raise
    except Exception as error:  # the client's exceptions change from version to version
        raise DownloadError(f"{repository} cannot be downloaded from the hub: {_brief(error)}") from error

    def read(name: str) -> str:
        return Path(hf_hub_download(filename=name, **where)).read_text(encoding="utf-8")

    return path, of_repository(read)


def _fetch_file(file: str | None, where: dict[str, Any]) -> Path:
    """Download a file, or the one with a repository's weights; for an index, also the shards that it lists."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if file is None:
        try:
            return Path(hf_hub_download(filename=SINGLE_NAMES[0], **where))
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
    """Choose the file with a repository's weights."""
    usual = [name for name in (SINGLE_NAMES[1], *INDEX_NAMES) if name in files]
    candidates = usual[:1] or [name for name in files if name.endswith(_SUFFIXES)]
    if len(candidates) == 1:
        return candidates[0]
    found = ", ".join(candidates) or "none"
    raise CheckpointNotFoundError(
        f"{repository} must have one file of weights, got {found}: use hf://{repository}/FILE"
    )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

"""Fetch a file over HTTP so that it is there whole, once, or not at all.

The file grows under another name beside its final one, is checked, and is then renamed. A lock lets the first of
several processes fetch while the others wait; whatever breaks off is resumed where the server can, and begun anew
where not.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from filelock import FileLock

from ..version import __version__
from .errors import DownloadError
from .progress import Advance, progress_bar
from .read import looks_like_html

__all__ = ["cache_dir", "cached_path", "fetch", "hash_in_name", "matches_hash"]

ATTEMPTS = 5
"""How often in a row a transfer may fail without a single new byte."""
TIMEOUT = 30.0
"""Seconds without a byte after which a transfer counts as stalled."""
IMPATIENT_TIMEOUT = 10.0
"""The same, for a server that is known to be gone."""
PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""
_CHUNK = 1 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class _Broken(Exception):  # noqa: N818 - no error yet: the transfer is tried again
    """A transfer that stopped before the end."""


class _Part(NamedTuple):
    """A file on its way: the bytes so far, and what the server called the version they are of."""

    data: Path
    version: Path

    def size(self) -> int:
        return self.data.stat().st_size if self.data.exists() else 0

    def discard(self) -> None:
        self.data.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def cache_dir() -> Path:
    """The folder in which torch.hub keeps checkpoints, and we too."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def hash_in_name(name: str) -> str | None:
    """Return the beginning of the SHA-256 that a file's name carries, as in ``resnet18-f37072fd.pth``.

    A date, as in ``r50_coco-20200130.pth``, is none.

    Args:
        name: A file's name.
    """
    match = re.search(r"-([0-9a-f]{8,64})\.", name)
    if match is None or re.fullmatch(r"(19|20)\d\d[01]\d[0-3]\d", match[1]):
        return None
    return match[1]


def cached_path(url: str) -> Path:
    """Where the file of a URL is kept.

    Args:
        url: An http or https URL.

    Returns:
        The path that torch.hub would use, where the file's name holds a hash. Other names are shared by different files
        (detectron2 has several ``R-50.pkl``), so they get a part that the URL decides.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "checkpoint"
    if hash_in_name(name) is None:
        stem, dot, suffix = name.partition(".")
        name = f"{stem}@{hashlib.sha256(url.encode()).hexdigest()[:10]}{dot}{suffix}"
    return cache_dir() / name


def matches_hash(path: Path, expected: str) -> bool:
    """Whether a file's SHA-256 begins with ``expected``."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest().startswith(expected.lower())


def fetch(url: str, sha256: str | None = None, progress: bool = True, patient: bool = True) -> Path:
    """Return the local copy of a file, after downloading it if there is none yet.

    Args:
        url: An http or https URL.
        sha256: The file's SHA-256, or its beginning; ``None`` means the one in its name, if there is one.
        progress: Whether to show a progress bar.
        patient: Whether to try again where a transfer fails, and to wait long for an answer.

    Raises:
        DownloadError: The file could not be fetched, or has another hash, or is a web page.
    """
    final = cached_path(url)
    expected = sha256 or hash_in_name(final.name)
    try:
        # Files appear whole, under their names, so what is there needs no lock: the cache may be one that only others
        # may write to.
        if _is_good(final, expected):
            return final
        locks = final.parent / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{final.name}.lock"):
            if not final.exists() or not _is_whole(final, expected, sha256):
                _download(url, final, expected, progress, patient)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"{url} cannot be stored at {final} ({error.strerror or error})") from error
    return final


def _is_good(path: Path, expected: str | None) -> bool:
    """Whether a file is there, holds something, and has the hash that is expected of it."""
    return path.is_file() and path.stat().st_size > 0 and (expected is None or matches_hash(path, expected))


def _is_whole(path: Path, expected: str | None, given: str | None) -> bool:
    """Whether a file in the cache can be used: a file of the wrong hash is not ours to trust, so it goes."""
    if _is_good(path, expected):
        return True
    if given is not None and path.stat().st_size > 0:
        raise DownloadError(
            f"{path} is there, and its SHA-256 does not begin with sha256={given!r}: remove one of them"
        )
    path.unlink()
    return False


def _download(url: str, final: Path, expected: str | None, progress: bool, patient: bool) -> None:
    part = _Part(final.with_name(f"{final.name}.part"), final.with_name(f"{final.name}.part.json"))
    for resumed in (part.size() > 0, False):
        _transfer(url, part, progress, patient)
        problem = _problem(part.data, expected)
        if problem is None:
            part.data.replace(final)
            part.discard()
            return
        part.discard()
        # A part that another version of the file began may be to blame; a whole transfer is not.
        if not resumed:
            raise DownloadError(f"{url} is not kept: {problem}")


def _problem(path: Path, expected: str | None) -> str | None:
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        return "the server sent nothing"
    if looks_like_html(head):
        return "the server sent a web page in place of the file"
    if expected is not None and not matches_hash(path, expected):
        return f"its SHA-256 does not begin with {expected}"
    return None


def _transfer(url: str, part: _Part, progress: bool, patient: bool) -> None:
    """Fetch what is missing of a file, as often as it takes."""
    failures = 0
    with progress_bar(part.data.name.removesuffix(".part"), progress) as advance:
        while True:
            before = part.size()
            try:
                _request(url, part, advance, TIMEOUT if patient else IMPATIENT_TIMEOUT)
            except (_Broken, OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in _NO_ROOM:
                    raise
                if isinstance(error, urllib.error.HTTPError) and not _is_passing(error.code):
                    raise DownloadError(f"{url} cannot be fetched: HTTP {error.code} {error.reason}") from error
                failures = 1 if part.size() > before else failures + 1
                if failures >= (ATTEMPTS if patient else 1) or _is_final(error):
                    reason = getattr(error, "reason", None) or error
                    raise DownloadError(f"{url} cannot be fetched: {reason}") from error
                time.sleep(PAUSE * 2 ** (failures - 1))
            else:
                return


def _is_passing(code: int) -> bool:
    """Whether a server that answers so may answer otherwise a moment later."""
    return code in (408, 416, 425, 429) or code >= 500


def _is_final(error: Exception) -> bool:
    """Whether there is no such host, no network, or no sense in the URL: none of it comes back within seconds."""
    reason = getattr(error, "reason", error)
    return (
        type(reason).__name__ in ("gaierror", "SSLCertVerificationError")
        or isinstance(reason, (ConnectionRefusedError, http.client.InvalidURL))
        or reason == "no host given"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows 308 too, which urllib learned with Python 3.11."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)


def _request(url: str, part: _Part, advance: Advance, timeout: float) -> None:
    """Ask once for what is missing, and append what comes."""
    headers = {"User-Agent": f"resnet_backbone/{__version__}", "Accept-Encoding": "identity"}
    version = _read_version(part)
    if part.size() and version is None:
        part.discard()
    if version is not None:
        headers |= {"Range": f"bytes={part.size()}-", "If-Range": version}
    opener = urllib.request.build_opener(_Redirects)
    # As browsers do, for URLs with blanks or letters beyond ASCII in them; what is escaped already stays.
    escaped = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    try:
        response = opener.open(urllib.request.Request(escaped, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            part.discard()
        raise
    with contextlib.closing(response):
        resuming = response.status == 206 and _first_byte(response) == part.size()
        if not resuming:
            part.discard()
        _write_version(part, response)
        _append(response, part, advance)


def _append(response: Any, part: _Part, advance: Advance) -> None:
    length = response.headers.get("Content-Length")
    total = part.size() + int(length) if length is not None and length.isdigit() else None
    with part.data.open("ab") as file:
        advance(file.tell(), total)
        for chunk in _chunks(response):
            file.write(chunk)
            advance(file.tell(), total)
        done = file.tell()
    if total is not None and done != total:
        raise _Broken(f"the connection ended after {done} of {total} bytes")


def _chunks(response: IO[bytes]) -> Iterator[bytes]:
    # read1 returns what has arrived, so that nothing of a broken transfer is lost.
    read = getattr(response, "read1", response.read)
    while chunk := read(_CHUNK):
        yield chunk


def _first_byte(response: Any) -> int:
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _read_version(part: _Part) -> str | None:
    """What the server calls the version of which a part is there; ``None`` where resuming is not safe."""
    if not part.size():
        return None
    try:
        version = json.loads(part.version.read_text())["version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return version if isinstance(version, str) else None


def _write_version(part: _Part, response: Any) -> None:
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    # A weak ETag does not promise equal bytes.
    if version is not None and not version.startswith("W/"):
        part.version.write_text(json.dumps({"version": version}))

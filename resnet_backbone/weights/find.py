"""Which of the networks in a checkpoint is meant, and where in the file it lies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .errors import CheckpointError
from .fit import File, fit, read_network
from .formats import Candidate, find_candidates, strip_wrappers
from .read import containers, read_file
from .sources import Resolved, resolve

__all__ = ["find_network", "open_checkpoint"]

# Which of several state dicts people mean, most wanted first; the averaged weights are what frameworks evaluate.
_CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state", "model_state_dict", "teacher")
# Which of several networks in one state dict: the one that self-supervised methods hand on.
_PREFIXES = ("encoder_q.", "base_encoder.", "backbone.", "")


def open_checkpoint(
    source: str | os.PathLike[str], sha256: str | None = None, progress: bool = True, map_location: Any = "cpu"
) -> tuple[Resolved, Any]:
    """Get hold of a checkpoint and read it.

    Args:
        source: See ``load_pretrained``.
        sha256: See ``load_pretrained``.
        progress: See ``load_pretrained``.
        map_location: See ``load_pretrained``.

    Returns:
        Where it was found, and what it holds.
    """
    resolved = resolve(source, sha256, progress, map_location)
    return resolved, resolved.content if resolved.path is None else read_file(resolved.path, map_location)


def find_network(
    checkpoint: Any, prefix: str | None, origin: str, backbone: nn.Module | None = None
) -> tuple[File, list[str]]:
    """Find the network that a checkpoint is about.

    Args:
        checkpoint: What was read.
        prefix: What precedes the network's names; ``None`` finds it.
        origin: The checkpoint's path or URL, for messages.
        backbone: The backbone to find it for; of several networks the one that fits it best is taken.

    Returns:
        The network, and all keys of the state dict that it lies in.

    Raises:
        CheckpointError: There is none, or there are several and nothing tells which is meant.
    """
    found: list[tuple[str, File, list[str]]] = []
    keys: list[str] = []
    for path, tensors in containers(checkpoint):
        state = {strip_wrappers(key): value for key, value in tensors.items()}
        keys += state
        for candidate in _candidates(state, prefix, path):
            found.append((path, read_network(state, candidate), list(state)))
    if not found:
        raise CheckpointError(_nothing_found(origin, keys, prefix))
    if len(found) > 1:
        found = _best(found, backbone)
    if len(found) > 1:
        places = ", ".join(repr(_place(path, file.candidate.prefix)) for path, file, _ in found)
        raise CheckpointError(
            f"{origin} holds {len(found)} networks, under the prefixes {places}: say which, as prefix="
        )
    return found[0][1], found[0][2]


def _place(path: str, prefix: str) -> str:
    return f"{path}.{prefix}" if path else prefix


def _candidates(state: Mapping[str, Tensor], prefix: str | None, path: str) -> list[Candidate]:
    candidates = find_candidates(state)
    if prefix is None:
        return candidates
    wanted = prefix if not prefix or prefix.endswith((".", "/", "_")) else f"{prefix}."
    # The keys that lead to the state dict may precede it, so that of two state dicts either can be meant.
    by_key = [candidate for candidate in candidates if candidate.prefix.startswith(wanted)]
    return by_key or [candidate for candidate in candidates if _place(path, candidate.prefix).startswith(wanted)]


def _nothing_found(origin: str, keys: list[str], prefix: str | None) -> str:
    if not keys:
        return f"{origin} holds no tensors"
    if prefix is not None:
        others = sorted({candidate.prefix for candidate in find_candidates(keys)})
        has = f"; it has networks under {', '.join(map(repr, others))}" if others else ""
        return f"{origin} has no ResNet under prefix={prefix!r}{has}"
    some = ", ".join(keys[:4])
    return f"{origin} holds no ResNet under any names that are known here: its {len(keys)} keys begin with {some}"


def _best(found: list[tuple[str, File, list[str]]], backbone: nn.Module | None) -> list[tuple[str, File, list[str]]]:
    """Narrow several networks down: to those that fit best, then to those that people mean."""
    if backbone is not None:
        sizes = [len(fit(backbone, file).loaded) for _, file, _ in found]
        found = [item for item, size in zip(found, sizes) if size == max(sizes)]
    ranks = [_rank(path, file.candidate.prefix) for path, file, _ in found]
    return [item for item, rank in zip(found, ranks) if rank == min(ranks)]


def _rank(path: str, prefix: str) -> tuple[int, int]:
    last = path.rpartition(".")[2]
    container = _CONTAINERS.index(last) if last in _CONTAINERS else len(_CONTAINERS)
    bare = prefix.removeprefix("module.")
    return container, _PREFIXES.index(bare) if bare in _PREFIXES else len(_PREFIXES)

"""Open a checkpoint, and find the network in it that is meant."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import CheckpointError, MismatchError, printable
from .architecture import other_network
from .download import cache_dir
from .match import SourceNetwork, match_state_dict, read_network
from .names import PrefixMatch, find_prefixes, strip_wrappers
from .read import read_checkpoint
from .sources import ResolvedSource, resolve

__all__ = ["FoundNetwork", "containers", "find_network", "open_checkpoint"]

# What frameworks call the weights averaged over training (EMA); these are what they evaluate.
_AVERAGED = ("ema", "ema_model", "model_ema", "state_dict_ema", "model_ema_state_dict", "ema_model_state_dict")
# Which of several other state dicts people mean, most wanted first. mmengine's EMA hook swaps the two when it saves, so
# that the averaged weights are in state_dict.
_CONTAINERS = ("state_dict", "ema_state_dict", "model", "model_state", "model_state_dict", "teacher")
# Which of several networks in one state dict: the one that self-supervised methods hand on.
_PREFIXES = ("encoder_q.", "base_encoder.", "backbone.", "")
# More networks than this in one file are not compared with the backbone one by one.
_MAX_NETWORKS = 64
# No parameter has a longer name.
_MAX_KEY_LENGTH = 300


class FoundNetwork(NamedTuple):
    """A network and its place in a checkpoint.

    Attributes:
        container: The keys that lead to its state dict, joined by dots.
        network: The network.
        keys: All keys of its state dict.
        averaged: Whether it holds weights averaged over training, as their place says.
    """

    container: str
    network: SourceNetwork
    keys: list[str]
    averaged: bool


class _Place(NamedTuple):
    container: str
    state: dict[str, Tensor]
    match: PrefixMatch

    def __str__(self) -> str:
        return f"{self.container}.{self.match.prefix}" if self.container else self.match.prefix


def open_checkpoint(
    source: str | os.PathLike[str], sha256: str | None = None, progress: bool = True, map_location: Any = "cpu"
) -> tuple[ResolvedSource, Any]:
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
    if resolved.path is None:
        return resolved, resolved.content
    try:
        return resolved, read_checkpoint(resolved.path, map_location)
    except CheckpointError as error:
        if cache_dir() not in resolved.path.parents:
            raise
        raise type(error)(f"{error}. Delete {resolved.path} to download it again") from error


def containers(checkpoint: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Find the state dicts in a checkpoint.

    Args:
        checkpoint: What ``read_file`` returned.

    Yields:
        For each dict that holds tensors or arrays, at any depth: the keys that lead to it, joined by dots, and its
        tensors. Keys that could not be shown are escaped. Optimizer states are left out.
    """
    yield from _containers(checkpoint, "", 0, set())


def _containers(node: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    # A dict may lie in a file at several places, in itself among them.
    if not isinstance(node, Mapping) or depth > 4 or id(node) in seen:
        return
    seen.add(id(node))
    named = [(printable(key, 1000), value) for key, value in node.items() if isinstance(key, str)]
    tensors = {key: tensor for key, value in named if (tensor := _tensor(value)) is not None}
    if tensors:
        yield path, tensors
    for key, value in named:
        if not key.startswith("optim"):
            yield from _containers(value, f"{path}.{key}" if path else key, depth + 1, seen)


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        # Sparse and nested tensors are no layer's weights.
        return value.detach() if value.layout is torch.strided and not value.is_nested else None
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        try:
            # PyTorch takes neither other byte orders nor negative strides.
            return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C", copy=False))
        except TypeError:  # a dtype that this version of PyTorch does not have
            return None
    return None


def find_network(checkpoint: Any, prefix: str | None, origin: str, backbone: nn.Module | None = None) -> FoundNetwork:
    """Find the network that a checkpoint is about.

    Args:
        checkpoint: What was read.
        prefix: What precedes the network's names; ``None`` finds it.
        origin: The checkpoint's path or URL, for messages.
        backbone: The backbone to find it for; of several networks the one that matches it best is taken.

    Raises:
        CheckpointError: There is none, or there are several and nothing tells which is meant.
    """
    places: list[_Place] = []
    keys: list[str] = []
    for container, tensors in containers(checkpoint):
        state = {
            strip_wrappers(key): value
            for key, value in tensors.items()
            # Reports and messages repeat keys, so one that would control the terminal is not taken for a name.
            if len(key) <= _MAX_KEY_LENGTH and key.isprintable()
        }
        keys += state
        places += (_Place(container, state, match) for match in _with_prefix(find_prefixes(state), prefix, container))
    if not places:
        raise CheckpointError(_nothing_found(origin, keys, prefix))
    if len(places) > _MAX_NETWORKS:
        raise CheckpointError(_ambiguous(origin, places))
    found = [(place, read_network(place.state, place.match)) for place in places]
    if len(found) > 1:
        found = _best(found, backbone)
    if len(found) > 1:
        raise CheckpointError(_ambiguous(origin, [place for place, _ in found]))
    place, network = found[0]
    other = other_network(key.removeprefix(network.prefix) for key in place.state)
    if other is not None:
        raise MismatchError(f"{origin} does not match: it holds {other}")
    return FoundNetwork(place.container, network, list(place.state), _is_averaged(place))


def _with_prefix(matches: list[PrefixMatch], prefix: str | None, container: str) -> list[PrefixMatch]:
    if prefix is None:
        return matches
    wanted = prefix if not prefix or prefix.endswith((".", "/", "_")) else f"{prefix}."
    by_key = [match for match in matches if match.prefix.startswith(wanted)]
    # The keys that lead to the state dict may precede it, so that of two state dicts either can be meant.
    return by_key or [match for match in matches if str(_Place(container, {}, match)).startswith(wanted)]


def _nothing_found(origin: str, keys: list[str], prefix: str | None) -> str:
    if not keys:
        return f"{origin} holds no tensors"
    if prefix is not None:
        others = sorted({match.prefix for match in find_prefixes(keys)})
        has = f"; it has networks under {_listed(others)}" if others else ""
        return f"{origin} has no ResNet under prefix={prefix!r}{has}"
    other = other_network(keys)
    if other is not None:
        return f"{origin} holds {other}"
    some = ", ".join(keys[:4])
    return f"{origin} holds no ResNet under any names that are known here: its {len(keys)} keys begin with {some}"


def _ambiguous(origin: str, places: list[_Place]) -> str:
    prefixes = _listed(list(map(str, places)))
    return f"{origin} holds {len(places)} networks, under the prefixes {prefixes}: say which, as prefix="


def _listed(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more


def _best(found: list[tuple[_Place, SourceNetwork]], backbone: nn.Module | None) -> list[tuple[_Place, SourceNetwork]]:
    """Narrow several networks down: to those that match best, then to those that people mean."""
    if backbone is not None:
        sizes = [len(match_state_dict(backbone, network).loaded) for _, network in found]
        found = [item for item, size in zip(found, sizes) if size == max(sizes)]
    ranks = [_rank(place) for place, _ in found]
    return [item for item, rank in zip(found, ranks) if rank == min(ranks)]


def _is_averaged(place: _Place) -> bool:
    return any(part in _AVERAGED for part in str(place).split("."))


def _rank(place: _Place) -> tuple[bool, int, int]:
    last = place.container.rpartition(".")[2]
    bare = place.match.prefix.removeprefix("module.")
    return not _is_averaged(place), _index(_CONTAINERS, last), _index(_PREFIXES, bare)


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)

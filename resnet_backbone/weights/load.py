"""Load a checkpoint into a backbone: open the file, find the network in it, and load all of it or nothing."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError, CheckpointError, MismatchError, printable
from .architecture import other_network
from .download import cache_dir
from .match import InputChannels, Match, SourceNetwork, check_input_channels, match_state_dict, read_network
from .names import PrefixMatch, find_prefixes, source_name, strip_wrappers
from .preprocessing import WeightFacts, infer_facts
from .read import read_checkpoint
from .report import LoadReport, check_match, check_values, listed, warnings_about
from .sources import ResolvedSource, resolve

__all__ = ["containers", "find_backbone", "find_network", "load_pretrained", "open_checkpoint"]

# Names of weights that were averaged over training (EMA), which are the ones that frameworks evaluate.
_AVERAGED = ("ema", "ema_model", "model_ema", "state_dict_ema", "model_ema_state_dict", "ema_model_state_dict")
# Names of other state dicts, in order of preference. mmengine's EMA hook swaps the two when it saves, so that the
# averaged weights are in state_dict.
_CONTAINERS = ("state_dict", "ema_state_dict", "model", "model_state", "model_state_dict", "teacher")
# Prefixes of networks in one state dict, in order of preference: self-supervised methods pass on the query encoder.
_PREFIXES = ("encoder_q.", "encoder_q.0.", "base_encoder.", "backbone.", "")
# Translating more names than this would take too long.
_MAX_NAMES = 100_000
# Longer keys are not parameter names.
_MAX_KEY_LENGTH = 300


def load_pretrained(
    backbone: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    prefix: str | None = None,
    strict: bool = True,
    sha256: str | None = None,
    progress: bool = True,
    map_location: Any = "cpu",
    input_channels: InputChannels = "repeat",
) -> LoadReport:
    """Load pretrained weights from any framework into a backbone.

    Parameter names are recognized and translated. The backbone changes only if the file has everything that it needs;
    after an exception it is unchanged.

    Args:
        backbone: A ResNet of this package, another network with the same parameter names, or a module that contains
            one: ``DistributedDataParallel``, a compiled or averaged model, the result of ``with_fpn``, a detector.
        source: A path (``.pth``, ``.pt``, ``.pth.tar``, ``.safetensors``, detectron2's ``.pkl``, Paddle's
            ``.pdparams``, the index of a sharded checkpoint), an http or https URL, ``torchvision://resnet50``,
            ``torchvision://ResNet50_Weights.IMAGENET1K_V2``, ``timm://resnet50d.ra2_in1k``, ``hf://ORG/REPO/FILE``,
            ``detectron2://PATH``, ``open-mmlab://NAME``, any other source that mmengine has a loader for, or a state
            dict.
        prefix: Prefix of the network's keys in the file, such as ``'backbone.'``; ``None`` finds it.
        strict: Refuse a file that lacks a tensor of the backbone, has one of another shape, or is of another network.
            Otherwise load what matches; the report lists the rest.
        sha256: The file's SHA-256, or its first 8 digits or more.
        progress: Whether to show a progress bar while downloading.
        map_location: Device of the tensors that are read, as in ``torch.load``. The backbone stays on its device.
        input_channels: How to adapt the first convolution if the backbone has a different number of input channels
            than the file: ``'repeat'`` repeats the file's channels, times 3 / ``in_channels`` (for one, it adds them
            up), ``'red'`` adds copies of the red channel, ``'zeros'`` adds zeros. A mapping gives, for each input
            channel of the backbone, the file's channel to copy, as an index or as ``'red'``, ``'green'`` or
            ``'blue'``; the other channels are zero.

    Returns:
        What was loaded, what was not, and which images the weights expect.

    Raises:
        CheckpointError: The file cannot be found, downloaded or read, or does not match: see the subclasses.
        ArgumentError: An argument has an invalid value, or ``backbone`` contains several ResNets.
        DeployedError: The backbone is deployed and compiled, so its weights are constants.

    Examples:
        >>> from resnet_backbone import ResNet, load_pretrained
        >>> report = load_pretrained(ResNet(depth=18), "torchvision://resnet18")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    _check_arguments(backbone, source, prefix, sha256)
    check_input_channels(input_channels)
    backbone = find_backbone(backbone)
    if isinstance(source, Mapping):
        resolved, checkpoint = ResolvedSource(None, "the state dict"), source
    else:
        resolved, checkpoint = open_checkpoint(source, sha256, progress, map_location)
    network = find_network(checkpoint, prefix, resolved.origin, backbone)
    facts = infer_facts(resolved.preprocessing, resolved.style, resolved.origin, checkpoint, network)
    bgr = facts.preprocessing is not None and not facts.preprocessing.bgr_to_rgb
    match = match_state_dict(backbone, network, input_channels, bgr)
    report = _report(source, network, match, facts, backbone)
    check_match(report, network, facts, backbone, strict)
    check_values(report.origin, match.loaded, backbone.state_dict())
    _copy(backbone, match.loaded)
    for warning in report.warnings:
        print_log(f"resnet_backbone: {warning}", logger="current", level=logging.WARNING)
    return report


def find_backbone(module: nn.Module) -> nn.Module:
    """Return the ResNet in a module: the module itself, or one that it wraps or contains."""
    matches = find_prefixes(strip_wrappers(key) for key in module.state_dict())
    prefixes = list(dict.fromkeys(match.prefix for match in matches if match.scheme.is_own))
    if len(prefixes) > 1 and "" not in prefixes:
        names = ", ".join(prefix.rstrip(".") for prefix in prefixes)
        raise ArgumentError(f"backbone must be one ResNet; this {type(module).__name__} contains several: {names}")
    prefix = "" if not prefixes or "" in prefixes else prefixes[0]
    # The innermost of nested wrappers, such as a compiled module in DistributedDataParallel.
    paths = [name for name, _ in module.named_modules() if strip_wrappers(f"{name}." if name else "") == prefix]
    return module.get_submodule(max(paths, key=len))


def _check_arguments(backbone: Any, source: Any, prefix: Any, sha256: Any) -> None:
    if not isinstance(backbone, nn.Module):
        raise ArgumentTypeError(f"backbone must be a torch.nn.Module, got {backbone!r}")
    if prefix is not None and not isinstance(prefix, str):
        raise ArgumentTypeError(f"prefix must be a string, such as 'backbone.', or None, got {prefix!r}")
    if isinstance(source, nn.Module):
        raise ArgumentTypeError("source must be a state dict, a path or a name, got a module: pass its state_dict()")
    if isinstance(source, Mapping) and sha256 is not None:
        raise ArgumentError(f"sha256 is for files, and source is a state dict: got sha256={sha256!r}")
    for name, value in backbone.state_dict().items():
        if value.is_meta:
            raise MismatchError(
                f"backbone has no memory for {name}: it is on the meta device; call "
                "backbone.to_empty(device='cpu') first"
            )
        if type(value).__name__ == "DTensor":
            raise MismatchError(f"backbone's {name} is sharded (a DTensor): load before fully_shard()")


def _report(
    source: str | os.PathLike[str] | Mapping[str, Any],
    network: SourceNetwork,
    match: Match,
    facts: WeightFacts,
    backbone: nn.Module,
) -> LoadReport:
    outside = [key for key in network.keys if not key.startswith(network.prefix)]
    return LoadReport(
        source=facts.origin if isinstance(source, Mapping) else os.fsdecode(source),
        origin=facts.origin,
        format=source_name(PrefixMatch(network.prefix, network.scheme), network.keys),
        network=network.architecture.name if network.architecture else "network",
        prefix=network.prefix,
        container=network.container,
        averaged=network.averaged,
        loaded=tuple(match.loaded),
        renamed=match.renamed,
        unused=tuple(match.unused + outside),
        unexpected=tuple(match.unexpected),
        missing=tuple(match.missing),
        added=tuple(match.added),
        mismatched=tuple(match.mismatched),
        changes=tuple(match.changes),
        warnings=tuple(warnings_about(facts, network, match, backbone)),
        preprocessing=facts.preprocessing,
        preprocessing_basis=facts.basis,
        style=facts.style,
    )


def _copy(backbone: nn.Module, loaded: Mapping[str, Tensor]) -> None:
    """Load matching tensors by ``load_state_dict``, so that the backbone's own checks and hooks apply.

    If one of them raises, the backbone gets its old values back.
    """
    state = backbone.state_dict()
    before = {name: state[name].detach().clone() for name in loaded}
    new = OrderedDict(loaded)
    new._metadata = getattr(state, "_metadata", None)  # type: ignore[attr-defined]
    try:
        backbone.load_state_dict(new, strict=False)
    except BaseException:
        with torch.no_grad():
            for name, value in before.items():
                state[name].copy_(value)
        raise


class _Place(NamedTuple):
    container: str
    state: dict[str, Tensor]
    match: PrefixMatch

    def __str__(self) -> str:
        return f"{self.container}.{self.match.prefix}" if self.container else self.match.prefix

    @property
    def is_averaged(self) -> bool:
        return any(part in _AVERAGED for part in str(self).split("."))

    def rank(self) -> tuple[bool, int, int]:
        """Sort key: the network that people most likely mean comes first."""
        last, bare = self.container.rpartition(".")[2], self.match.prefix.removeprefix("module.")
        return not self.is_averaged, _index(_CONTAINERS, last), _index(_PREFIXES, bare)


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


def open_checkpoint(
    source: str | os.PathLike[str], sha256: str | None = None, progress: bool = True, map_location: Any = "cpu"
) -> tuple[ResolvedSource, Any]:
    """Find and read a checkpoint; the arguments are those of ``load_pretrained``."""
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
    """Yield each dict of a checkpoint that has tensors or arrays, with the keys that lead to it, joined by dots.

    Unprintable keys are escaped. Optimizer states are left out.
    """
    yield from _containers(checkpoint, "", 0, set())


def _containers(node: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    # A dict may occur several times, even in itself.
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
        # No layer has sparse or nested weights.
        return value.detach() if value.layout is torch.strided and not value.is_nested else None
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        try:
            # PyTorch supports neither other byte orders nor negative strides.
            return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C", copy=False))
        except TypeError:  # a dtype that this version of PyTorch does not have
            return None
    return None


def find_network(checkpoint: Any, prefix: str | None, origin: str, backbone: nn.Module | None = None) -> SourceNetwork:
    """Find the network in a checkpoint. If there are several, the one that matches the backbone best is returned.

    Args:
        checkpoint: The content of the file.
        prefix: Prefix of the network's keys; ``None`` finds it.
        origin: Path or URL of the checkpoint, for messages.
        backbone: The backbone to match.

    Raises:
        CheckpointError: There is no network, or several match equally well.
    """
    places: list[_Place] = []
    keys: list[str] = []
    for container, tensors in containers(checkpoint):
        state = {
            strip_wrappers(key): value
            for key, value in tensors.items()
            # Reports and messages repeat keys, which must not control the terminal.
            if len(key) <= _MAX_KEY_LENGTH and key.isprintable()
        }
        keys += state
        places += _with_prefix([_Place(container, state, match) for match in find_prefixes(state)], prefix)
    if not places:
        raise CheckpointError(f"{origin} {_nothing_found(keys, prefix)}")
    if len(keys) > _MAX_NAMES:
        raise CheckpointError(f"{origin} has {len(keys)} tensors, more than any ResNet")
    # Each network may have all tensors of its state dict.
    if sum(len(place.state) for place in places) <= _MAX_NAMES:
        found = _best([(place, read_network(place.state, place.match)) for place in places], backbone)
        places = [place for place, _ in found]
    if len(places) > 1:
        names = listed((repr(str(place)) for place in places), most=10)
        raise CheckpointError(f"{origin} has {len(places)} networks, with the prefixes {names}: choose one by prefix=")
    place, network = found[0]
    other = other_network(key.removeprefix(network.prefix) for key in place.state)
    if other is not None:
        raise MismatchError(f"{origin} does not match: it has {other}")
    return replace(network, container=place.container, keys=tuple(place.state), averaged=place.is_averaged)


def _with_prefix(places: list[_Place], prefix: str | None) -> list[_Place]:
    if prefix is None:
        return places
    wanted = prefix if not prefix or prefix.endswith((".", "/", "_")) else f"{prefix}."
    by_key = [place for place in places if place.match.prefix.startswith(wanted)]
    # The prefix may include the keys that lead to the state dict, to choose between two of them.
    return by_key or [place for place in places if str(place).startswith(wanted)]


def _nothing_found(keys: list[str], prefix: str | None) -> str:
    if not keys:
        return "has no tensors with names"
    if prefix is not None:
        others = sorted({match.prefix for match in find_prefixes(keys)})
        return f"has no ResNet under prefix={prefix!r}" + (
            f"; it has networks under {listed(map(repr, others), most=10)}" if others else ""
        )
    other = other_network(keys)
    if other is not None:
        return f"has {other}"
    some = ", ".join(keys[:4])
    return f"has no ResNet with known parameter names: its {len(keys)} keys begin with {some}"


def _best(found: list[tuple[_Place, SourceNetwork]], backbone: nn.Module | None) -> list[tuple[_Place, SourceNetwork]]:
    """Reduce several networks to those that match best, then to those that people most likely mean."""
    if backbone is not None and len(found) > 1:
        sizes = [len(match_state_dict(backbone, network).loaded) for _, network in found]
        found = [item for item, size in zip(found, sizes) if size == max(sizes)]
    first = min(place.rank() for place, _ in found)
    return [(place, network) for place, network in found if place.rank() == first]

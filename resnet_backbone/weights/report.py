"""What loading did, or would have done, as data and as text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import printable
from .preprocessing import Preprocessing

__all__ = ["LoadReport", "group"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """How a checkpoint matched a backbone.

    Attributes:
        source: The source, as it was given.
        origin: The path or URL that it led to.
        format: Whose names the file uses.
        network: What network the file holds, such as ``'ResNet-50'``.
        prefix: What preceded the network's names in the file.
        container: The keys that led to its state dict in the file, joined by dots, such as ``'ema.module'``.
        averaged: Whether these are weights averaged over training (EMA).
        loaded: The backbone's tensors that were loaded, by its own names.
        renamed: The file's name of each loaded tensor that it calls otherwise, by the backbone's name.
        unused: What the file has that the backbone does not have: classifiers, necks, heads, stages beyond the last.
        unexpected: What the file has inside the backbone's stem and stages that the backbone lacks.
        missing: What the backbone has and the file lacks.
        added: What the backbone has and pretrained files never do: offsets of deformable convolutions, plugins.
        mismatched: Name, shape in the file and shape in the backbone of what could not be loaded for its shape.
        changes: What was computed rather than copied, in words: an adapted first convolution, folded norm layers.
        warnings: What deserves a second look, in words.
        preprocessing: The images that the weights take; ``None`` where nothing says.
        preprocessing_basis: Who says so: ``'source'``, ``'file'``, or ``'convention'`` where it is merely usual for
            weights with such names.
        style: Where the weights' Bottlenecks stride, ``'pytorch'`` or ``'caffe'``; ``None`` where nothing says.
    """

    source: str
    origin: str
    format: str
    network: str
    prefix: str
    loaded: tuple[str, ...]
    renamed: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    style: str | None = None
    container: str = ""
    averaged: bool = False
    preprocessing_basis: str | None = None

    def summary(self) -> str:
        """The report in one line."""
        return printable(
            f"{len(self.loaded)} tensors of a {self.network} ({self.format} names) from {self.origin}", 10_000
        )

    def __str__(self) -> str:
        lines = [f"{self.network} from {self.origin}", f"  names       {self.format}{self._prefix()}"]
        if self.averaged:
            lines.append(f"  averaged    these are weights averaged over training, under {self._place()!r}")
        lines.append(f"  loaded      {group(self.loaded)}")
        if self.renamed:
            ours, theirs = next(iter(self.renamed.items()))
            lines.append(f"  renamed     {len(self.renamed)} tensors, such as {theirs} -> {ours}")
        lines += [f"  changed     {change}" for change in self.changes]
        for title, names in (
            ("not used", self.unused),
            ("unexpected", self.unexpected),
            ("missing", self.missing),
            ("new", self.added),
        ):
            if names:
                lines.append(f"  {title:<11} {group(names)}")
        for name, theirs_shape, ours_shape in self.mismatched:
            lines.append(f"  shape       {name}: {theirs_shape} in the file, {ours_shape} in the backbone")
        lines.append(f"  images      {self._images()}")
        lines += [f"  warning     {warning}" for warning in self.warnings]
        # Names and paths may hold what would control a terminal, or what cannot be encoded.
        return "\n".join(printable(line, 10_000) for line in lines)

    def _images(self) -> str:
        if self.preprocessing is None:
            return "unknown: the file does not say how to normalise them"
        usual = " (usual with these names; the file does not say)" if self.preprocessing_basis == "convention" else ""
        return f"{self.preprocessing}{usual}"

    def _place(self) -> str:
        return ".".join(part for part in (self.container, self.prefix.rstrip(".")) if part)

    def _prefix(self) -> str:
        return f", under {self.prefix!r}" if self.prefix else ""


def group(names: Iterable[str]) -> str:
    """List names readably: by the module they belong to, with their number.

    Args:
        names: Names of tensors.

    Returns:
        Such as ``'318 tensors: conv1 (1), bn1 (5), layer1 (60), ...'``.
    """
    counts: dict[str, int] = {}
    for name in names:
        parts = name.split("." if "." in name else "_")
        # A wrapper's name says nothing; what it wraps does.
        key = ".".join(parts[:2]) if parts[0] in ("module", "model", "backbone", "teacher", "student") else parts[0]
        counts[key] = counts.get(key, 0) + 1
    total = sum(counts.values())
    listed = [f"{name} ({count})" for name, count in list(counts.items())[:12]]
    more = f", and {len(counts) - 12} more groups" if len(counts) > 12 else ""
    return f"{total} tensor{'s' * (total != 1)}: {', '.join(listed)}{more}" if total else "nothing"

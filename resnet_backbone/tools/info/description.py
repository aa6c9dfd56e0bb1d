"""A backbone in numbers, part by part, as data and as text."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HEADINGS", "Description", "Norms", "Part"]

HEADINGS = ("part", "layers", "channels", "stride", "output", "params M", "MACs G", "kept MB", "trains", "norm layers")


@dataclass(frozen=True)
class Norms:
    """The norm layers of a part.

    Attributes:
        types: How many there are of each type, such as ``{'BN': 10}``.
        updated: How many update their running statistics, being in train mode.
        fixed: How many normalise by running statistics that stay as they are.
        folded: How many are computed with the convolution before them, as one.
        gone: How many ``switch_to_deploy`` has folded for good.
    """

    types: dict[str, int]
    updated: int
    fixed: int
    folded: int
    gone: int

    def __str__(self) -> str:
        words = [f"{count} {name}" for name, count in self.types.items()]
        if self.updated and self.fixed:
            words.append(f"{self.updated} train, {self.fixed} eval")
        elif self.updated or self.fixed:
            words.append("train" if self.updated else "eval")
        if self.folded:
            words[-1] += ", folded" if self.folded == sum(self.types.values()) else f", {self.folded} folded"
        kinds = [" ".join(words)] if words else []
        return ", ".join([*kinds, *([f"{self.gone} folded for good"] if self.gone else [])])


@dataclass(frozen=True)
class Part:
    """One part of a backbone: the stem, a stage, or a classifier.

    Attributes:
        name: ``'stem'``, or the module's name, such as ``'layer2'``.
        layers: What it is made of, in words.
        channels: Number of channels that it returns.
        stride: Stride of its output relative to the input; ``None`` for a classifier.
        size: Size of its output in positions, such as ``(56, 56)``; ``None`` where it does not run, since
            ``out_indices`` asks for none of it.
        params: Number of parameters.
        trainable: Number of parameters that require grad.
        macs: Multiply-accumulate operations of the forward pass, those of the whole batch.
        kept_bytes: What autograd keeps for the backward pass, parameters and buffers apart.
        norms: Its norm layers.
    """

    name: str
    layers: str
    channels: int
    stride: int | None
    size: tuple[int, ...] | None
    params: int
    trainable: int
    macs: int
    kept_bytes: int
    norms: Norms

    @property
    def cells(self) -> tuple[str, ...]:
        """The part as a row of the table."""
        size = "not run" if self.size is None else " x ".join(map(str, self.size))
        stride = "" if self.stride is None else str(self.stride)
        return (self.name, self.layers, str(self.channels), stride, size, *_costs(self), str(self.norms))


@dataclass(frozen=True)
class Description:
    """A backbone, part by part.

    Attributes:
        title: The network in words.
        input_shape: Shape of the input that it was run on.
        parts: The parts, in the order in which they run.
        notes: What the numbers leave out.
    """

    title: str
    input_shape: tuple[int, ...]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(part.params for part in self.parts)

    @property
    def trainable(self) -> int:
        """Number of parameters that require grad."""
        return sum(part.trainable for part in self.parts)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of the forward pass, those of the whole batch."""
        return sum(part.macs for part in self.parts)

    @property
    def kept_bytes(self) -> int:
        """What autograd keeps for the backward pass, parameters and buffers apart."""
        return sum(part.kept_bytes for part in self.parts)

    @property
    def total_cells(self) -> tuple[str, ...]:
        """The last row of the table."""
        return ("total", "", "", "", "", *_costs(self), "")

    def __str__(self) -> str:
        rows = [HEADINGS, *(part.cells for part in self.parts), self.total_cells]
        widths = [max(map(len, column)) for column in zip(*rows)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        rule = "-" * max(map(len, lines))
        return "\n".join([self.title, *lines[:1], rule, *lines[1:-1], rule, lines[-1], *self.notes])


def _costs(item: Part | Description) -> tuple[str, ...]:
    """The columns that add up."""
    params = f"{item.params / 1e6:.2f}"
    if item.trainable in (0, item.params):
        trains = "no" if item.trainable == 0 else "yes"
    else:
        trains = f"{item.trainable / 1e6:.2f} M"
    return (params, f"{item.macs / 1e9:.3f}", f"{item.kept_bytes / 1e6:.1f}", trains)

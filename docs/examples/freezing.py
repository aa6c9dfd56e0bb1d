"""Draw which parts of a ResNet are updated in training, and which norms can be folded, for several settings.

python docs/examples/freezing.py --out docs/freezing.png
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone import ResNet

SETTINGS: dict[str, dict[str, Any]] = {
    "mmdet's configs:\nfrozen_stages=1\nnorm_eval=True": dict(frozen_stages=1),
    "everything trains:\nfrozen_stages=-1\nnorm_eval=False": dict(norm_eval=False),
    "fine-tuning:\nfrozen_stages=3\nnorm_eval=True": dict(frozen_stages=3),
    "caffe weights:\nfrozen_stages=1\nrequires_grad=False": dict(
        frozen_stages=1, norm_cfg=dict(type="BN", requires_grad=False)
    ),
    "feature extractor:\nfrozen_stages=4": dict(frozen_stages=4),
}
PARTS = {"stem": ("conv1", "bn1"), **{f"layer{n}": (f"layer{n}",) for n in range(1, 5)}}


class Cell(NamedTuple):
    """What is updated in a part of the network in training.

    Attributes:
        convs: Whether the weights of its convolutions are trained.
        norms: Whether the weights and biases of its norms are trained.
        statistics: Whether the running statistics of its norms are updated.
    """

    convs: bool
    norms: bool
    statistics: bool

    @property
    def folds(self) -> str:
        """What ``fold_norm=True`` does with the norms of this part."""
        return "cannot fold" if self.statistics else "folds"


def look_at(backbone: ResNet, names: tuple[str, ...]) -> Cell:
    """Find out what is updated in these modules of a backbone."""
    modules = [module for name in names for module in backbone.get_submodule(name).modules()]
    norms = [module for module in modules if isinstance(module, _BatchNorm)]
    convs = [module for module in modules if isinstance(module, nn.Conv2d)]
    kinds = (
        {module.weight.requires_grad for module in convs},
        {module.weight.requires_grad for module in norms},
        {module.training for module in norms},
    )
    (convs_train,), (norms_train,), (update,) = kinds  # the same throughout a part
    return Cell(convs_train, norms_train, update)


def table() -> dict[str, dict[str, Cell]]:
    """Inspect each part of the network for each setting."""
    return {
        title: {part: look_at(ResNet(18, **arguments).train(), names) for part, names in PARTS.items()}
        for title, arguments in SETTINGS.items()
    }


def draw(cells: dict[str, dict[str, Cell]]) -> Any:
    """Draw the table as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    updated, fixed, ink = "#e4572e", "#d7dce3", "#16181d"
    figure = Figure(figsize=(8.4, 5.6), dpi=160)
    axes = figure.add_axes((0.02, 0.03, 0.96, 0.88))
    axes.set_xlim(-0.55, len(cells))
    axes.set_ylim(len(PARTS) + 0.55, -0.62)
    axes.axis("off")
    figure.suptitle("What is updated in training", x=0.03, ha="left", weight="bold", color=ink)
    for row, part in enumerate(PARTS):
        axes.text(-0.08, row + 0.42, part, ha="right", va="center", weight="bold", color=ink)
    for column, (title, parts) in enumerate(cells.items()):
        axes.text(column + 0.47, -0.1, title, ha="center", va="bottom", fontsize=9, color=ink)
        for row, cell in enumerate(parts.values()):
            marks = {"convolutions": cell.convs, "norm weight, bias": cell.norms, "running statistics": cell.statistics}
            for line, (name, on) in enumerate(marks.items()):
                corner = (column + 0.02, row + 0.02 + 0.22 * line)
                axes.add_patch(Rectangle(corner, 0.9, 0.2, facecolor=updated if on else fixed, edgecolor="none"))
                color = "#ffffff" if on else "#5b6270"
                axes.text(column + 0.47, corner[1] + 0.1, name, ha="center", va="center", fontsize=8.5, color=color)
            axes.text(column + 0.47, row + 0.77, cell.folds, ha="center", va="center", fontsize=8.5, color=ink)
    for x, color, text in ((0.02, updated, "updated"), (0.82, fixed, "not updated")):
        axes.add_patch(Rectangle((x, len(PARTS) + 0.2), 0.12, 0.2, facecolor=color))
        axes.text(x + 0.17, len(PARTS) + 0.3, text, va="center", fontsize=9, color=ink)
    note = "below each part: whether fold_norm=True folds its norms"
    axes.text(1.92, len(PARTS) + 0.3, note, va="center", fontsize=9, color=ink)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Draw the figure to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="freezing.png", help="picture to write (%(default)s)")
    arguments = parser.parse_args(argv)
    draw(table()).savefig(arguments.out)


if __name__ == "__main__":
    main()

"""Tables of the results of benchmarks/ucr.py and of published ones.

python -m benchmarks.ucr_table ucr.json --page docs/signals.md --picture docs/ucr.png
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from benchmarks.ucr import BASELINES, DATA_SETS, NETWORKS, THREE_SCALES, Run, read_results

# Mean accuracy in the test split, in percent, and its standard deviation where it was published.
# ResNet of Wang et al. (2017), trained by Ismail Fawaz et al. (2019, https://arxiv.org/abs/1809.04356): the files
# results-uea-avg-std.csv, results-mts-avg-std.csv (10 runs) and results-ucr-128.csv (5 runs) of
# https://github.com/hfawaz/dl-4-tsc.
RESNET = {
    "ACSF1": (91.6, 2.6), "ArrowHead": (84.5, 1.2), "GunPoint": (99.1, 0.7), "ItalyPowerDemand": (96.3, 0.4),
    "OSULeaf": (97.9, 0.8), "PickupGestureWiimoteZ": (70.4, 3.0), "JapaneseVowels": (99.2, 0.3), "Coffee": (100.0, 0.0),
    "PigCVP": (91.8, 1.2),
}  # fmt: skip
# An ensemble of five networks (Ismail Fawaz et al., 2020, https://arxiv.org/abs/1909.04939): the files
# results-InceptionTime-128.csv and results-mts.csv of https://github.com/hfawaz/InceptionTime.
INCEPTION_TIME = {
    "ACSF1": 92.0, "ArrowHead": 84.6, "GunPoint": 100.0, "ItalyPowerDemand": 96.5, "OSULeaf": 94.2,
    "PickupGestureWiimoteZ": 76.0, "BasicMotions": 100.0, "JapaneseVowels": 99.2, "Coffee": 100.0, "PigCVP": 96.2,
}  # fmt: skip


def summarize(runs: list[Run]) -> dict[str, dict[str, tuple[float, float | None]]]:
    """Mean accuracy and standard deviation in percent, of each method on each data set."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in runs:
        groups[run.method, run.data_set].append(100 * run.accuracy)
    summary: dict[str, dict[str, tuple[float, float | None]]] = defaultdict(dict)
    for (method, data_set), values in groups.items():
        summary[method][data_set] = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
    summary["ResNet, published"] = dict(RESNET)
    summary["InceptionTime, published"] = {name: (value, None) for name, value in INCEPTION_TIME.items()}
    return summary


def table(runs: list[Run]) -> str:
    """Format the accuracies in Markdown; the last row averages over the data sets that every network has."""
    summary = summarize(runs)
    order = (THREE_SCALES, *BASELINES, "ResNet, published", "InceptionTime, published")
    methods = [method for method in order if method in summary]
    seeds = Counter(run.data_set for run in runs if run.method == THREE_SCALES)
    names = [name for name in DATA_SETS if any(name in summary[method] for method in methods)]
    networks = [method for method in methods if method not in BASELINES]
    common = [name for name in names if all(name in summary[method] for method in networks)]
    means = [
        f"**{statistics.mean(summary[method][name][0] for name in common):.1f}**"
        if summary[method].keys() >= set(common)
        else ""
        for method in methods
    ]
    return "\n".join([
        *_head("data set", "seeds", *methods),
        *(_row(name, seeds[name], *(_cell(summary[method].get(name)) for method in methods)) for name in names),
        _row(f"mean of {len(common)}", "", *means),
    ])  # fmt: skip


def comparison(runs: list[Run]) -> str:
    """Format in Markdown the differences in accuracy from the three scales, with the same seeds."""
    accuracies = {run[:3]: 100 * run.accuracy for run in runs}
    differences: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (name, method, seed), accuracy in accuracies.items():
        if method in NETWORKS and method != THREE_SCALES and (name, THREE_SCALES, seed) in accuracies:
            differences[name][method].append(accuracy - accuracies[name, THREE_SCALES, seed])
    methods = [method for method in NETWORKS if any(method in of for of in differences.values())]
    rows = [
        _row(name, *(_difference(differences[name][method]) for method in methods))
        for name in DATA_SETS
        if name in differences
    ]
    return "\n".join([*_head("data set", *methods), *rows])


def _head(*cells: str) -> tuple[str, str]:
    return _row(*cells), _row(*["---"] * len(cells))


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def draw(runs: list[Run], path: str) -> None:
    """Draw the table: a row for each data set, a mark for each method, a line for its standard deviation."""
    from matplotlib.figure import Figure

    summary = summarize(runs)
    styles = {
        THREE_SCALES: dict(color="#c1121f", marker="o", markersize=9),
        "MiniRocket": dict(color="#33658a", marker="D"),
        "1-NN DTW": dict(color="#86bbd8", marker="X"),
        "ResNet, published": dict(color="#16181d", marker="|", markersize=16, markeredgewidth=2.5),
        "InceptionTime, published": dict(color="#8a8d93", marker="|", markersize=16, markeredgewidth=2.5),
    }
    styles = {method: style for method, style in styles.items() if method in summary}
    figure = Figure(figsize=(10, 6), dpi=110, layout="constrained")
    axis = figure.subplots()
    for method, style in reversed(styles.items()):
        of_method = summary[method]
        rows = [DATA_SETS.index(name) for name in of_method]
        means, deviations = zip(*of_method.values())
        lines = dict(fmt="none", ecolor=style["color"], elinewidth=1.2)
        axis.errorbar(means, rows, xerr=[deviation or 0 for deviation in deviations], **lines)
        axis.plot(means, rows, linestyle="none", label=method, **style)
    axis.set_yticks(range(len(DATA_SETS)), DATA_SETS)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("accuracy on the test signals in percent: mean and standard deviation")
    axis.spines[["top", "right"]].set_visible(False)
    order = list(reversed(axis.get_legend_handles_labels()[0]))
    figure.legend(handles=order, loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path)


def _cell(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return ""
    mean, deviation = value
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def _difference(values: list[float]) -> str:
    return f"{round(statistics.mean(values), 1) + 0.0:+} ({len(values)})" if values else ""  # + 0.0: no -0.0


def fill(page: str, runs: list[Run]) -> str:
    """Return a Markdown page with the tables inserted after the comments that name them."""
    for name, of in (("accuracies", table(runs)), ("comparison", comparison(runs))):
        page, count = re.subn(rf"(<!-- {name} -->\n\n)(\|.*\n)*", lambda found: f"{found[1]}{of}\n", page)  # noqa: B023
        if count != 1:
            raise ValueError(f"page must have one comment <!-- {name} -->, got {count}")
    return page


def main(argv: list[str] | None = None) -> None:
    """Print the tables, insert them into a page, and draw the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", help="results of benchmarks/ucr.py")
    parser.add_argument("--page", metavar="FILE", help="Markdown page to update")
    parser.add_argument("--picture", metavar="FILE", help="picture of the accuracies to write")
    arguments = parser.parse_args(argv)
    runs = read_results(arguments.results)
    print(f"{table(runs)}\n\n{comparison(runs)}")
    if arguments.page:
        Path(arguments.page).write_text(fill(Path(arguments.page).read_text(), runs))
    if arguments.picture:
        draw(runs, arguments.picture)


if __name__ == "__main__":
    main()

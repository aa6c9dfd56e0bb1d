"""The work of ``resnet-backbone doctor``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ...version import __version__
from .diagnose import diagnose
from .facts import DISTRIBUTIONS, Facts, gather
from .finding import Finding

__all__ = ["report", "run_doctor"]

_NAMES = {"python": "Python"}


def run_doctor() -> int:
    """Look at the environment and print what works in it, what does not, and what mends it.

    Returns:
        The exit status: 1 where something is broken, 0 otherwise.
    """
    print("Importing each library in a process of its own ...", file=sys.stderr)
    facts = gather()
    findings = diagnose(facts)
    print(report(facts, findings))
    return int(any(finding.level == "broken" for finding in findings))


def report(facts: Facts, findings: Sequence[Finding]) -> str:
    """Write findings down: a table, and below it, whole and ready to be copied, the commands."""
    broken = [finding for finding in findings if finding.level == "broken"]
    rows = [("component", "version", "", "")]
    for finding in findings:
        level = {"works": "works", "missing": "not installed", "broken": "BROKEN"}[finding.level]
        text = f"see {broken.index(finding) + 1}" if finding.level == "broken" else finding.text
        rows.append((_NAMES.get(finding.component, finding.component), _version(facts, finding.component), level, text))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    for number, finding in enumerate(broken, start=1):
        name = _NAMES.get(finding.component, finding.component)
        lines += ["", f"{number}. {name}: {finding.text}"]
        lines += [f"   {finding.command}"] if finding.command else []
    if not broken:
        lines += ["", "Nothing is broken."]
    elif len(broken) > 1:
        lines += ["", "Mend them from the first on, and ask again after each."]
    return "\n".join(lines)


def _version(facts: Facts, component: str) -> str:
    if component == "python":
        return facts.python
    if component == "resnet_backbone":
        return __version__
    names = facts.installed(component)
    plain = names == [component] or component not in DISTRIBUTIONS
    return ", ".join(facts.versions[name] if plain else f"{facts.versions[name]} ({name})" for name in names)

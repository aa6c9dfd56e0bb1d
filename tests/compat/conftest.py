"""Tests that compare with a real mmdet. They are skipped, with the reason, if it cannot be imported."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def _why_no_mmdet() -> str | None:
    try:
        importlib.import_module("mmdet.models")
    except Exception as error:  # noqa: BLE001 - mmdet fails in many ways, and each is the reason to print
        return f"no mmdet with compiled mmcv here ({type(error).__name__}: {error})"
    return None


WHY_NO_MMDET = _why_no_mmdet()
# Modules here import mmdet at their top; where it is missing they must not even be collected.
collect_ignore_glob = ["test_*.py"] if WHY_NO_MMDET else []


def pytest_report_header() -> str:
    return f"tests/compat: {WHY_NO_MMDET or 'runs against the installed mmdet'}"


BIT_EXACT: dict[str, set[str]] = {}


@pytest.fixture
def bit_exact(request: pytest.FixtureRequest):
    """A function that records a bit-identical comparison by kind and name, for the summary."""
    return lambda kind, name: BIT_EXACT.setdefault(kind, set()).add(name)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes
        session.config.workeroutput["bit_exact"] = {kind: sorted(names) for kind, names in BIT_EXACT.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    for kind, names in getattr(node, "workeroutput", {}).get("bit_exact", {}).items():
        BIT_EXACT.setdefault(kind, set()).update(names)


def pytest_terminal_summary(terminalreporter) -> None:
    for kind, names in BIT_EXACT.items():
        terminalreporter.write_line(f"bit-exact with mmdet: {len(names)} {kind}")


@pytest.fixture(autouse=True, scope="package")
def _two_threads():
    """Use two threads, which pay off for whole detectors, unless other processes need the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    yield
    torch.set_num_threads(before)

"""From facts to findings: what is broken, why, and the command that mends it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from . import mend
from .facts import DISTRIBUTIONS, Facts
from .finding import COMPONENTS, Finding
from .versions import release, satisfies

__all__ = ["diagnose"]

Rule = Callable[[Facts], Iterator[Finding]]

_NEEDS = {
    "torch": ("numpy",),
    "torchvision": ("numpy", "torch"),
    "mmengine": ("numpy", "torch", "setuptools"),
    "mmcv": ("numpy", "torch", "setuptools", "mmengine"),
    "mmdet": ("numpy", "torch", "torchvision", "setuptools", "mmengine", "mmcv"),
    "resnet_backbone": ("numpy", "torch", "setuptools", "mmengine", "mmcv"),
}


def diagnose(facts: Facts) -> list[Finding]:
    """Say what works in an environment, and what does not.

    Args:
        facts: The environment.

    Returns:
        At least one finding for each component, in the order of ``COMPONENTS``. What is broken only because something
        that it needs is broken has no command of its own.
    """
    found: dict[str, list[Finding]] = {component: [] for component in COMPONENTS}
    for rule in _RULES:
        for finding in rule(facts):
            found[finding.component].append(finding)
    for component in COMPONENTS:
        if not found[component]:
            broken_needs = [need for need in _NEEDS.get(component, ()) if _is_broken(found[need])]
            found[component] = [_rest(facts, component, broken_needs)]
    return [finding for findings in found.values() for finding in findings]


def _is_broken(findings: list[Finding]) -> bool:
    return any(finding.level == "broken" for finding in findings)


def _rest(facts: Facts, component: str, broken_needs: list[str]) -> Finding:
    """What is left to say of a component that no rule knows anything of."""
    error = facts.probe(component).error
    if component in DISTRIBUTIONS and not facts.installed(component) and "ModuleNotFoundError" in error:
        return Finding(component, "missing")
    if component == "setuptools" or not error:
        return Finding(component, "works", _works(facts, component))
    if broken_needs:
        return Finding(component, "broken", f"because of {', '.join(broken_needs)}: {error}")
    return Finding(component, "broken", error, mend.reinstall(facts, component))


def _works(facts: Facts, component: str) -> str:
    details = facts.probe(component).details
    if component == "torch":
        return _torch_device(facts)
    if component == "mmcv" and not details.get("ops"):
        return "without compiled operators: DCN runs on torchvision's"
    if component == "resnet_backbone":
        return "registered in mmdet" if details.get("mmdet") else "registered in mmdet's scope, without mmdet"
    return ""


def _torch_device(facts: Facts) -> str:
    details = facts.probe("torch").details
    if details.get("gpu"):
        return f"on {details['gpu']}, CUDA {details.get('cuda_build')}"
    if facts.has_gpu:
        why = f"is built for CUDA {details['cuda_build']}" if details.get("cuda_build") else "is built for CPUs"
        return f"on the CPU alone: there is a GPU, which torch cannot use; it {why}"
    return "on the CPU"


def _python(facts: Facts) -> Iterator[Finding]:
    if release(facts.python) < (3, 10):
        yield Finding("python", "broken", "resnet_backbone needs Python 3.10 or newer")


def _numpy(facts: Facts) -> Iterator[Finding]:
    said = [component for component in COMPONENTS if "compiled using NumPy 1" in facts.probe(component).everything]
    refused = facts.probe("torch").details.get("numpy_error")
    if release(facts.versions.get("numpy", "0")) >= (2,) and (said or refused):
        who = "torch" if refused or "torch" in said else said[0]
        yield Finding(
            "numpy",
            "broken",
            f"{who} {facts.versions.get(who, '')} was compiled for NumPy 1, and cannot share arrays with "
            f"NumPy {facts.versions['numpy']}",
            'pip install "numpy<2"',
        )


def _torch(facts: Facts) -> Iterator[Finding]:
    if "torch" not in facts.versions:
        if facts.probe("torch").error:
            yield Finding("torch", "broken", "it is not installed", "pip install torch torchvision")
    elif release(facts.versions["torch"]) < (2, 1):
        command = 'pip install --upgrade "torch>=2.1" torchvision'
        yield Finding("torch", "broken", "resnet_backbone needs torch 2.1 or newer", command)
    elif facts.probe("torch").details.get("gpu_error"):
        details = facts.probe("torch").details
        text = f"it is not built for this {details['gpu']}: {details['gpu_error']}"
        yield Finding("torch", "broken", text, "pip install --upgrade torch torchvision")


def _torchvision(facts: Facts) -> Iterator[Finding]:
    version, torch, error = facts.versions.get("torchvision"), facts.versions.get("torch"), _own_error(facts)
    if version is None or torch is None or not error:
        return
    if not satisfies(torch, facts.torchvision_wants):
        text = f"{version} belongs to torch{facts.torchvision_wants}, and torch is {torch}: {error}"
        yield Finding("torchvision", "broken", text, mend.torchvision(facts))
    elif "torchvision::" in error or "undefined symbol" in error or "DLL load failed" in error:
        text = f"{version} was built for another torch {torch} than the one here (CPU or CUDA): {error}"
        command = f"pip install --force-reinstall --no-deps --no-cache-dir torchvision=={version.partition('+')[0]}"
        yield Finding("torchvision", "broken", f"{text}. Take both from one place", command)


def _own_error(facts: Facts) -> str:
    """What torchvision fails with, unless it is torch that fails."""
    return "" if facts.probe("torch").error else facts.probe("torchvision").error


def _setuptools(facts: Facts) -> Iterator[Finding]:
    asking = [
        name for name in ("mmengine", "mmcv", "mmdet") if "No module named 'pkg_resources'" in _error(facts, name)
    ]
    if asking and facts.probe("setuptools").error:
        version = facts.versions.get("setuptools")
        why = f"setuptools {version} has it no more" if version else "setuptools, which has it, is not installed"
        yield Finding(
            "setuptools", "broken", f"{asking[0]} imports pkg_resources, and {why}", 'pip install "setuptools<82"'
        )


def _error(facts: Facts, component: str) -> str:
    return facts.probe(component).error


def _installed_twice(facts: Facts) -> Iterator[Finding]:
    for component in DISTRIBUTIONS:
        names = facts.installed(component)
        if len(names) > 1:
            listed = " and ".join(f"{name} {facts.versions[name]}" for name in names)
            text = f"{listed} are installed over each other, in one folder: what is imported is a mixture"
            yield Finding(component, "broken", text, mend.keep_one(facts, component))


def _missing(facts: Facts) -> Iterator[Finding]:
    for component in ("mmengine", "mmcv"):
        if not facts.installed(component) and f"No module named '{component}" in _error(facts, component):
            yield Finding(component, "broken", "it is not installed", mend.install(facts, component))


def _opencv(facts: Facts) -> Iterator[Finding]:
    missing = re.search(r"lib(GL|gthread|SM|Xext|Xrender)[\w.-]*\.so[.\d]*", _error(facts, "mmcv"))
    if missing:
        yield Finding(
            "mmcv",
            "broken",
            f"OpenCV, which it imports, wants the display's library {missing[0]}; its headless build does not",
            "pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless",
        )


def _operators(facts: Facts) -> Iterator[Finding]:
    names, details = facts.installed("mmcv"), facts.probe("mmcv").details
    if len(names) != 1 or facts.probe("mmcv").error:
        return
    name = names[0]
    if details.get("ops_error"):
        text = f"its compiled operators were built for another torch: {details['ops_error']}"
        yield Finding("mmcv", "broken", text, mend.rebuild_mmcv(facts))
    elif not details.get("ops") and facts.installed("mmdet") and "mmcv._ext" in _error(facts, "mmdet"):
        text = f"mmdet needs its compiled operators, and this {name} has none"
        yield Finding("mmcv", "broken", text, mend.rebuild_mmcv(facts))


def _refused_by_mmdet(facts: Facts) -> Iterator[Finding]:
    refused = re.search(r"(MMCV|MMEngine)==(\S+) is used but incompatible.*?>=\s*(\S+?),\s*<=?\s*(\S+?)\.?( |$)",
                        _error(facts, "mmdet"))  # fmt: skip
    if refused is None:
        return
    component, version, lowest, limit = refused[1].lower(), *refused.group(2, 3, 4)
    if len(facts.installed("mmdet")) == len(facts.installed(component)) == 1:
        mmdet = facts.versions[facts.installed("mmdet")[0]]
        text = f"{mmdet} takes {component} from {lowest} to below {limit}, and {component} is {version}"
        yield Finding("mmdet", "broken", text, mend.suit_mmdet(facts, component, f">={lowest},<{limit}"))


_RULES: tuple[Rule, ...] = (
    _python,
    _numpy,
    _torch,
    _torchvision,
    _setuptools,
    _installed_twice,
    _missing,
    _opencv,
    _operators,
    _refused_by_mmdet,
)

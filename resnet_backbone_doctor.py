"""Diagnose an environment: ``resnet-backbone-doctor`` says what is broken in it and which command fixes it.

It is not part of the package, which cannot be imported in such an environment, and needs only the standard library.
"""

from __future__ import annotations

import json
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from textwrap import shorten
from typing import NamedTuple

__all__ = ["Diagnosis", "Environment", "Probe", "diagnose", "inspect", "main", "report"]

# The distributions that provide each component. Where there are several, each overwrites the others' files.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in ("numpy", "torch", "torchvision", "setuptools", "resnet_backbone")},
    "mmengine": ("mmengine", "mmengine-lite", "onedl-mmengine"),
    "mmcv": ("mmcv", "mmcv-lite", "mmcv-full", "onedl-mmcv"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
}
FORK = {"mmengine": "onedl-mmengine", "mmcv": "onedl-mmcv", "mmdet": "onedl-mmdetection"}

# What importing and using a component takes; ``note`` is shown if it works.
PROBES = {
    "python": "assert sys.version_info >= (3, 10), 'resnet_backbone needs Python 3.10 or newer'",
    "numpy": "import numpy",
    "torch": """
import torch
assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 1), "resnet_backbone needs torch 2.1 or newer"
torch.ones(1).numpy()
note = f"on the CPU; built for {'CUDA' if torch.version.cuda or torch.version.hip else 'CPUs'}"
if torch.cuda.is_available():
    torch.ones(1, device="cuda").item()
    note = f"on {torch.cuda.get_device_name()}"
""",
    "torchvision": "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)",
    "setuptools": "import pkg_resources",
    # mmengine imports pkg_resources only when this function is called.
    "mmengine": 'import mmengine.registry, mmengine.runner, mmengine.utils; mmengine.utils.is_installed("mmengine")',
    "mmcv": """
import mmcv.cnn
if find_spec("mmcv._ext"): import mmcv.ops
else: note = "without compiled operators: DCN uses torchvision's"
""",
    "mmdet": """
import mmdet
if find_spec("mmcv") and not find_spec("mmcv._ext"):
    import resnet_backbone.integrations.mmdet.operators
    note = "on resnet_backbone.integrations.mmdet.operators, which custom_imports must name"
import mmdet.models
""",
    "resnet_backbone": """
import torch, resnet_backbone
backbone = resnet_backbone.build_backbone(dict(type="ResNet", depth=18, base_channels=4)).eval()
backbone(torch.zeros(1, 3, 64, 64))
in_mmdet = getattr(sys.modules["mmdet.registry"], "__file__", None)
note = "registered in mmdet" if in_mmdet else "registered in mmdet's scope, without mmdet"
""",
}
# Runs a probe: an import that crashes, exits or prints does not take the doctor with it.
PROBE_RUNNER = """
import json, sys
from importlib.util import find_spec
sys.path[:] = json.loads(sys.argv[1])
names, error = {"sys": sys, "find_spec": find_spec}, ""
try: exec(sys.argv[2], names)
except BaseException as caught: error = f"{type(caught).__name__}: {caught}"
print("\\nresnet-backbone-doctor: " + json.dumps([error, names.get("note", "")]), flush=True)
"""
PROBE_SECONDS = 300

# mmcv is compiled against the torch of the environment; pip's cache does not tell for which torch a wheel was compiled.
BUILD_TOOLS = 'pip install "setuptools>=77.0.3,<81" wheel ninja psutil'
BUILD_MMCV = f"{BUILD_TOOLS} && resnet-backbone-build-mmcv"
BUILD_FORK = f"{BUILD_TOOLS} && pip install --no-cache-dir --no-build-isolation onedl-mmcv"
FORK_MMDET = f"pip uninstall -y mmdet && {BUILD_TOOLS} && pip install --no-build-isolation onedl-mmdetection"

# Combinations that are known to fail: the component to blame, the components whose error shows it, a pattern for that
# error, what is wrong, and the command. {error} is the error, {seen_in} the component that has it, {1} the pattern's
# group; the other fields are those of Environment.fields.
KNOWN: tuple[tuple[str, tuple[str, ...], str, str, str], ...] = (
    ("numpy", tuple(PROBES), "compiled using NumPy 1|Numpy is not available",
          "{seen_in} was compiled for NumPy 1 and cannot use NumPy {numpy}", 'pip install "numpy<2"'),
    ("torch", ("torch",), "No module named 'torch'", "not installed", "pip install torch torchvision"),
    ("torch", ("torch",), "needs torch 2.1", "{error}", 'pip install --upgrade "torch>=2.1" torchvision'),
    ("torch", ("torch",), "CUDA error|HIP error", "not built for this GPU: {error}",
          "pip install -U torch torchvision"),
    ("torchvision", ("torchvision",), "torchvision::|undefined symbol|DLL load failed",
          "{torchvision} does not belong to torch {torch}: {error}. Install both from one place",
          "pip uninstall -y torchvision && pip install --no-cache-dir torch=={torch} torchvision"),
    ("setuptools", ("mmengine", "mmcv", "mmdet"), "No module named 'pkg_resources'",
          "{seen_in} imports pkg_resources, which setuptools 82 removed", 'pip install "setuptools<82"'),
    ("mmengine", ("mmengine",), "No module named 'mmengine", "not installed", "pip install {mmengine_here}"),
    ("mmcv", ("mmcv",), "No module named 'mmcv[.']", "not installed", "{install_mmcv}"),
    ("mmcv", ("mmcv",), r"(lib(?:GL|gthread|SM|Xext|Xrender)[\w.-]*\.so[.\d]*)",
          "OpenCV, which it imports, needs the display library {1}; its headless build does not",
          "pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless"),
    ("mmcv", ("mmcv",), r"_ext\b.*undefined symbol|DLL load failed.*_ext",
          "its compiled operators were built for another torch: {error}", "pip uninstall -y {mmcvs} && {compile_mmcv}"),
    ("mmcv", ("mmdet",), r"No module named 'mmcv\._ext'",
          "mmdet needs mmcv's compiled operators, and {mmcvs} has none here",
          "pip uninstall -y {mmcvs} && {compile_mmcv}"),
    ("mmdet", ("mmdet",), r"MMCV==\S+ is used but incompatible.*?(>=.*?)\.?$",
          "{mmdet} needs mmcv{1}, and mmcv is {mmcv}", "{suit_mmcv}"),
    ("mmdet", ("mmdet",), r"MMEngine==\S+ is used but incompatible.*?(>=.*?)\.?$",
          "{mmdet} needs mmengine{1}, and mmengine is {mmengine}", 'pip install "mmengine{1}"'),
)  # fmt: skip


class Probe(NamedTuple):
    """What happened when a component was imported: the error in one line, empty if it worked, and a note if it did."""

    error: str = ""
    note: str = ""


class Environment(NamedTuple):
    """The versions of the installed distributions, by name, and what happened to each component."""

    versions: Mapping[str, str]
    probes: Mapping[str, Probe]

    def installed(self, component: str) -> list[str]:
        """The distributions of a component that are installed."""
        return [name for name in DISTRIBUTIONS.get(component, ()) if name in self.versions]

    def fields(self) -> dict[str, str]:
        """The values that the texts and commands of ``KNOWN`` name."""
        installed = {component: self.installed(component) for component in DISTRIBUTIONS}
        mmcvs = " ".join(installed["mmcv"])
        lite = f"pip install mmcv-lite{'==2.1.0' if installed['mmdet'] else ''}"
        # The topmost library tells whether the maintained fork (onedl) is in use.
        used = next((names for c in ("mmdet", "mmcv", "mmengine") if (names := installed[c])), [])
        is_fork = len(used) == 1 and used[0] in FORK.values()
        compile_mmcv = BUILD_FORK if is_fork else BUILD_MMCV
        suit_mmcv = lite if mmcvs == "mmcv-lite" else f"pip uninstall -y {mmcvs} && {compile_mmcv}"
        return {
            **{c: self.versions[names[0]].partition("+")[0] if names else "" for c, names in installed.items()},
            "is_fork": "yes" if is_fork else "",
            "mmengine_here": FORK["mmengine"] if is_fork else "mmengine",
            "mmcvs": mmcvs,
            "compile_mmcv": compile_mmcv,
            "install_mmcv": BUILD_FORK if is_fork else lite,
            "suit_mmcv": FORK_MMDET if mmcvs == FORK["mmcv"] else suit_mmcv,
        }


class Diagnosis(NamedTuple):
    """The state of one component: ``'works'``, ``'missing'`` (which is allowed) or ``'broken'``; and what fixes it."""

    component: str
    status: str
    text: str = ""
    fix: str = ""


def inspect() -> Environment:
    """Look at the environment of this interpreter."""
    names = {name for names in DISTRIBUTIONS.values() for name in names}
    installed = {found.metadata["Name"]: found.metadata["Version"] for found in metadata.distributions()}
    versions = {name: version for name, version in installed.items() if name in names and version}
    # Each probe imports torch: two at a time are as fast as this gets on most machines.
    with ThreadPoolExecutor(max_workers=2) as pool:
        return Environment(versions, dict(zip(PROBES, pool.map(_run_probe, PROBES.values()))))


def _run_probe(script: str) -> Probe:
    command = [sys.executable, "-c", PROBE_RUNNER, json.dumps(sys.path), script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return Probe(f"it did not finish within {PROBE_SECONDS} seconds")
    _, found, answer = done.stdout.rpartition("\nresnet-backbone-doctor: ")
    if found:
        return Probe(*(shorten(text, 400) for text in json.loads(answer)))
    code = done.returncode
    ending = f"crashed, {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
    return Probe(shorten(f"the interpreter {ending}: {(done.stderr.strip().splitlines() or [''])[-1]}", 400))


def diagnose(env: Environment) -> list[Diagnosis]:
    """Diagnose each component, in the order of their dependencies."""
    found = dict[str, Diagnosis]()
    for component in PROBES:
        found[component] = _installed_twice(env, component) or _known(env, component) or _other(env, component, found)
    return list(found.values())


def _installed_twice(env: Environment, component: str) -> Diagnosis | None:
    names = env.installed(component)
    if len(names) < 2:
        return None
    fields = env.fields()
    kept = FORK[component] if fields["is_fork"] else names[0]
    pinned = f"pip install --no-deps {kept}=={env.versions[kept]}"
    install = fields["install_mmcv"] if component == "mmcv" else pinned
    listed = " and ".join(f"{name} {env.versions[name]}" for name in names)
    text = f"{listed} are installed over each other: what is imported is a mixture"
    return Diagnosis(component, "broken", text, f"pip uninstall -y {' '.join(names)} && {install}")


def _known(env: Environment, component: str) -> Diagnosis | None:
    # Libraries that are installed over each other fail in their own ways.
    if component in FORK and any(len(env.installed(other)) > 1 for other in FORK):
        return None
    fields = env.fields()
    for blamed, seen_in, pattern, text, fix in KNOWN:
        for other in seen_in if blamed == component else ():
            error = env.probes[other].error
            if match := re.search(pattern, error):
                groups = ["", *(group.replace(", ", ",").rstrip(".") for group in match.groups())]
                fields |= {"error": error, "seen_in": f"{other} {fields.get(other, '')}".rstrip()}
                return Diagnosis(component, "broken", text.format(*groups, **fields), fix.format(*groups, **fields))
    return None


def _other(env: Environment, component: str, found: Mapping[str, Diagnosis]) -> Diagnosis:
    """The diagnosis of a component that has none of the known problems."""
    probe, names = env.probes[component], env.installed(component)
    # A setuptools without pkg_resources matters only to libraries that import it.
    if not probe.error or component == "setuptools":
        return Diagnosis(component, "works", probe.note)
    if not names and "ModuleNotFoundError" in probe.error and component != "resnet_backbone":
        return Diagnosis(component, "missing")
    if causes := [other for other, diagnosis in found.items() if diagnosis.status == "broken"]:
        return Diagnosis(component, "broken", f"because of {', '.join(causes)}: {probe.error}")
    fix = ""
    if names and component != "resnet_backbone":
        fix = f"pip install --force-reinstall --no-deps --no-cache-dir {names[0]}=={env.versions[names[0]]}"
    return Diagnosis(component, "broken", probe.error, fix)


def report(env: Environment, diagnoses: list[Diagnosis]) -> str:
    """Write diagnoses as a table, followed by the commands, each whole on a line of its own."""
    broken = [diagnosis for diagnosis in diagnoses if diagnosis.status == "broken"]
    rows = []
    for found in diagnoses:
        names = env.installed(found.component)
        versions = [env.versions[name] + ("" if name == found.component else f" ({name})") for name in names]
        version = platform.python_version() if found.component == "python" else ", ".join(versions)
        text = f"see {broken.index(found) + 1}" if found in broken else found.text
        status = {"works": "works", "missing": "not installed", "broken": "BROKEN"}[found.status]
        rows.append((found.component, version, status, text))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for number, found in enumerate(broken, start=1):
        lines += ["", f"{number}. {found.component}: {found.text}", *([f"   {found.fix}"] if found.fix else [])]
    endings = ["Nothing is broken.", "", "Fix them in this order, and run this again after each."]
    return "\n".join([*lines, "", endings[min(len(broken), 2)]]).rstrip()


def main() -> int:
    """Print what works in this environment and what does not; the exit status is 1 if something is broken."""
    print("Importing each library in its own process ...", file=sys.stderr)
    env = inspect()
    diagnoses = diagnose(env)
    print(report(env, diagnoses))
    return int(any(diagnosis.status == "broken" for diagnosis in diagnoses))


if __name__ == "__main__":
    sys.exit(main())

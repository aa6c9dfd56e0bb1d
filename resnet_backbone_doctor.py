"""``resnet-backbone-doctor``: say what is broken in an environment, and which command fixes it.

It needs only the standard library, and lies outside the package, which cannot be imported in a broken environment.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import product
from typing import NamedTuple

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
note = f"on {torch.cuda.get_device_name() if torch.cuda.is_available() else 'the CPU'}"
if torch.cuda.is_available(): torch.ones(1, device="cuda").item()
""",
    "torchvision": "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)",
    "setuptools": "",  # without pkg_resources it does no harm until a library imports that
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
resnet_backbone.build_backbone(dict(type="ResNet", depth=18, base_channels=4))(torch.zeros(1, 3, 64, 64))
if not hasattr(sys.modules["mmdet.registry"], "__file__"): note = "without mmdet, in a registry of mmdet's scope"
""",
}
# Runs a probe in a process of its own, because an import may crash, exit or print.
PROBE_RUNNER = """
import json, sys
from importlib.util import find_spec
sys.path[:] = json.loads(sys.argv[1])
names, error = {"sys": sys, "find_spec": find_spec}, ""
try: exec(sys.argv[2], names)
except BaseException as caught: error = " ".join(f"{type(caught).__name__}: {caught}".split())[:400]
print("\\nresnet-backbone-doctor: " + json.dumps([error, names.get("note", "")]), flush=True)
"""

# mmcv is compiled against the torch of the environment; pip's cache does not tell for which torch a wheel was compiled.
BUILD_TOOLS = 'pip install "setuptools>=77.0.3,<81" wheel ninja psutil'
BUILD_FORK = f"{BUILD_TOOLS} && pip install --no-cache-dir --no-build-isolation onedl-mmcv"

# Known problems: the component to blame, a pattern of "component: error", what is wrong, and the command that fixes it.
# {seen_in} is the component that has the {error}, {1} the pattern's group; Environment.fields has the other fields.
KNOWN: tuple[tuple[str, str, str, str], ...] = (
    ("numpy", "compiled using NumPy 1|Numpy is not available",
     "{seen_in} was compiled for NumPy 1 and cannot use NumPy {numpy}", 'pip install "numpy<2"'),
    ("torch", "^torch: .*No module named 'torch'", "not installed", "pip install torch torchvision"),
    ("torch", "^torch: .*needs torch 2.1", "{error}", 'pip install --upgrade "torch>=2.1" torchvision'),
    ("torch", "^torch: .*(CUDA|HIP) error", "not built for this GPU: {error}", "pip install -U torch torchvision"),
    ("torchvision", "^torchvision: .*(torchvision::|undefined symbol|DLL load failed)",
     "{torchvision} does not belong to torch {torch}: {error}. Install both from one place",
     "pip uninstall -y torchvision && pip install --no-cache-dir torch=={torch} torchvision"),
    ("setuptools", "^mm.*No module named 'pkg_resources'",
     "{seen_in} imports pkg_resources, which setuptools 82 removed", 'pip install "setuptools<82"'),
    ("mmengine", "^mmengine: .*No module named 'mmengine", "not installed", "pip install {mmengine_here}"),
    ("mmcv", "^mmcv: .*No module named 'mmcv[.']", "not installed", "{install_mmcv}"),
    ("mmcv", r"^mmcv: .*?(lib(?:GL|gthread|SM|Xext|Xrender)[\w.-]*\.so[.\d]*)",
     "OpenCV, which it imports, needs the display library {1}; its headless build does not",
     "pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless"),
    ("mmcv", r"^mmcv: .*(_ext\b.*undefined symbol|DLL load failed.*_ext)",
     "its compiled operators were built for another torch: {error}", "pip uninstall -y {mmcvs} && {compile_mmcv}"),
    ("mmcv", r"^mmdet: .*No module named 'mmcv\._ext'",
     "mmdet needs mmcv's compiled operators, and {mmcvs} has none here", "pip uninstall -y {mmcvs} && {compile_mmcv}"),
    ("mmdet", r"^mmdet: .*MMCV==\S+ is used but incompatible.*?(>=.*?)\.?$",
     "{mmdet} needs mmcv{1}, and mmcv is {mmcv}", "{suit_mmcv}"),
    ("mmdet", r"^mmdet: .*MMEngine==\S+ is used but incompatible.*?(>=.*?)\.?$",
     "{mmdet} needs mmengine{1}, and mmengine is {mmengine}", 'pip install "mmengine{1}"'),
)  # fmt: skip


class Probe(NamedTuple):
    """The result of a probe: the error, in one line, or an empty string and a note."""

    error: str = ""
    note: str = ""


class Environment(NamedTuple):
    """The versions of the installed distributions, and the result of each component's probe."""

    versions: dict[str, str]
    probes: dict[str, Probe]

    def installed(self, component: str) -> list[str]:
        """The distributions of a component that are installed."""
        return [name for name in DISTRIBUTIONS.get(component, ()) if name in self.versions]

    def fields(self) -> dict[str, str]:
        """The values that the texts and commands of ``KNOWN`` name."""
        installed = {component: self.installed(component) for component in DISTRIBUTIONS}
        # The topmost library tells whether the maintained fork (onedl) is in use.
        used = next((names for c in ("mmdet", "mmcv", "mmengine") if (names := installed[c])), [])
        is_fork = len(used) == 1 and used[0] in FORK.values()
        mmcvs = " ".join(installed["mmcv"])
        lite = f"pip install mmcv-lite{'==2.1.0' if installed['mmdet'] else ''}"
        compile_mmcv = BUILD_FORK if is_fork else f"{BUILD_TOOLS} && resnet-backbone-build-mmcv"
        suit_mmcv = lite if mmcvs == "mmcv-lite" else f"pip uninstall -y {mmcvs} && {compile_mmcv}"
        if mmcvs == FORK["mmcv"]:
            suit_mmcv = f"pip uninstall -y mmdet && {BUILD_TOOLS} && pip install --no-build-isolation {FORK['mmdet']}"
        return {
            **{c: self.versions[names[0]].partition("+")[0] if names else "" for c, names in installed.items()},
            "is_fork": "yes" if is_fork else "",
            "mmengine_here": FORK["mmengine"] if is_fork else "mmengine",
            "mmcvs": mmcvs,
            "compile_mmcv": compile_mmcv,
            "install_mmcv": BUILD_FORK if is_fork else lite,
            "suit_mmcv": suit_mmcv,
        }


class Diagnosis(NamedTuple):
    """The status of a component, ``'works'``, ``'not installed'`` (if optional) or ``'BROKEN'``, and what fixes it."""

    component: str
    status: str
    text: str = ""
    fix: str = ""


def inspect() -> Environment:
    """Look at the environment of this interpreter."""
    versions = {each.name: each.version for each in metadata.distributions() if each.name and each.version}
    # Most probes import torch: on most machines, more than two at a time are no faster.
    with ThreadPoolExecutor(max_workers=2) as pool:
        return Environment(versions, dict(zip(PROBES, pool.map(_run_probe, PROBES.values()))))


def _run_probe(script: str) -> Probe:
    command = [sys.executable, "-c", PROBE_RUNNER, json.dumps(sys.path), script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    except subprocess.TimeoutExpired as error:
        return Probe(f"it did not finish within {error.timeout:.0f} seconds")
    _, found, answer = done.stdout.rpartition("\nresnet-backbone-doctor: ")
    if found:
        return Probe(*json.loads(answer))
    code = done.returncode
    ending = f"crashed, {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
    return Probe(f"the interpreter {ending}: {''.join(done.stderr.strip().splitlines()[-1:])[:400]}")


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
    install = fields["install_mmcv"] if component == "mmcv" else f"pip install --no-deps {kept}=={env.versions[kept]}"
    listed = " and ".join(f"{name} {env.versions[name]}" for name in names)
    text = f"{listed} are installed over each other, so their files are mixed"
    return Diagnosis(component, "BROKEN", text, f"pip uninstall -y {' '.join(names)} && {install}")


def _known(env: Environment, component: str) -> Diagnosis | None:
    # Libraries that are installed over each other fail in their own ways.
    if component in FORK and any(len(env.installed(other)) > 1 for other in FORK):
        return None
    fields = env.fields()
    for (blamed, pattern, text, fix), (other, probe) in product(KNOWN, env.probes.items()):
        if blamed == component and (match := re.search(pattern, f"{other}: {probe.error}")):
            groups = ["", *(group.replace(", ", ",").rstrip(".") for group in match.groups())]
            fields |= {"error": probe.error, "seen_in": f"{other} {fields.get(other, '')}".rstrip()}
            return Diagnosis(component, "BROKEN", text.format(*groups, **fields), fix.format(*groups, **fields))
    return None


def _other(env: Environment, component: str, found: dict[str, Diagnosis]) -> Diagnosis:
    """The diagnosis of a component that has none of the known problems."""
    probe, names = env.probes[component], env.installed(component)
    if not probe.error:
        return Diagnosis(component, "works", probe.note)
    if not names and "ModuleNotFoundError" in probe.error and component != "resnet_backbone":
        return Diagnosis(component, "not installed")
    if causes := [other for other, diagnosis in found.items() if diagnosis.status == "BROKEN"]:
        return Diagnosis(component, "BROKEN", f"because of {', '.join(causes)}: {probe.error}")
    pins = [f"{name}=={env.versions[name]}" for name in names if name != "resnet_backbone"]
    fix = f"pip install --force-reinstall --no-deps --no-cache-dir {pins[0]}" if pins else ""
    return Diagnosis(component, "BROKEN", probe.error, fix)


def report(env: Environment, diagnoses: list[Diagnosis]) -> str:
    """Write diagnoses as a table, followed by the commands, each whole on a line of its own."""
    broken = [diagnosis for diagnosis in diagnoses if diagnosis.status == "BROKEN"]
    rows = []
    for found in diagnoses:
        names = env.installed(found.component)
        versions = [env.versions[name] + ("" if name == found.component else f" ({name})") for name in names]
        version = sys.version.split()[0] if found.component == "python" else ", ".join(versions)
        text = f"see {broken.index(found) + 1}" if found in broken else found.text
        rows.append((found.component, version, found.status, text))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    for number, found in enumerate(broken, start=1):
        lines += ["", f"{number}. {found.component}: {found.text}", *([f"   {found.fix}"] if found.fix else [])]
    ending = "Fix them in this order, and run this again after each." if broken else "Nothing is broken."
    return "\n".join([*lines, "", ending])


def main() -> int:
    """Print what works in this environment and what does not; the exit status is 1 if something is broken."""
    print("Importing each library in its own process ...", file=sys.stderr)
    env = inspect()
    diagnoses = diagnose(env)
    print(report(env, diagnoses))
    return int(any(diagnosis.status == "BROKEN" for diagnosis in diagnoses))


if __name__ == "__main__":
    sys.exit(main())

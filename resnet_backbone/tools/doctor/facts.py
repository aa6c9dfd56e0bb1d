"""What is installed here, and what happens when it is imported."""

from __future__ import annotations

import json
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from .finding import COMPONENTS

__all__ = ["DISTRIBUTIONS", "Facts", "Probe", "gather"]

DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "setuptools": ("setuptools",),
    "mmengine": ("mmengine", "mmengine-lite", "onedl-mmengine"),
    "mmcv": ("mmcv", "mmcv-lite", "mmcv-full", "onedl-mmcv"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
}
"""The distributions that bring each component. Of those with several, each writes its files over the others'."""

_SECONDS = 300
_MARK = "resnet-backbone doctor: "

# Run in an interpreter of its own: an import that crashes, exits or prints takes nothing with it.
_PROBE = f"""
import json, sys
sys.path[:] = json.loads(sys.argv[1])
details, error = {{}}, None
try:
    exec(sys.argv[2], {{"details": details}})
except BaseException as caught:
    error = f"{{type(caught).__name__}}: {{caught}}"
print("\\n" + {_MARK!r} + json.dumps([error, details]), flush=True)
"""

_SCRIPTS = {
    "numpy": "import numpy",
    "torch": """
import torch
details["cuda_build"] = torch.version.cuda or torch.version.hip or ""
if torch.cuda.is_available():
    details["gpu"] = torch.cuda.get_device_name()
    try:
        (torch.ones(1, device="cuda") + 1).item()
    except RuntimeError as error:
        details["gpu_error"] = str(error).partition("\\n")[0]
try:
    torch.ones(1).numpy()
except RuntimeError as error:
    details["numpy_error"] = str(error)
""",
    "torchvision": """
import torch, torchvision
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
""",
    "setuptools": "import pkg_resources",
    # Some of it is imported only when it is called, pkg_resources for one.
    "mmengine": """
import mmengine.registry, mmengine.runner, mmengine.utils
mmengine.utils.is_installed("mmengine")
""",
    "mmcv": """
import mmcv.cnn
from importlib.util import find_spec
details["ops"] = "yes" if find_spec("mmcv._ext") else ""
if details["ops"]:
    try:
        import mmcv.ops
    except Exception as error:
        details["ops_error"] = f"{type(error).__name__}: {error}"
""",
    "mmdet": "import mmdet, mmdet.models",
    "resnet_backbone": """
import sys, torch, resnet_backbone
backbone = resnet_backbone.build_backbone(dict(type="ResNet", depth=18, base_channels=4)).eval()
backbone(torch.zeros(1, 3, 64, 64))
details["mmdet"] = "yes" if getattr(sys.modules["mmdet.registry"], "__file__", None) else ""
""",
}


@dataclass(frozen=True)
class Probe:
    """What happened when a component was imported and used.

    Attributes:
        error: The exception or the signal that ended it, in one line; empty where it worked.
        details: What it told besides.
    """

    error: str = ""
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def everything(self) -> str:
        """All that went wrong, to search in."""
        return " ".join([self.error, *self.details.values()])


@dataclass(frozen=True)
class Facts:
    """An environment.

    Attributes:
        python: Version of Python.
        versions: Versions of the distributions of ``DISTRIBUTIONS`` that are installed, by name.
        torchvision_wants: What torchvision's metadata says of torch, such as ``'==2.1.0'``.
        has_gpu: Whether an NVIDIA GPU's driver is here.
        probes: What happened, by component.
    """

    python: str
    versions: Mapping[str, str]
    probes: Mapping[str, Probe]
    torchvision_wants: str = ""
    has_gpu: bool = False

    def probe(self, component: str) -> Probe:
        """What happened to a component; nothing, where it was not tried."""
        return self.probes.get(component, Probe())

    def installed(self, component: str) -> list[str]:
        """The distributions of a component that are installed."""
        return [name for name in DISTRIBUTIONS.get(component, ()) if name in self.versions]


def gather() -> Facts:
    """Look at the environment that this interpreter runs in."""
    versions = {name: _version(name) for names in DISTRIBUTIONS.values() for name in names}
    components = [name for name in COMPONENTS if name in _SCRIPTS]
    # Each probe imports torch: two at a time are as quick as this gets on most machines.
    with ThreadPoolExecutor(max_workers=2) as pool:
        probes = dict(zip(components, pool.map(lambda name: _run(_SCRIPTS[name]), components)))
    return Facts(
        python=platform.python_version(),
        versions={name: version for name, version in versions.items() if version},
        probes=probes,
        torchvision_wants=_torchvision_wants(),
        has_gpu=Path("/proc/driver/nvidia/version").exists(),
    )


def _version(distribution: str) -> str:
    try:
        # None, against its type, where metadata is damaged.
        return metadata.version(distribution) or ""
    except metadata.PackageNotFoundError:
        return ""


def _torchvision_wants() -> str:
    try:
        requirements = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return ""
    found = (re.fullmatch(r"torch\s*\(?\s*([=<>!~][^;)]*?)\s*\)?", requirement) for requirement in requirements)
    return next((match[1] for match in found if match), "")


def _run(script: str) -> Probe:
    command = [sys.executable, "-c", _PROBE, json.dumps(sys.path), script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return Probe(f"it did not end within {_SECONDS} seconds")
    answers = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if not answers:
        return Probe(_ending(done.returncode, done.stderr))
    error, details = json.loads(answers[-1].removeprefix(_MARK))
    return Probe(_one_line(error or ""), {name: _one_line(value) for name, value in details.items()})


def _ending(status: int, stderr: str) -> str:
    """Why a probe gave no answer."""
    lines = stderr.strip().splitlines()
    last: Any = f": {_one_line(lines[-1])}" if lines else ""
    if status < 0:
        return f"the interpreter crashed, {signal.Signals(-status).name}{last}"
    return f"the interpreter ended with status {status}{last}"


def _one_line(text: str, most: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}..."

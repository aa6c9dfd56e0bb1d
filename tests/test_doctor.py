"""``resnet-backbone-doctor`` names each broken combination and the command that fixes it."""

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import assert_mentions, raises

from resnet_backbone_doctor import PROBES, Environment, Probe, diagnose, main, report

LITE = {
    "numpy": "2.4.6",
    "torch": "2.12.1+cu126",
    "torchvision": "0.27.1",
    "setuptools": "81.0.0",
    "mmengine": "0.10.7",
    "mmcv-lite": "2.1.0",
}
MMDET = {**{name: LITE[name] for name in LITE if name != "mmcv-lite"}, "mmcv": "2.1.0", "mmdet": "3.3.0"}
FORK = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmdetection": "3.5.1"}
COMPILED = Probe()
NO_MMDET = Probe("ModuleNotFoundError: No module named 'mmdet'")
REFUSED = "AssertionError: MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0."
NO_EXT = "ModuleNotFoundError: No module named 'mmcv._ext'"
SYMBOL = "ImportError: _ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZNK3c1010TensorImpl36is_contiguous"
NMS = "RuntimeError: operator torchvision::nms does not exist"
NO_PKG = "ModuleNotFoundError: No module named 'pkg_resources'"
TOOLS = 'pip install "setuptools>=77.0.3,<81" wheel ninja psutil'
BUILD = f"{TOOLS} && resnet-backbone-build-mmcv"
VISION = "pip uninstall -y torchvision && pip install --no-cache-dir torch=={} torchvision"
COMPILE = "pip install --no-cache-dir --no-build-isolation"


def env(versions, **probes):
    return Environment(versions, {**{name: Probe() for name in PROBES}, **probes})


def broken(found):
    return {finding.component: finding for finding in diagnose(found) if finding.status == "BROKEN"}


HEALTHY = {
    "mmcv-lite": env(LITE, mmdet=NO_MMDET),
    "mmdet": env(MMDET, mmcv=COMPILED),
    "the fork": env({**{name: LITE[name] for name in ("numpy", "torch")}, **FORK}, mmcv=COMPILED),
    "setuptools without pkg_resources, which nothing imports": env({**LITE, "setuptools": "84.0.0"}, mmdet=NO_MMDET),
    "mmcv without operators, without mmdet": env(
        {name: version for name, version in MMDET.items() if name != "mmdet"}, mmdet=NO_MMDET
    ),
    "a torchvision that asks for more and works": env(LITE, mmdet=NO_MMDET),
    "no torchvision": env(
        {name: LITE[name] for name in LITE if name != "torchvision"},
        mmdet=NO_MMDET,
        torchvision=Probe("ModuleNotFoundError: No module named 'torchvision'"),
    ),
}
# The problem, and the expected component, words of the sentence, and command.
BROKEN = {
    "mmcv 2.2 with mmdet 3.3": (
        env({**MMDET, "mmcv": "2.2.0"}, mmcv=COMPILED, mmdet=Probe(REFUSED)),
        "mmdet",
        ["3.3.0", "mmcv>=2.0.0rc4,<2.2.0", "2.2.0"],
        f"pip uninstall -y mmcv && {BUILD}",
    ),
    "the fork's mmcv with mmdet 3.3": (
        env(
            {**LITE, "onedl-mmcv": "2.3.6", "mmdet": "3.3.0"},
            mmcv=COMPILED,
            mmdet=Probe(REFUSED.replace("2.2.0 is", "2.3.6 is")),
        ),
        "mmcv",
        ["mmcv-lite 2.1.0", "onedl-mmcv 2.3.6"],
        "pip uninstall -y mmcv-lite onedl-mmcv && pip install mmcv-lite==2.1.0",
    ),
    "mmdet 3.3 among the fork's": (
        env(
            {"torch": "2.12.1", "onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "mmdet": "3.3.0"},
            mmcv=COMPILED,
            mmdet=Probe(REFUSED.replace("2.2.0 is", "2.3.6 is")),
        ),
        "mmdet",
        ["3.3.0", "mmcv>=2.0.0rc4,<2.2.0", "2.3.6"],
        f"pip uninstall -y mmdet && {TOOLS} && pip install --no-build-isolation onedl-mmdetection",
    ),
    "mmengine too old for mmdet": (
        env(
            {**MMDET, "mmengine": "0.6.0"},
            mmcv=COMPILED,
            mmdet=Probe(
                "AssertionError: MMEngine==0.6.0 is used but incompatible. Please install mmengine>=0.7.1, <1.0.0."
            ),
        ),
        "mmdet",
        ["3.3.0", "mmengine>=0.7.1,<1.0.0", "0.6.0"],
        'pip install "mmengine>=0.7.1,<1.0.0"',
    ),
    "mmcv-lite with mmdet": (
        env({**LITE, "mmdet": "3.3.0"}, mmdet=Probe(NO_EXT)),
        "mmcv",
        ["mmdet", "operators", "mmcv-lite"],
        f"pip uninstall -y mmcv-lite && {BUILD}",
    ),
    "mmcv built without operators, with mmdet": (
        env(MMDET, mmdet=Probe(NO_EXT)),
        "mmcv",
        ["mmdet", "operators", "mmcv"],
        f"pip uninstall -y mmcv && {BUILD}",
    ),
    "mmcv built for another torch": (
        env(
            {name: version for name, version in MMDET.items() if name != "mmdet"},
            mmcv=Probe(SYMBOL),
            mmdet=NO_MMDET,
        ),
        "mmcv",
        ["undefined symbol"],
        f"pip uninstall -y mmcv && {BUILD}",
    ),
    "torchvision of another torch": (
        env({**LITE, "torchvision": "0.26.0"}, torchvision=Probe(NMS), mmdet=NO_MMDET),
        "torchvision",
        ["0.26.0", "torch 2.12.1", "RuntimeError", "torchvision::nms"],
        VISION.format("2.12.1"),
    ),
    "torchvision for CPUs with torch for CUDA": (
        env({**LITE, "torchvision": "0.27.1+cpu"}, torchvision=Probe(NMS), mmdet=NO_MMDET),
        "torchvision",
        ["0.27.1", "torch 2.12.1"],
        VISION.format("2.12.1"),
    ),
    "setuptools without pkg_resources": (
        env({**LITE, "setuptools": "82.0.0"}, mmengine=Probe(NO_PKG), mmdet=NO_MMDET),
        "setuptools",
        ["mmengine 0.10.7", "pkg_resources", "setuptools 82"],
        'pip install "setuptools<82"',
    ),
    "no setuptools": (
        env(
            {name: LITE[name] for name in LITE if name != "setuptools"},
            mmengine=Probe(NO_PKG),
            mmdet=NO_MMDET,
        ),
        "setuptools",
        ["mmengine 0.10.7", "pkg_resources"],
        'pip install "setuptools<82"',
    ),
    "both mmengines, with mmdet": (
        env({**MMDET, "onedl-mmengine": "0.10.12"}, mmcv=COMPILED),
        "mmengine",
        ["mmengine 0.10.7", "onedl-mmengine 0.10.12"],
        "pip uninstall -y mmengine onedl-mmengine && pip install --no-deps mmengine==0.10.7",
    ),
    "both mmengines, with the fork": (
        env({**FORK, "torch": "2.12.1", "mmengine": "0.10.7"}, mmcv=COMPILED),
        "mmengine",
        ["mmengine 0.10.7", "onedl-mmengine 0.10.12"],
        "pip uninstall -y mmengine onedl-mmengine && pip install --no-deps onedl-mmengine==0.10.12",
    ),
    "both mmcvs, with the fork": (
        env({**FORK, "torch": "2.12.1", "mmcv": "2.1.0"}, mmcv=COMPILED),
        "mmcv",
        ["mmcv 2.1.0", "onedl-mmcv 2.3.6"],
        f"pip uninstall -y mmcv onedl-mmcv && {TOOLS} && {COMPILE} onedl-mmcv",
    ),
    "mmcv and mmcv-lite": (
        env({**LITE, "mmcv": "2.1.0"}, mmcv=COMPILED, mmdet=NO_MMDET),
        "mmcv",
        ["mmcv 2.1.0", "mmcv-lite 2.1.0"],
        "pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite",
    ),
    "both mmdets": (
        env({**MMDET, "onedl-mmdetection": "3.5.1"}, mmcv=COMPILED),
        "mmdet",
        ["mmdet 3.3.0", "onedl-mmdetection 3.5.1"],
        "pip uninstall -y mmdet onedl-mmdetection && pip install --no-deps mmdet==3.3.0",
    ),
    "numpy 2 with torch 2.2": (
        env(
            {**LITE, "torch": "2.2.2", "torchvision": "0.17.2"},
            torch=Probe("RuntimeError: Numpy is not available"),
            mmdet=NO_MMDET,
        ),
        "numpy",
        ["torch 2.2.2", "NumPy 1", "NumPy 2.4.6"],
        'pip install "numpy<2"',
    ),
    "no mmengine": (
        env(
            {name: LITE[name] for name in LITE if name != "mmengine"},
            mmengine=Probe("ModuleNotFoundError: No module named 'mmengine'"),
            mmcv=Probe("ModuleNotFoundError: No module named 'mmengine'"),
            resnet_backbone=Probe("ImportError: resnet_backbone needs mmengine and mmcv"),
            mmdet=NO_MMDET,
        ),
        "mmengine",
        ["not installed"],
        "pip install mmengine",
    ),
    "no mmcv": (
        env(
            {name: LITE[name] for name in LITE if name != "mmcv-lite"},
            mmcv=Probe("ModuleNotFoundError: No module named 'mmcv'"),
            mmdet=NO_MMDET,
        ),
        "mmcv",
        ["not installed"],
        "pip install mmcv-lite",
    ),
    "no display library": (
        env(
            LITE,
            mmcv=Probe("ImportError: libGL.so.1: cannot open shared object file: No such file or directory"),
            mmdet=NO_MMDET,
        ),
        "mmcv",
        ["libGL.so.1"],
        "pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless",
    ),
    "old torch": (
        env(
            {**LITE, "torch": "2.0.1"},
            torch=Probe("AssertionError: resnet_backbone needs torch 2.1 or newer"),
            mmdet=NO_MMDET,
        ),
        "torch",
        ["torch 2.1"],
        'pip install --upgrade "torch>=2.1" torchvision',
    ),
    "a GPU that torch was not built for": (
        env(LITE, torch=Probe("RuntimeError: CUDA error: no kernel image")),
        "torch",
        ["GPU", "RuntimeError: CUDA error: no kernel image"],
        "pip install -U torch torchvision",
    ),
    "something unheard of": (
        env(LITE, mmengine=Probe("OSError: disk on fire"), mmdet=NO_MMDET),
        "mmengine",
        ["OSError: disk on fire"],
        "pip install --force-reinstall --no-deps --no-cache-dir mmengine==0.10.7",
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_working_environments(name):
    assert broken(HEALTHY[name]) == {}
    assert [finding.component for finding in diagnose(HEALTHY[name])] == list(PROBES)
    printed = report(HEALTHY[name], diagnose(HEALTHY[name]))
    assert_mentions(printed, "broken")
    assert "BROKEN" not in printed


@pytest.mark.parametrize("name", BROKEN)
def test_each_problem_has_one_command(name):
    found, component, words, command = BROKEN[name]
    finding = broken(found)[component]
    assert_mentions(finding.text, *words)
    assert finding.fix == command
    # One command for the cause, and none for its consequences.
    assert [other.fix for other in broken(found).values() if other.fix] == [command]
    printed = report(found, diagnose(found)).splitlines()
    # On a line of its own, whole.
    assert f"   {command}" in printed
    assert any(line.startswith(component) and "BROKEN" in line for line in printed)


def test_old_python_is_named():
    found = broken(env(LITE, python=Probe("AssertionError: resnet_backbone needs Python 3.10 or newer")))
    assert "Python 3.10" in found["python"].text


def test_consequences_name_their_cause():
    findings = broken(BROKEN["no mmengine"][0])
    assert findings["mmcv"].text.startswith("because of mmengine: ")
    assert findings["resnet_backbone"].text.startswith("because of mmengine, mmcv: ")


# python -S ignores all installed packages, so the environment has only these.
TORCH = """
__version__ = "2.12.1"
class version: cuda = hip = None
class cuda: is_available = staticmethod(lambda: False)
class ones:
    def __init__(self, *shape): pass
    def numpy(self): pass
"""
MMENGINE = {
    "mmengine/__init__.py": "",
    "mmengine/registry.py": "",
    "mmengine/runner.py": "",
    "mmengine/utils.py": "def is_installed(name): pass",
}
RUN = """
import subprocess, sys
done = subprocess.run([sys.executable, "-S", "-m", "resnet_backbone_doctor"], stdout=subprocess.PIPE, text=True)
print(done.stdout, "status", done.returncode)
"""


def distribution(name, version, *requires):
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    return {f"{name.replace('-', '_')}-{version}.dist-info/METADATA": "\n".join(lines) + "\n"}


REAL = {
    "nothing at all": ({}, ["torch", "not installed", "   pip install mmengine"]),
    "no pkg_resources": (
        {
            "torch.py": TORCH,
            **MMENGINE,
            "mmengine/utils.py": "def is_installed(name): import pkg_resources",
            **distribution("mmengine", "0.10.7"),
            **distribution("setuptools", "82.0.0"),
            **distribution("torch", "2.12.1"),
        },
        ["mmengine 0.10.7", "pkg_resources", "setuptools 82", '   pip install "setuptools<82"'],
    ),
    "an import that crashes": (
        {
            "torch.py": TORCH,
            **MMENGINE,
            "mmcv/__init__.py": "import os; os.abort()",
            **distribution("mmcv-lite", "2.1.0"),
        },
        ["mmcv", "crashed", "SIGABRT"],
    ),
    "an import that exits": (
        {"numpy.py": "", "torch.py": "import os; os._exit(3)", **distribution("torch", "2.12.1")},
        [
            "torch",
            "status 3",
            "   pip install --force-reinstall --no-deps --no-cache-dir torch==2.12.1",
        ],
    ),
    "mmcv 2.2 with mmdet 3.3": (
        {
            "torch.py": TORCH,
            "mmdet/__init__.py": f"assert False, {REFUSED.partition(': ')[2]!r}",
            **distribution("mmdet", "3.3.0"),
            **distribution("mmcv", "2.2.0"),
        },
        ["3.3.0", "mmcv>=2.0.0rc4,<2.2.0", "2.2.0", BUILD],
    ),
    "operators with an undefined symbol": (
        {
            "torch.py": TORCH,
            "mmcv/__init__.py": "",
            "mmcv/cnn.py": "",
            "mmcv/_ext.py": "",
            "mmcv/ops.py": f"raise ImportError({SYMBOL.partition(': ')[2]!r})",
            **distribution("mmcv", "2.1.0"),
        },
        ["operators", "ImportError: _ext", BUILD],
    ),
    "torchvision of another torch": (
        {
            "torch.py": TORCH,
            "torchvision.py": f"raise RuntimeError({NMS.partition(': ')[2]!r})",
            **distribution("torch", "2.2.0+cpu"),
            **distribution("torchvision", "0.16.0", "numpy", "torch (==2.1.0)", "pillow (>=5.3.0)"),
        },
        ["0.16.0", "torch 2.2.0", f"   {VISION.format('2.2.0')}"],
    ),
    "two families": (
        {**distribution("mmengine", "0.10.7"), **distribution("onedl-mmengine", "0.10.12")},
        ["mmengine 0.10.7", "onedl-mmengine 0.10.12"],
    ),
    "numpy 2": (
        {
            "torch.py": TORCH.replace("numpy(self): pass", "numpy(self): raise RuntimeError('Numpy is not available')"),
            "numpy.py": "",
            **distribution("numpy", "2.2.6"),
            **distribution("torch", "2.2.2"),
        },
        ["torch 2.2.2", "NumPy 1", "NumPy 2.2.6", '   pip install "numpy<2"'],
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_runs_in_broken_environments(name, run_python):
    packages, expected = REAL[name]
    printed = run_python(RUN, packages)
    assert printed.strip().endswith("status 1")
    assert_mentions(printed, *expected)


def test_this_environment_works(capsys, monkeypatch):
    # The package's probe imports the other libraries as well. ``.ci/run lite`` runs the command itself.
    few = {component: PROBES[component] for component in ("python", "setuptools", "resnet_backbone")}
    monkeypatch.setattr("resnet_backbone_doctor.PROBES", few)
    assert main() == 0
    printed = capsys.readouterr().out
    assert_mentions(printed, "broken")
    assert "BROKEN" not in printed
    assert f"{sys.version_info.major}.{sys.version_info.minor}." in printed


def test_needs_nothing_but_the_standard_library():
    script = """
import sys
before = set(sys.modules)
import resnet_backbone_doctor
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(loaded - sys.stdlib_module_names))
"""
    # Not by run_python, whose processes have imported other packages before.
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.splitlines() == ["['resnet_backbone_doctor']"]


def test_import_error_names_the_doctor(run_python):
    script = "import sys; sys.modules['torch'] = None; import resnet_backbone.tools.cli"
    with raises(AssertionError, "resnet-backbone-doctor"):
        run_python(script)

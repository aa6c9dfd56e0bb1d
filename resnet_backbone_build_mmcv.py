"""Build mmcv's compiled operators for the torch that is installed: ``resnet-backbone-build-mmcv``.

mmcv 2.1.0 asks its compilers for C++17; torch needs C++20 since 2.14. Nothing else stands in the way, so compilers that
turn the one into the other (and leave out debug symbols) are put before the real ones, and mmcv is built unchanged.

This module lies beside the package and needs only the standard library: the package cannot be imported without mmcv.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

__all__ = ["BuildError", "build", "main"]

MMCV = "2.1.0"
# Sizes of a build of mmcv 2.1.0 for torch 2.15, rounded up; CUDA doubles what lies on the disk.
GIGABYTES_OF_DISK = 2
GIGABYTES_PER_JOB = 2
# Headers that every file includes. Compiled once, they save more than half of the time.
COMMON_HEADER = "torch/types.h"

COMPILER = """#!/bin/sh
for argument do
    shift
    case $argument in -std=c++14 | -std=c++17) argument={standard} ;; esac
    set -- "$@" "$argument"
done
exec {compiler} "$@" {extra}
"""

# Printed by the Python that mmcv is built for: it is this one.
TORCH = """
import torch
from torch.utils import cpp_extension
print(torch.__version__, torch.version.cuda or "-", int(torch.cuda.is_available()), cpp_extension.CUDA_HOME or "-")
print(*cpp_extension.include_paths(), sep=":")
"""
PROOF = """
import torch, mmcv, mmcv.ops
boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9]])
assert mmcv.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1].tolist() == [0]
print(f"mmcv {mmcv.__version__} on torch {torch.__version__}: mmcv.ops works")
try:
    import mmdet
except ModuleNotFoundError:
    print("mmdet is not installed: pip install mmdet==3.3.0")
else:
    import mmdet.models
    print(f"mmdet {mmdet.__version__}: mmdet.models works")
"""


class BuildError(RuntimeError):
    """mmcv cannot be built here; the message says what is missing and how to get it."""


class Torch:
    """The installed torch, as its own Python describes it."""

    def __init__(self) -> None:
        done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1]
            raise BuildError(f"torch cannot be imported ({reason}): install it first, pip install torch torchvision")
        *_, facts, includes = done.stdout.strip().splitlines()
        self.version, self.cuda, sees_gpu, self.cuda_home = facts.split(maxsplit=3)
        self.sees_gpu = sees_gpu == "1"
        self.includes = includes.split(":")

    @property
    def standard(self) -> str:
        """The C++ standard that its headers need."""
        major, minor = (int(number) for number in self.version.split(".")[:2])
        return "-std=c++20" if (major, minor) >= (2, 14) else "-std=c++17"


def build(version: str = MMCV, jobs: int | None = None, cuda: bool | None = None) -> None:
    """Build mmcv and install it into this environment, in place of mmcv-lite.

    Args:
        version: Version of mmcv.
        jobs: Files to compile at a time; ``None`` for as many as cores and memory allow.
        cuda: Whether to build the CUDA operators; ``None`` if torch sees a GPU.

    Raises:
        BuildError: Something that the build needs is missing, or the build fails; the environment is as it was.
    """
    torch = Torch()
    cuda = torch.sees_gpu if cuda is None else cuda
    compiler = os.environ.get("CXX") or "c++"
    nvcc = _check_cuda(torch) if cuda else None
    _check_python_packages()
    _check_compiler(compiler, torch.standard)
    jobs = jobs or max(1, min(os.cpu_count() or 1, _available_gigabytes() // GIGABYTES_PER_JOB))
    with tempfile.TemporaryDirectory(prefix="build-mmcv-") as name:
        folder = Path(name)
        _check_disk(folder, GIGABYTES_OF_DISK * (2 if cuda else 1))
        print(
            f"Building mmcv {version} for torch {torch.version} {'with' if cuda else 'without'} CUDA, {jobs} at a time"
        )
        environment = {**os.environ, "MAX_JOBS": str(jobs), "MMCV_WITH_OPS": "1", "FORCE_CUDA": str(int(cuda))}
        environment["CXX"] = _put_before(compiler, torch.standard, folder, _precompile(compiler, torch, folder))
        if nvcc:
            environment["PYTORCH_NVCC"] = _put_before(nvcc, torch.standard, folder)
        _build_wheel(version, folder, environment)
        # It has the same files. Only now: had the build failed, it would still be there.
        if _is_installed("mmcv-lite"):
            _pip("uninstall", "--yes", "mmcv-lite")
        _pip("install", "--force-reinstall", "--no-deps", *map(str, folder.glob("mmcv-*.whl")))
        _pip("install", f"mmcv=={version}")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROOF], check=False)
    if done.returncode:
        raise BuildError("mmcv was built and installed, and does not work: see above")


def _check_python_packages() -> None:
    missing = [name for name in ("ninja", "wheel", "psutil") if not _is_installed(name)]
    # mmcv's setup.py imports pkg_resources, which later versions do not have.
    if not _is_installed("setuptools") or int(metadata.version("setuptools").split(".")[0]) >= 82:
        missing.append("setuptools<82")
    if missing:
        raise BuildError(f"the build needs more: pip install {' '.join(map(shlex.quote, missing))}")


def _check_compiler(compiler: str, standard: str) -> None:
    if os.name == "nt":
        raise BuildError(
            "building is for Linux and macOS; resnet_backbone.integrations.mmdet.operators needs no compiler"
        )
    if not shutil.which(shlex.split(compiler)[0]):
        raise BuildError(
            f"there is no C++ compiler {compiler!r} (the environment variable CXX names one): {_GET_COMPILER}"
        )
    command = [*shlex.split(compiler), standard, "-fsyntax-only", "-x", "c++", "-"]
    program = "#include <Python.h>\n#include <concepts>\n" if standard.endswith("20") else "#include <Python.h>\n"
    command += [f"-I{sysconfig.get_path('include')}"]
    done = subprocess.run(command, input=program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(
            f"{compiler} {standard} cannot compile a Python extension: {done.stderr.strip()}\n{_GET_COMPILER}"
        )


_GET_COMPILER = (
    "on Debian and Ubuntu, apt-get install g++ python3-dev (g++ 11 or newer); on macOS, xcode-select --install"
)


def _check_cuda(torch: Torch) -> str:
    if torch.cuda == "-":
        raise BuildError(f"torch {torch.version} was built without CUDA, so that mmcv cannot have it")
    nvcc = Path(torch.cuda_home) / "bin" / "nvcc"
    if not nvcc.exists():
        raise BuildError(
            f"there is no nvcc (CUDA_HOME is {torch.cuda_home}): install CUDA toolkit {torch.cuda}, or build for the "
            "CPU alone with --cpu"
        )
    printed = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\d+)\.", printed)
    if release is None or release[1] != torch.cuda.split(".")[0]:
        found = release[1] if release else "an unknown version"
        raise BuildError(
            f"{nvcc} is of CUDA {found}, and torch was built for CUDA {torch.cuda}: the major versions must agree"
        )
    if not torch.sees_gpu and "TORCH_CUDA_ARCH_LIST" not in os.environ:
        raise BuildError("there is no GPU to build for: set TORCH_CUDA_ARCH_LIST, for example TORCH_CUDA_ARCH_LIST=9.0")
    return str(nvcc)


def _check_disk(folder: Path, gigabytes: int) -> None:
    free = shutil.disk_usage(folder).free / 2**30
    if free < gigabytes:
        raise BuildError(
            f"the build needs {gigabytes} GB in {folder.parent}, and {free:.1f} are free: TMPDIR names another folder"
        )


def _available_gigabytes() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**30
    except (ValueError, OSError):
        return GIGABYTES_PER_JOB


def _put_before(compiler: str, standard: str, folder: Path, extra: str = "-g0") -> str:
    """Write a compiler that calls another with the right standard."""
    path = folder / Path(shlex.split(compiler)[0]).name
    path.write_text(COMPILER.format(compiler=compiler, standard=standard, extra="" if path.name == "nvcc" else extra))
    path.chmod(0o755)
    return str(path)


def _precompile(compiler: str, torch: Torch, folder: Path) -> str:
    """Compile the common header; return the options that make use of it, if the compiler can (GCC does)."""
    header = folder / "common.h"
    header.write_text(f"#include <{COMMON_HEADER}>\n")
    # distutils' own options: a header compiled with others is passed over.
    options = [*shlex.split(sysconfig.get_config_var("CFLAGS") or ""), "-fPIC", torch.standard, "-g0"]
    includes = [f"-I{path}" for path in (*torch.includes, sysconfig.get_path("include"))]
    command = [*shlex.split(compiler), *options, *includes, "-x", "c++-header", str(header), "-o", f"{header}.gch"]
    done = subprocess.run(command, capture_output=True, check=False)
    return f"-g0 -include {header}" if done.returncode == 0 else "-g0"


def _build_wheel(version: str, folder: Path, environment: Mapping[str, str]) -> None:
    command = [
        *(sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation"),
        # pip's cache does not know which torch a wheel was built for.
        *("--no-cache-dir", "--no-binary", "mmcv", "--wheel-dir", str(folder), f"mmcv=={version}"),
    ]
    started = time.monotonic()
    lines = []
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if progress := re.match(r"\s*\[(\d+)/(\d+)\]", line):
                minutes, seconds = divmod(int(time.monotonic() - started), 60)
                _show(f"compiled {progress[1]} of {progress[2]} files, {minutes}:{seconds:02d}")
    if process.returncode:
        errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)] or lines
        raise BuildError("mmcv cannot be built:\n" + "".join(errors[:10]).rstrip())
    print(f"\nBuilt in {(time.monotonic() - started) / 60:.1f} minutes")


def _show(progress: str) -> None:
    # One line that is written over on a terminal, few lines in a log.
    if sys.stdout.isatty():
        print(f"\r{progress}", end="", flush=True)
    elif re.match(r"compiled \d*0 of", progress):
        print(progress, flush=True)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments, "--quiet"], check=False)
    if done.returncode:
        raise BuildError(f"pip {' '.join(arguments)} failed: see above")


def main() -> int:
    """Build mmcv as the command line says; the exit status is 1 if it cannot be built."""
    parser = argparse.ArgumentParser(prog="resnet-backbone-build-mmcv", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--version", default=MMCV, help=f"version of mmcv (default: {MMCV}, the newest that mmdet 3.3.0 takes)"
    )
    parser.add_argument("--jobs", type=int, help="files to compile at a time (default: as cores and memory allow)")
    device = parser.add_mutually_exclusive_group()
    device.add_argument("--cuda", action="store_true", default=None, help="with CUDA (default: if torch sees a GPU)")
    device.add_argument("--cpu", dest="cuda", action="store_false", help="without CUDA")
    arguments = parser.parse_args()
    try:
        build(arguments.version, arguments.jobs, arguments.cuda)
    except BuildError as error:
        print(f"resnet-backbone-build-mmcv: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

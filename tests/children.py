"""Child processes. On Linux they are forked from a server that has imported torch and mmengine, which takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

# macOS's libraries do not support fork, Windows has none.
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
# Not mmcv, mmdet or resnet_backbone: scripts import these in an order of their own.
PRELOADED = ("torch", "torchvision", "mmengine.runner", "cv2", "pytest")
# Tests add to sys.path, by configs that import modules beside them, and children get the parent's.
CLEAN_PATH = tuple(sys.path)


def run_script(script: str, folder: str, paths: list[str], shadowed: set[str], clean_path: tuple[str, ...]) -> None:
    """Run a script like ``python -c``. Its output goes to the file ``output`` in ``folder``.

    Args:
        script: Python code.
        folder: Working directory.
        paths: Where modules are found before any other.
        shadowed: Packages that ``paths`` replace; they are imported again.
        clean_path: The rest of ``sys.path``.
    """
    os.chdir(folder)
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv[:] = ["-c"]
    sys.path[:] = ["", *paths, *clean_path]
    os.environ.update(PYTHONPATH=os.pathsep.join(paths), OMP_NUM_THREADS="1")
    # pkg_resources remembers sys.path.
    for name in [name for name in sys.modules if name.partition(".")[0] in {"pkg_resources", *shadowed}]:
        del sys.modules[name]
    exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})


def context() -> multiprocessing.context.BaseContext:
    """Return the context with which tests start processes."""
    if START_METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(list(PRELOADED))
    return multiprocessing.get_context(START_METHOD)


def run_two(function: Callable[..., None], *args: Any) -> None:
    """Run ``function(rank, *args)`` in two processes with a process group, as torchrun does."""
    import torch

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context()
    torch.multiprocessing.start_processes(_in_group, (port, function, args), nprocs=2, start_method=START_METHOD)


def _in_group(rank: int, port: int, function: Callable[..., None], args: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2"
    )
    torch.distributed.init_process_group("gloo")
    function(rank, *args)
    torch.distributed.destroy_process_group()

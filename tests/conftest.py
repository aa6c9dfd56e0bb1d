from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import children
import hypothesis
import pytest

ROOT = Path(__file__).parents[1]

hypothesis.settings.register_profile("local", deadline=None, max_examples=15)
# Every CI run uses the same examples, so that results are reproducible.
hypothesis.settings.register_profile("ci", parent=hypothesis.settings.get_profile("local"), derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Use one thread: the networks are too small for more."""
    import torch  # not above: the process that only distributes the tests does without it

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group with a single process."""
    import torch

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


RunPython = Callable[..., str]


@pytest.fixture
def run_python(tmp_path: Path) -> RunPython:
    """A function that runs a script in a new process and returns its output.

    ``packages`` maps file names to sources of modules that are importable before any other, ``ours`` is where
    resnet_backbone comes from. A script that fails fails the test.
    """

    def run(script: str, packages: dict[str, str] | None = None, ours: Path = ROOT) -> str:
        shadows = tmp_path / "shadows"
        for name, source in (packages or {}).items():
            file = shadows / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        shadowed = {Path(name).parts[0].removesuffix(".py") for name in packages or {}}
        process = children.context().Process(
            target=children.run_script,
            args=(script, str(tmp_path), [str(shadows), str(ours)], shadowed, children.CLEAN_PATH),
        )
        process.start()
        process.join(timeout=300)
        printed = (tmp_path / "output").read_text()
        assert process.exitcode == 0, printed
        return printed

    return run


# Hosts that the tests marked network download from.
_HOSTS = ("download.pytorch.org", "huggingface.co")


def _why_no_network():
    for host in _HOSTS:
        try:
            socket.create_connection((host, 443), timeout=5).close()
        except OSError as error:
            return f"no network: {host} cannot be reached ({error})"
    return None


def pytest_collection_modifyitems(items):
    network = [item for item in items if item.get_closest_marker("network")]
    reason = _why_no_network() if network else None
    if reason is not None:
        for item in network:
            item.add_marker(pytest.mark.skip(reason=reason))

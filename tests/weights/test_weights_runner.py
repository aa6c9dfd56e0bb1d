"""Reading of checkpoints of mmengine's Runner on every version of torch."""

import logging
import pickle

import numpy as np
import pytest
import torch
from helpers import raises
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OneCycleLR
from mmengine.runner import CheckpointLoader, load_checkpoint

from resnet_backbone.errors import CheckpointError, UnsafeCheckpointError
from resnet_backbone.integrations.mmdet import runner_files
from resnet_backbone.integrations.mmdet.runner_files import read_runner_file, read_runner_files


@pytest.fixture
def checkpoint():
    """A checkpoint of the Runner, including its logs."""
    hub = MessageHub("of the test")
    for step in range(3):
        hub.update_scalar("train/loss", np.float64(0.5) ** step)
    hub.update_info("iter", np.int64(3))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    return dict(
        meta=dict(epoch=1, dataset_meta=dict(classes=("a", "b"))),
        state_dict=torch.nn.Linear(2, 3).state_dict(),
        message_hub=hub.state_dict(),
        optimizer=optimizer.state_dict(),
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_all_of_a_runner_checkpoint(tmp_path, checkpoint, legacy):
    path = tmp_path / "iter_3.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    found = CheckpointLoader.load_checkpoint(str(path), "cpu", logger=None)
    assert found.keys() == checkpoint.keys()
    assert found["meta"] == checkpoint["meta"]
    assert found["optimizer"] == checkpoint["optimizer"]
    assert torch.equal(found["state_dict"]["weight"], checkpoint["state_dict"]["weight"])
    log = found["message_hub"]["log_scalars"]["train/loss"]
    assert type(log) is HistoryBuffer
    assert log.mean(3) == pytest.approx(1.75 / 3)
    assert found["message_hub"]["runtime_info"]["iter"] == 3
    restored = MessageHub("restored")
    restored.load_state_dict(found["message_hub"])
    assert restored.get_scalar("train/loss").current() == 0.25


@pytest.mark.parametrize("anneal", ["cos", "linear"])
def test_one_cycle_schedule_is_resumed(tmp_path, anneal):
    def schedule():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        scheduler = OneCycleLR(optimizer, eta_max=1.0, total_steps=5, anneal_strategy=anneal)
        optimizer.step()
        return scheduler

    ours, theirs = schedule(), schedule()
    for _ in range(2):
        theirs.step()
    torch.save({"param_schedulers": [theirs.state_dict()]}, tmp_path / "iter_2.pth")
    ours.load_state_dict(read_runner_file(tmp_path / "iter_2.pth")["param_schedulers"][0])
    for scheduler in (ours, theirs):
        scheduler.step()
    assert ours.get_last_value() == theirs.get_last_value()


def test_config_of_the_dataset_is_read(tmp_path):
    meta = Config(dict(metainfo=dict(classes=("a", "b"), names=dict(a="one")))).metainfo
    torch.save({"meta": dict(dataset_meta=meta)}, tmp_path / "iter_2.pth")
    found = read_runner_file(tmp_path / "iter_2.pth")["meta"]["dataset_meta"]
    assert type(found) is type(found.names) is ConfigDict
    assert found == meta


def test_home_is_expanded(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(checkpoint, tmp_path / "iter_3.pth")
    module = torch.nn.Linear(2, 3)
    load_checkpoint(module, "~/iter_3.pth", map_location="cpu", strict=True)
    assert torch.equal(module.weight, checkpoint["state_dict"]["weight"])


def test_mmengine_is_preferred(tmp_path, monkeypatch):
    path = tmp_path / "plain.pth"
    torch.save({"weight": torch.ones(2)}, path)
    monkeypatch.setattr(runner_files, "read_runner_file", lambda *_: pytest.fail("not asked"))
    assert torch.equal(CheckpointLoader.load_checkpoint(str(path), "cpu", logger=None)["weight"], torch.ones(2))
    with pytest.raises(FileNotFoundError):
        CheckpointLoader.load_checkpoint(str(tmp_path / "none.pth"), "cpu", logger=None)


def test_is_installed_once(caplog):
    before = CheckpointLoader._get_checkpoint_loader("a/path.pth")
    read_runner_files()
    assert CheckpointLoader._get_checkpoint_loader("a/path.pth") is before
    # mmengine logs the end of the loader's name.
    assert before.__name__ == "load_from_local"


class Calls:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (Calls(print, "hostile"), ["builtins.print"]),
        (
            Calls(getattr, HistoryBuffer, "__init__"),
            ["builtins.getattr", "HistoryBuffer.__init__"],
        ),
        (Calls(getattr, torch.Tensor, "numpy"), ["builtins.getattr", "numpy"]),
        (Config(dict(a=1)), ["mmengine.config"]),
        (logging.getLogger("resnet_backbone"), ["logging.getLogger"]),
    ],
    ids=["function", "private", "attribute", "config", "logger"],
)
def test_unknown_objects_are_rejected_by_name(tmp_path, checkpoint, value, names, capsys):
    path = tmp_path / "iter_3.pth"
    torch.save({**checkpoint, "more": value}, path)
    with raises(UnsafeCheckpointError, str(path), *names, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        read_runner_file(path)
    assert "hostile" not in capsys.readouterr().out


class Log:
    """A pickled HistoryBuffer with a given state."""

    def __init__(self, **state):
        self.state = dict(_log_history=np.ones(2), _count_history=np.ones(2), max_length=10) | state

    def __reduce__(self):
        return HistoryBuffer, (), self.state


def test_reading_a_log_does_not_modify_its_class(tmp_path):
    path = tmp_path / "iter_3.pth"
    before = dict(HistoryBuffer._statistics_methods), dict(vars(HistoryBuffer))
    methods = {"mean": HistoryBuffer.min, "current": HistoryBuffer.max, "more": HistoryBuffer.mean}
    torch.save(Log(statistics_methods=methods, update=1, _statistics_methods={}, __class__=1), path)
    log = read_runner_file(path)
    assert type(log) is HistoryBuffer
    assert vars(log).keys() == {"_log_history", "_count_history", "max_length"}
    assert (log.max_length, log.mean()) == (10, 1)
    assert (HistoryBuffer._statistics_methods, dict(vars(HistoryBuffer))) == before


@pytest.mark.parametrize(
    "state",
    [
        dict(_log_history=[1.0, 2.0]),
        dict(_log_history=np.ones(3)),
        dict(_count_history=np.ones((2, 1))),
        dict(_log_history=np.array([None, 1])),
        dict(max_length="10"),
    ],
)
def test_malformed_log_is_rejected(state, tmp_path):
    torch.save(Log(**state), tmp_path / "iter_3.pth")
    with raises(CheckpointError, "iter_3.pth", "log"):
        read_runner_file(tmp_path / "iter_3.pth")


def test_logs_are_read_bit_for_bit(tmp_path, checkpoint):
    path = tmp_path / "iter_3.pth"
    torch.save(checkpoint, path)
    ours = read_runner_file(path)
    theirs = torch.load(path, weights_only=False)
    assert ours["state_dict"]._metadata == theirs["state_dict"]._metadata
    for log, expected in zip(
        ours["message_hub"]["log_scalars"].values(), theirs["message_hub"]["log_scalars"].values(), strict=True
    ):
        assert vars(log).keys() == vars(expected).keys()
        for values, other in zip(log.data, expected.data, strict=True):
            assert values.dtype == other.dtype
            assert values.tobytes() == other.tobytes()


def test_plain_pickle_is_rejected(tmp_path):
    path = tmp_path / "iter_3.pth"
    path.write_bytes(pickle.dumps(Calls(print, "hostile")))
    with raises(UnsafeCheckpointError, str(path), "builtins.print"):
        read_runner_file(path)

"""The benchmark compares features before timing, counts correctly, and reports skipped rows."""

import json
from dataclasses import replace

import pytest
import torch
from helpers import assert_mentions, raises
from torch import nn

from benchmarks import gpu
from benchmarks.bench.__main__ import main
from benchmarks.bench.measure import measure, saved_bytes
from benchmarks.bench.report import Report
from benchmarks.bench.roofline import count_flops
from benchmarks.bench.rows import Row, UnavailableError, reference, rows_for
from benchmarks.bench.settings import Settings
from resnet_backbone.errors import ArgumentError

TINY = Settings(model="resnet18", height=32, width=32, repeats=1)
TINY_TRAIN = Settings(train=True, model="resnet18", height=32, width=32, repeats=2)
ARGUMENTS = ["--model", "resnet18", "--size", "32", "32", "--repeats", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_training_rows_report_difference_time_and_memory(tmp_path, capsys):
    json_file, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    rows = ["folded", "folded, channels_last, bf16 convolutions", "torchvision", "mmengine efficient_conv_bn_eval"]
    command = ["--train", "--memory", "--json", str(json_file), "--plot", str(picture), "--only", *rows]
    assert main([*command, *ARGUMENTS, "--size", "64", "64"]) == 0
    table = json.loads(json_file.read_text())["tables"][0]
    results = {result["name"]: result for result in table["results"]}
    assert list(results) == ["exact", *rows]
    for result in results.values():
        if "bf16" in result["name"] and not hasattr(getattr(torch.backends.mkldnn, "conv", None), "fp32_precision"):
            assert_mentions(result["note"], "2.9")
            continue
        assert len(result["milliseconds"]) == 1
        assert result["error"] < (2e-2 if "bf16" in result["name"] else 1e-4)
    assert results["torchvision"]["saved_bytes"] == results["exact"]["saved_bytes"]
    # At 64 pixels, small tensors have a larger share than at real sizes.
    assert results["folded"]["saved_bytes"] < 0.6 * results["exact"]["saved_bytes"]
    assert table["flops"] == count_flops(replace(TINY_TRAIN, batch=2, height=64, width=64))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "resnet18, training step, frozen_stages=1, 2x3x64x64, fp32, cpu" in capsys.readouterr().out


def test_inference_rows(tmp_path):
    file = tmp_path / "bench.json"
    rows = ["deployed", "timm"]
    assert main(["--json", str(file), "--dtype", "fp32", "bf16", "--only", *rows, *ARGUMENTS]) == 0
    written = json.loads(file.read_text())
    assert written["machine"]["threads"] == 1
    assert [table["settings"]["dtype"] for table in written["tables"]] == ["fp32", "bf16"]
    for table in written["tables"]:
        assert [result["note"] for result in table["results"]] == [""] * 3


def test_each_setting_is_compiled_separately():
    """All networks share the code of ``forward``, and the compiler keeps at most eight versions of it."""

    def row(name, compiled):
        torch.manual_seed(0)
        net = Net(nn.Conv2d(3, 1, 1))
        return Row(name, torch.compile(net, backend="eager", fullgraph=True) if compiled else net, net)

    rows = {"exact": lambda _: row("exact", False), **{f"{i}": lambda _: row("compiled", True) for i in range(5)}}
    for _ in range(2):
        assert [result.note for result in measure(TINY, rows)] == [""] * 6


class Net(nn.Module):
    """A network of a single level."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return [self.conv(x)]


def wrong(settings):
    backbone = reference(settings)
    with torch.no_grad():
        backbone.layer3[0].conv1.weight.mul_(1.5)
    return Row("wrong", backbone, backbone)


def missing(settings):
    raise UnavailableError("not installed")


def broken(settings):
    raise RuntimeError("first line\nsecond line")


def test_skipped_rows_state_the_reason(capsys):
    rows = {"exact": rows_for(TINY)["exact"], "wrong": wrong, "missing": missing, "broken": broken}
    results = measure(TINY, rows)
    assert [bool(result.milliseconds) for result in results] == [True, False, False, False]
    report = Report(TINY, results, 1, 1.0)
    assert report.notes() == [
        "wrong: computes something else: not timed",
        "missing: not installed",
        "broken: failed: RuntimeError: first line",
    ]
    assert report.table().row_count == 1


def test_repetitions_are_interleaved():
    order = []

    def row(name):
        model = nn.Conv2d(3, 1, 1)
        return lambda settings: Row(name, lambda x: (order.append(name), [model(x) * 0])[1], model)

    measure(TINY_TRAIN, {name: row(name) for name in ("exact", "other")})
    assert order[-4:] == ["exact", "other", "exact", "other"]


def test_saved_bytes():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1, bias=False))
    x = torch.rand(2, 3, 5, 5)
    # The first convolution saves the image; the ReLU and the second one save one tensor, the ReLU's output.
    assert saved_bytes(model, lambda: model(x)) == 4 * (2 * 3 * 25 + 2 * 4 * 25)


def test_flops_count_convolutions():
    macs = 0

    def count(conv, _, out):
        nonlocal macs
        macs += out[0].numel() * conv.weight[0].numel()

    backbone = reference(TINY)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    backbone(TINY.image())
    assert count_flops(TINY) == 2 * macs


def test_frozen_stages_cost_no_backward_pass():
    flops = [
        count_flops(Settings(train=True, model="resnet18", height=32, width=32, frozen_stages=n)) for n in (-1, 1, 4)
    ]
    forward = count_flops(Settings(model="resnet18", height=32, width=32, batch=1))
    assert flops[2] == forward
    assert flops[1] < flops[0] < 3 * forward


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dtype", "fp64"], ["--dtype", "'fp64'", "fp32, tf32, bf16, fp16"]),
        (["--dtype", "fp16"], ["--dtype", "fp16", "--device cuda", "fp32", "bf16"]),
        (["--size", "8", "64"], ["--height", "8", "32"]),
        (["--repeats", "0"], ["--repeats", "0", "1"]),
        (["--only", "deploy"], ["--only", "'deploy'", "'deployed'"]),
    ],
)
def test_wrong_options_are_rejected(arguments, words, capsys):
    assert main([*arguments]) == 1
    assert_mentions(capsys.readouterr().err, *words)


def test_list_names_the_rows(capsys):
    assert main(["--train", "--only", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == list(rows_for(Settings(train=True)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_cuda_is_reported():
    with raises(ArgumentError, "--device cuda", "GPU"):
        Settings(device="cuda").check()


def test_dry_run_of_the_gpu_tables(tmp_path, monkeypatch):
    planned = list(gpu.tables())
    for settings, names in planned:
        assert set(names) <= set(rows_for(settings))
    monkeypatch.setattr(gpu, "tables", lambda: planned[:2])
    file = tmp_path / "gpu.json"
    assert gpu.main(["--dry-run", "--json", str(file)]) == 0
    training, inference = json.loads(file.read_text())["tables"]
    assert (training["settings"]["train"], inference["settings"]["train"]) == (True, False)
    assert [result["name"] for result in training["results"] if result["milliseconds"]] == list(planned[0][1])
    assert [result["name"] for result in inference["results"] if result["milliseconds"]] == list(planned[1][1])

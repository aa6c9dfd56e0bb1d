"""The backbone in 8-bit integers: close features, and errors for unsupported uses."""

import copy

import pytest
import torch
from helpers import TORCH, assert_mentions, raises

from resnet_backbone import BasicBlock, ResNet
from resnet_backbone.errors import ArgumentError, ArgumentTypeError, DeployedError
from resnet_backbone.int8 import quantize_int8


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch):
    """Use one block per stage: exporting a second one, which is like it, takes most of the time."""
    monkeypatch.setattr(ResNet, "arch_settings", {18: (BasicBlock, (1, 1, 1, 1))})


NEEDS_TORCHAO = pytest.mark.skipif(TORCH < (2, 8), reason=f"torchao's quantization is for torch >= 2.8, not {TORCH}")


TWO_STAGES = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))


def make(**arguments):
    backbone = ResNet(18, **{"base_channels": 8, "zero_init_residual": False, **arguments})
    backbone.init_weights()
    with torch.no_grad():
        for name, buffer in backbone.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return backbone


@NEEDS_TORCHAO
def test_features_are_close():
    backbone = make(deep_stem=True, avg_down=True, frozen_stages=1, **TWO_STAGES).train()
    before = copy.deepcopy(backbone.state_dict())
    int8 = quantize_int8(backbone, [torch.randn(2, 3, 64, 96), torch.randn(1, 3, 96, 64)])
    assert backbone.training
    assert not backbone.deployed
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert (int8.out_channels, int8.out_strides) == (backbone.out_channels, backbone.out_strides)
    backbone.eval()
    for shape in [(2, 3, 64, 96), (1, 3, 72, 100)]:
        x = torch.randn(shape)
        levels, expected = int8(x), backbone(x)
        assert [level.shape for level in levels] == [level.shape for level in expected]
        for level, exact in zip(levels, expected):
            error = (level - exact).norm() / exact.norm()
            # Close, but not equal.
            assert 1e-3 < error < 0.1
            assert not level.requires_grad


@NEEDS_TORCHAO
def test_deployed_and_dilated_with_the_full_range_of_bits():
    backbone = make(**{**TWO_STAGES, "dilations": (1, 2), "strides": (1, 1)}).eval().switch_to_deploy()
    x = torch.randn(1, 3, 64, 64)
    for level, exact in zip(quantize_int8(backbone, [x], reduce_range=False)(x), backbone(x)):
        assert (level - exact).norm() < 0.1 * exact.norm()


@NEEDS_TORCHAO
def test_unsupported_calls_are_rejected():
    one_stage = dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    int8 = quantize_int8(make(**one_stage), iter([torch.randn(1, 3, 64, 64)]))
    with raises(DeployedError, "train"):
        int8.train()
    assert not int8.eval().training
    with raises(ArgumentError, "x", "(N, 3, H, W)", "(1, 4, 64, 64)"):
        int8(torch.rand(1, 4, 64, 64))
    with raises(ArgumentTypeError, "x", "float32", "torch.float64"):
        int8(torch.rand(1, 3, 64, 64).double())
    with raises(ArgumentError, "batches", "one"):
        quantize_int8(make(**one_stage), [])
    with raises(ArgumentError, "batch", "(N, 3, H, W)", "(3, 64, 64)"):
        quantize_int8(make(**one_stage), [torch.rand(3, 64, 64)])


@pytest.mark.parametrize(
    ("backbone", "exception", "words"),
    [
        (torch.nn.Conv2d(3, 8, 3), ArgumentTypeError, ["ResNet", "Conv2d"]),
        (
            ResNet(18, base_channels=4, conv_cfg=dict(type="Conv1d"), norm_cfg=dict(type="BN1d")),
            ArgumentError,
            ["Conv2d", "1"],
        ),
        (ResNet(18, base_channels=4).to("meta"), ArgumentError, ["CPU", "'meta'"]),
    ],
    ids=["foreign", "signals", "device"],
)
def test_rejects_other_backbones(backbone, exception, words):
    with raises(exception, "backbone", *words):
        quantize_int8(backbone, [torch.rand(1, 3, 64, 64)])


def test_missing_packages_are_named(run_python):
    printed = run_python(
        "import torch, resnet_backbone.int8 as int8\n"
        "try:\n"
        "    int8.quantize_int8(int8.ResNet(18, base_channels=4), [torch.rand(1, 3, 64, 64)])\n"
        "except ImportError as error:\n"
        "    print('refused:', error)\n",
        packages={"torchao/__init__.py": "raise RuntimeError('built for another torch')\n"},
    )
    assert_mentions(printed, "refused", "quantize_int8", "built for another torch", "pip install torchao")

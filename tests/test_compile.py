"""The backbone compiles as one graph, and torch.fx can trace it."""

import copy

import pytest
import torch
from helpers import TORCH, assert_same_bits, gradients, loss_of, shake
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval

from resnet_backbone import BasicBlock, ResNet

# Eight channels: torch 2.15's CPU kernel for the weight gradient of a strided 1x1 convolution in channels_last, the
# layout that inductor chooses, is wrong for fewer (torch.ops.aten.convolution_backward alone shows it).
SMALL = dict(base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))

CHECKPOINTED = pytest.param(
    True,
    marks=pytest.mark.skipif(
        TORCH < (2, 2),
        reason="torch 2.1's compiler refuses a checkpointed batch norm in train mode: its statistics change twice",
    ),
)


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch.compiler.reset()


def compare(backend, depth, training, with_cp, **arguments):
    backbone = shake(ResNet(depth, with_cp=with_cp, **SMALL, **arguments)).train(training)
    compiled = torch.compile(backbone, fullgraph=True, backend=backend)
    x = torch.rand(2, 3, 32, 32)
    if not training:
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), backbone(x))
        return
    results = []
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    for model in (compiled, backbone):
        backbone.load_state_dict(state)
        backbone.zero_grad()
        levels = model(x)
        loss_of(levels).backward()
        results.append([*levels, *(g for g in gradients(backbone) if g is not None)])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("with_cp", [False, True])
def test_basic_blocks_compile_without_graph_breaks(training, with_cp):
    compare("aot_eager", 18, training, with_cp)


@pytest.mark.parametrize("with_cp", [False, CHECKPOINTED])
def test_bottlenecks_compile_without_graph_breaks(with_cp):
    compare("aot_eager", 50, True, with_cp, norm_eval=False, frozen_stages=1)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(depth=18),
        dict(depth=50, frozen_stages=1, out_indices=(1, 2)),
        dict(
            depth=50,
            deep_stem=True,
            avg_down=True,
            channels_last=True,
            plugins=[dict(cfg=dict(type="ContextBlock", ratio=0.5), position="after_conv3")],
        ),
    ],
    ids=["ResNet-18", "frozen", "deep stem and plugins"],
)
def test_symbolic_trace_is_bit_identical(arguments):
    backbone = shake(ResNet(**arguments, base_channels=4)).eval()
    x = torch.rand(2, 3, 64, 64)
    assert_same_bits(torch.fx.symbolic_trace(backbone)(x), backbone(x))


def test_efficient_conv_bn_eval_of_the_runner():
    """This option of mmengine's Runner traces the backbone and folds norms in eval mode into convolutions."""
    exact = shake(ResNet(50, base_channels=4)).train()
    model = torch.nn.ModuleDict(dict(backbone=copy.deepcopy(exact)))
    turn_on_efficient_conv_bn_eval(model, "backbone")
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model["backbone"](x), exact(x), rtol=1e-4, atol=1e-4)
    assert not torch.equal(model["backbone"](x)[-1], exact(x)[-1]), "nothing was folded"


def test_compiles_with_inductor(monkeypatch):
    # One block per stage: generating code takes long.
    monkeypatch.setattr(ResNet, "arch_settings", {18: (BasicBlock, (1, 1, 1, 1))})
    compare("inductor", 18, True, with_cp=False)

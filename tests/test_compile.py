"""torch.compile takes the whole backbone as one graph."""

import pytest
import torch
from helpers import gradients, loss_of, shake

from resnet_backbone import ResNet

# Eight channels: torch 2.15's CPU kernel for the weight gradient of a strided 1x1 convolution in channels_last, the
# layout that inductor chooses, is wrong for fewer (torch.ops.aten.convolution_backward alone shows it).
SMALL = dict(base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
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


def test_compiles_with_inductor():
    compare("inductor", 18, True, with_cp=False)

"""Stages after the last of ``out_indices``: DistributedDataParallel does not wait for their gradients."""

import copy

import pytest
import torch
import torch.distributed as dist
from helpers import assert_same_bits, gradients, loss_of, shake
from torch.nn.parallel import DistributedDataParallel

from resnet_backbone import MultiScaleResNet1d, ResNet

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")


def small(**arguments):
    torch.manual_seed(0)
    arguments = (
        dict(out_indices=(0, 1), base_channels=8, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1)) | arguments
    )
    return shake(ResNet(18, **arguments)).train()


def two_steps(model, *inputs):
    for _ in range(2):  # the second step fails where the first has left a parameter unaccounted for
        model.zero_grad()
        loss_of(model(*inputs)).backward()


ARGUMENTS = [
    dict(),
    dict(frozen_stages=1, with_cp=True),
    dict(fold_norm=True, channels_last=True),
    dict(out_indices=(0,), norm_eval=False),
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_results_are_bit_identical_without_a_process_group(arguments, request):
    x = torch.rand(2, 3, 32, 32)
    alone, wrapped = small(**arguments), small(**arguments)
    two_steps(alone, x)
    assert alone.layer3[0].conv1.weight.grad is None
    request.getfixturevalue("process_group")

    model = DistributedDataParallel(wrapped)
    two_steps(model, x)
    assert_same_bits(wrapped.state_dict().values(), alone.state_dict().values())
    assert [p.requires_grad for p in wrapped.parameters()] == [p.requires_grad for p in alone.parameters()]
    for (name, parameter), expected in zip(wrapped.named_parameters(), gradients(alone)):
        if expected is None:  # frozen, or set to zero by DistributedDataParallel
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            assert torch.equal(parameter.grad, expected), name


def test_unused_gradients_stay_none_without_a_wrapper(process_group):
    backbone = small()
    levels = backbone(torch.rand(2, 3, 32, 32))
    loss_of(levels).backward()
    assert all((p.grad is None) == name.startswith("layer3") for name, p in backbone.named_parameters())


def test_unused_gradients_stay_none_with_find_unused_parameters(process_group):
    backbone = small()
    two_steps(DistributedDataParallel(backbone, find_unused_parameters=True), torch.rand(2, 3, 32, 32))
    assert all((p.grad is None) == name.startswith("layer3") for name, p in backbone.named_parameters())


def test_stage_used_elsewhere_keeps_its_gradients(request):
    class Detector(torch.nn.Module):
        """Runs the last stage in the head, as C4 detectors do."""

        def __init__(self):
            super().__init__()
            self.backbone = small(out_indices=(1,))

        def forward(self, x):
            return [self.backbone.layer3(level) for level in self.backbone(x)]

    x = torch.rand(2, 3, 32, 32)
    alone, wrapped = Detector(), Detector()
    two_steps(alone, x)
    request.getfixturevalue("process_group")
    two_steps(DistributedDataParallel(wrapped), x)
    assert all(gradient is not None for gradient in gradients(alone))
    assert_same_bits(gradients(wrapped), gradients(alone))


@pytest.mark.parametrize("lengths", [None, [64, 40]])
def test_branches_of_several_scales(lengths, request):
    backbone = MultiScaleResNet1d(base_channels=4, out_indices=(0, 1), kernel_sizes=(3, 5)).train()
    alone = copy.deepcopy(backbone)
    x = torch.rand(2, 1, 64)
    two_steps(alone, x, lengths)
    assert alone.layer3.branches[0][0].conv1.weight.grad is None
    request.getfixturevalue("process_group")
    two_steps(DistributedDataParallel(backbone), x, lengths)
    used = [(p.grad, q.grad) for p, q in zip(backbone.parameters(), alone.parameters()) if q.grad is not None]
    assert_same_bits(*zip(*used))


def test_graph_is_unchanged_without_unused_parameters_or_gradients(process_group):
    def nodes(level):
        return level.grad_fn.name()

    assert nodes(small()(torch.rand(1, 3, 32, 32))[-1]) == "_NoGradientBackward"
    assert nodes(small(out_indices=(0, 2))(torch.rand(1, 3, 32, 32))[-1]) == "ReluBackward0"
    with torch.no_grad():
        assert small()(torch.rand(1, 3, 32, 32))[-1].grad_fn is None
    fixed = small()
    fixed.layer3.requires_grad_(False)
    assert nodes(fixed(torch.rand(1, 3, 32, 32))[-1]) == "ReluBackward0"


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 2),
    reason="torch 2.1 compiles no module within DistributedDataParallel as one graph, unused stages or not",
)
def test_compiled_as_one_graph(request):
    x = torch.rand(2, 3, 32, 32)
    alone, wrapped = small(frozen_stages=1, fold_norm=True), small(frozen_stages=1, fold_norm=True)
    two_steps(alone, x)
    request.getfixturevalue("process_group")
    torch.compiler.reset()
    two_steps(DistributedDataParallel(torch.compile(wrapped, fullgraph=True, backend="aot_eager")), x)
    for parameter, expected in zip(wrapped.parameters(), gradients(alone)):
        if expected is not None:
            torch.testing.assert_close(parameter.grad, expected)

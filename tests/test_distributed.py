"""Gradients averaged over two processes match those of one process for the whole batch."""

import children
import pytest
import runner_training
import torch
import torch.distributed as dist
from helpers import assert_same_bits, loss_of, raises, shake
from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from resnet_backbone import ResNet

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo")


def build(**arguments):
    torch.manual_seed(0)
    return shake(ResNet(18, base_channels=8, frozen_stages=1, **arguments)).double().train()


def images():
    return torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients_of(backbone, x):
    loss_of(backbone(x)).backward()
    return [parameter.grad for parameter in backbone.parameters() if parameter.requires_grad]


DDP = {"folded": dict(fold_norm=True), "channels_last": dict(fold_norm=True, channels_last=True, with_cp=True)}


def train_in_two(rank, folder):
    """Save what one of two processes computes for each test of this module."""
    for name, arguments in DDP.items():
        backbone = DistributedDataParallel(build(**arguments))
        torch.save(gradients_of(backbone, images()[rank::2]), folder / f"{name} {rank}.pt")
    for case in runner_training.CASES:
        torch.save(runner_training.train(case, folder, "pytorch"), folder / f"{case} {rank}.pt")


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    """The folder with the results of two processes."""
    folder = tmp_path_factory.mktemp("two")
    children.run_two(train_in_two, folder)
    return folder


@pytest.mark.parametrize("name", DDP)
def test_gradients_of_two_processes_match_one(name, trained_by_two):
    # The losses are means, and so is what DistributedDataParallel makes of two gradients.
    expected = gradients_of(build(), images())
    for rank in range(2):
        found = torch.load(trained_by_two / f"{name} {rank}.pt", weights_only=True)
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert (one - other).norm() <= 1e-10 * other.norm()


@pytest.mark.parametrize("case", runner_training.CASES)
def test_runner_in_two_processes_matches_one(case, trained_by_two, tmp_path):
    expected = runner_training.train(case, tmp_path)
    found, other = (torch.load(trained_by_two / f"{case} {rank}.pt", weights_only=True) for rank in range(2))
    assert_same_bits(other.values(), found.values())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).double().norm() <= 1e-10 * value.double().norm(), name


def synchronized(backbone, how):
    if how == "torch":
        return nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    # What the Runner calls for sync_bn='torch'.
    return convert_sync_batchnorm(backbone, "torch")


@pytest.mark.parametrize("how", ["torch", "mmengine"])
@pytest.mark.parametrize("arguments", [dict(), dict(fold_norm=True, deep_stem=True, avg_down=True, with_cp=True)])
def test_sync_batch_norm_is_bit_identical_in_eval_mode(how, arguments):
    expected = build(**arguments)
    backbone = synchronized(build(**arguments), how).train()
    norms = [layer for layer in backbone.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert {type(layer) for layer in norms} == {nn.SyncBatchNorm}
    assert not any(layer.training for layer in norms)  # norm_eval still applies
    assert backbone.state_dict().keys() == expected.state_dict().keys()
    assert_same_bits(backbone.state_dict().values(), expected.state_dict().values())
    assert [p.requires_grad for p in backbone.parameters()] == [p.requires_grad for p in expected.parameters()]
    assert_same_bits(gradients_of(backbone, images()), gradients_of(expected, images()))
    assert_same_bits(backbone.eval()(images()), expected.eval()(images()))


def test_sync_batch_norm_does_not_train_on_a_cpu(process_group):
    backbone = build(norm_cfg=dict(type="SyncBN", requires_grad=True), norm_eval=False)
    with raises(ValueError, "GPU"):
        backbone(images())
    with raises(ValueError, "GPU"):
        DistributedDataParallel(backbone)


def test_sync_batch_norm_is_reverted_in_one_process():
    backbone = build(norm_cfg=dict(type="SyncBN", requires_grad=True), norm_eval=False)
    assert backbone.layer2[0].bn1.training
    assert not backbone.layer1[0].bn1.training
    ordinary = revert_sync_batchnorm(backbone).train()
    assert not any(isinstance(layer, nn.SyncBatchNorm) for layer in ordinary.modules())
    expected = build(norm_eval=False)
    assert ordinary.state_dict().keys() == expected.state_dict().keys()
    assert_same_bits(gradients_of(ordinary, images()), gradients_of(expected, images()))
    assert_same_bits(ordinary.state_dict().values(), expected.state_dict().values())

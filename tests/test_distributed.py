"""fold_norm in two processes: gradients that DistributedDataParallel averages are those of the whole batch."""

import pytest
import torch
import torch.distributed as dist
from helpers import loss_of, shake
from torch import multiprocessing
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


def train_on_half(rank, folder, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    backbone = DistributedDataParallel(build(**arguments))
    torch.save(gradients_of(backbone, images()[rank::2]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("arguments", [dict(fold_norm=True), dict(fold_norm=True, channels_last=True, with_cp=True)])
def test_gradients_of_two_processes_are_those_of_one(arguments, tmp_path):
    multiprocessing.spawn(train_on_half, (tmp_path, arguments), nprocs=2)
    # The losses are means, and so is what DistributedDataParallel makes of two gradients.
    expected = gradients_of(build(), images())
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert (one - other).norm() <= 1e-10 * other.norm()

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def hub_dir(tmp_path, monkeypatch):
    """A separate cache for each test."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def shake(model, seed=0):
    """Give every weight and statistic different values, so that layers cannot be confused."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.3, 0.3, generator=generator)
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.uniform_(-0.3, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        elif isinstance(module, nn.modules.conv._ConvNd):
            bound = (6 / weight[0].numel()) ** 0.5
            weight.data.uniform_(-bound, bound, generator=generator)
    return model.eval()


def relative_difference(ours, theirs):
    """The largest difference over all levels, relative to the largest value of the level."""
    assert len(ours) == len(theirs)
    with torch.no_grad():
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs))


@pytest.fixture(name="shake")
def _shake():
    return shake


@pytest.fixture(name="relative_difference")
def _relative_difference():
    return relative_difference


@pytest.fixture
def image():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def torchvision_levels(model, image):
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
        levels = []
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(model, name)(x)
            levels.append(x)
    return levels


@pytest.fixture(name="torchvision_levels")
def _torchvision_levels():
    return torchvision_levels


@pytest.fixture
def snapshot():
    """A function that tells whether the module's state has changed."""

    def take(module):
        before = {name: value.clone() for name, value in module.state_dict().items()}
        return lambda: all(torch.equal(before[name], value) for name, value in module.state_dict().items())

    return take

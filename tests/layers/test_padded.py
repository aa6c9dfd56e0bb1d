"""Signals of unequal length: batch norms in train mode use only valid positions."""

import copy

import pytest
import torch
from helpers import raises, shake
from torch import nn

from resnet_backbone.layers.padded import Padded

LENGTHS = torch.tensor([5, 9, 2])


def padded(dtype=torch.float64, count=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 4, 11, generator=generator, dtype=dtype) * 2 + 30
    return Padded(x.requires_grad_(), LENGTHS[:count])


def positions(features):
    """All valid positions of the signals, concatenated: ``(1, C, sum of the lengths)``."""
    return torch.cat([signal[:, :length] for signal, length in zip(features, LENGTHS.tolist())], dim=1)[None]


@pytest.mark.parametrize("arguments", [
    {}, dict(momentum=None), dict(momentum=0.3, eps=0.1), dict(affine=False), dict(track_running_stats=False),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_uses_only_valid_positions(arguments, training):
    ours = nn.BatchNorm1d(4, **arguments).double()
    if ours.running_mean is not None:
        shake(ours)
    ours.train(training)
    theirs = copy.deepcopy(ours)
    results = []
    for _ in range(2):  # of which momentum=None takes the average
        x, y = padded(), padded()
        together = x.without_padding().apply(ours).features
        alone = theirs(positions(y.features))
        assert not together[0, :, 5:].any()
        weights = torch.linspace(-1, 2, alone.numel(), dtype=torch.float64).view_as(alone)
        for out in (positions(together), alone):
            (out.square() * weights).sum().backward()
        results.append([positions(together), positions(x.features.grad), *ours.buffers()])
        torch.testing.assert_close(results[-1], [alone, positions(y.features.grad), *theirs.buffers()])
        assert x.features.grad.abs().max() > 1e-3
        assert not x.features.grad[0, :, 5:].any()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_half_precision_is_normalized_in_single_precision():
    norm, x = shake(nn.BatchNorm1d(4)), padded(torch.bfloat16)
    with torch.no_grad():
        out = x.without_padding().apply(norm).features
        expected = copy.deepcopy(norm)(positions(x.features.float()))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(positions(out), expected.bfloat16())


def test_other_layers_see_only_valid_positions():
    seen = []

    class Own(nn.BatchNorm1d):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    hooked = nn.BatchNorm1d(4).double()
    hooked.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    plain = padded().without_padding().apply(nn.BatchNorm1d(4).double())
    for norm in (Own(4).double(), hooked):
        out = padded().without_padding().apply(norm)
        torch.testing.assert_close(out.features, plain.features)
        torch.testing.assert_close(seen.pop(), positions(padded().features)[0].T)


def test_single_position_is_rejected_in_train_mode():
    with raises(ValueError, "1 value per channel"):
        padded(count=1)._replace(lengths=torch.tensor([1])).without_padding().apply(nn.BatchNorm1d(4).double())

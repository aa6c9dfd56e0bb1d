"""MultiScaleResNet1d on signals of unequal length: results match those of each signal alone."""

import copy

import pytest
import torch
from helpers import assert_same_bits, gradients, raises, shake
from torch.nn import functional as F

from resnet_backbone import MultiScaleResNet1d
from resnet_backbone.errors import ArgumentError

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def small(depth=(1, 1, 1), **arguments):
    return MultiScaleResNet1d(depth, **dict(dict(in_channels=2, base_channels=4), **arguments))


UNEQUAL = {
    "default": {},
    "strided": dict(stem_stride=4, strides=(2, 2, 2), num_classes=3),
    "odd strides, long kernels": dict(strides=(1, 3, 2), kernel_sizes=(3, 9, 39), num_classes=3, fusion="sum"),
    "bottlenecks, D": dict(depth=50, deep_stem=True, avg_down=True, stem_stride=2, strides=(1, 2, 3)),
    "dilated": dict(depth=(2, 1), strides=(1, 2), dilations=(1, 2)),
    "reference": dict(padding="reference", num_classes=6),
}


def unequal(model, count=4, seed=0):
    """A batch of signals of unequal length, including the shortest allowed one, padded with NaN."""
    shortest = model.minimum_length
    lengths = torch.tensor([shortest, shortest + 31, shortest + 46, shortest + 17][:count])
    x = torch.randn(count, 2, shortest + 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.masked_fill(torch.arange(x.shape[-1]) >= lengths[:, None, None], torch.nan), lengths


def levels_of(out):
    return [out] if isinstance(out, torch.Tensor) else list(out)


@pytest.mark.parametrize("state", ["plain", "folded", "deployed"])
@pytest.mark.parametrize("arguments", UNEQUAL.values(), ids=UNEQUAL)
@torch.no_grad()
def test_unequal_lengths_match_single_signals(arguments, state):
    model = shake(small(**arguments, fold_norm=state == "folded")).double().eval()
    if state == "deployed":
        model.switch_to_deploy()
    x, lengths = unequal(model)
    together = levels_of(model(x, lengths))
    for index, length in enumerate(lengths.tolist()):
        alone = levels_of(model(x[index : index + 1, :, :length]))
        for ours, theirs in zip(together, alone, strict=True):
            assert theirs.abs().max() > 1e-3
            torch.testing.assert_close(ours[index : index + 1, ..., : theirs.shape[-1]], theirs)
            if ours.dim() == 3:
                assert not ours[index, :, theirs.shape[-1] :].any()
    assert_same_bits(levels_of(model(x, lengths.tolist())), together)


@pytest.mark.parametrize("with_cp", [False, True])
def test_gradients_of_unequal_lengths_match_single_signals(with_cp):
    model = shake(small(num_classes=3, norm_eval=True, with_cp=with_cp)).double().train()
    x, lengths = unequal(model)
    model(x, lengths).square().sum().backward()
    together = [gradient.clone() for gradient in gradients(model)]
    model.zero_grad()
    for index, length in enumerate(lengths.tolist()):
        model(x[index : index + 1, :, :length]).square().sum().backward()
    assert all(gradient.abs().max() > 0 for gradient in together)
    torch.testing.assert_close(together, gradients(model))


def test_batch_statistics_exclude_the_padding():
    """Padding changes neither logits nor running statistics; lengths without padding change no bit."""
    model = shake(small(num_classes=3)).double().train()
    x, lengths = unequal(model)
    results = []
    for padding in (0, 40):
        twin = copy.deepcopy(model)
        results.append([twin(F.pad(x, (0, padding)), lengths), *twin.buffers()])
    torch.testing.assert_close(results[0], results[1])
    whole = torch.randn(3, 2, 40, dtype=torch.float64)
    results = []
    for of_whole in (None, [40, 40, 40]):
        twin = copy.deepcopy(model)
        logits = twin(whole, of_whole)
        logits.square().sum().backward()
        results.append([logits, *twin.buffers(), *gradients(twin)])
    assert all(gradient.abs().max() > 0 for gradient in gradients(twin))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([10, 20, 30], ["integer", "2", "(3,)"]),
        ([10.0, 20.0], ["integer", "2", "torch.float32"]),
        ([3, 20], ["4", "30", "[3, 20]"]),
        ([20, 31], ["4", "30", "[20, 31]"]),
    ],
)
def test_wrong_lengths_are_rejected(lengths, words):
    with raises(ArgumentError, "lengths", *words):
        small(num_classes=2)(torch.rand(2, 2, 30), lengths)


def test_lengths_need_batch_norms_and_no_plugins():
    plugins = [dict(cfg=dict(type="SELayer", conv_cfg=dict(type="Conv1d"), ratio=2), position="after_conv2")]
    for arguments in (dict(norm_cfg=dict(type="GN", num_groups=2)), dict(plugins=plugins)):
        ((name, value),) = arguments.items()
        with raises(ArgumentError, "lengths", "None", f"{name}={value!r}"):
            small(**arguments)(torch.rand(2, 2, 30), [20, 30])


@pytest.mark.skipif(TORCH < (2, 8), reason="the exporter of torch 2.8 and newer")
def test_unequal_lengths_export():
    model = shake(small((1, 1), kernel_sizes=(3, 5), strides=(2, 2), num_classes=3)).double().eval()
    x, lengths = unequal(model)
    batch, samples = torch.export.Dim("batch", min=2, max=8), torch.export.Dim("samples", min=13, max=128)
    example = (F.pad(x, (0, 2)), lengths)
    program = torch.export.export(model, example, dynamic_shapes=({0: batch, 2: 4 * samples}, {0: batch}))
    with torch.no_grad():
        others, lengths = unequal(model, count=3, seed=1)
        others = F.pad(others, (0, 10))
        torch.testing.assert_close(program.module()(others, lengths), model(others, lengths))


@torch.no_grad()
def test_compiled_deployed_network_accepts_lengths():
    model = shake(small((1,), kernel_sizes=(3,), num_classes=3)).eval()
    x, lengths = unequal(model.double())
    expected = model(x, lengths)
    model.switch_to_deploy().compile(backend="eager")
    torch.testing.assert_close(model(x, lengths), expected)

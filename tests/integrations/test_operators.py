"""Operators that mmcv implements only for GPUs, compared with their definitions, and missing operators."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import raises
from torch.nn import functional as F

pytest.importorskip("torchvision")

from resnet_backbone.integrations.mmdet.extension import make_extension

ext = make_extension()


def numeric_gradient(function, inputs, grad_output):
    """Gradients of ``function`` by central differences, in double precision."""
    gradients = []
    for tensor in inputs:
        gradient = torch.zeros_like(tensor)
        for index in itertools.product(*map(range, tensor.shape)):
            shifted = []
            for sign in (1, -1):
                moved = tensor.clone()
                moved[index] += sign * 1e-5
                shifted.append(function(*(moved if other is tensor else other for other in inputs)))
            gradient[index] = ((shifted[0] - shifted[1]) * grad_output).sum() / 2e-5
        gradients.append(gradient)
    return gradients


@pytest.mark.parametrize("with_weight", [False, True])
def test_sigmoid_focal_loss(with_weight):
    logits = torch.randn(6, 4, dtype=torch.float64) * 3
    target = torch.tensor([0, 1, 2, 3, 4, 0])
    weight = torch.rand(4, dtype=torch.float64) if with_weight else logits.new_empty(0)

    def loss(logits):
        output = torch.zeros_like(logits)
        ext.sigmoid_focal_loss_forward(logits, target, weight, output, gamma=2.0, alpha=0.25)
        return output

    one_hot = F.one_hot(target, 5)[:, :4].double()
    p = logits.sigmoid()
    p_true = torch.where(one_hot.bool(), p, 1 - p)
    alpha = torch.where(one_hot.bool(), 0.25, 0.75)
    rows = torch.tensor([*range(4), -1, 0])
    scale = torch.ones(6, 1) if not with_weight else torch.cat((weight, weight.new_ones(1)))[rows][:, None]
    torch.testing.assert_close(loss(logits), -alpha * (1 - p_true) ** 2 * p_true.log() * scale)
    gradient = torch.zeros_like(logits)
    ext.sigmoid_focal_loss_backward(logits, target, weight, gradient, gamma=2.0, alpha=0.25)
    (expected,) = numeric_gradient(loss, [logits], torch.ones(6, 4, dtype=torch.float64))
    torch.testing.assert_close(gradient, expected)


def test_softmax_focal_loss():
    logits = torch.randn(5, 4, dtype=torch.float64)
    target = torch.tensor([0, 3, 2, -1, 1])
    empty = logits.new_empty(0)

    def loss(logits):
        output = logits.new_zeros(5)
        ext.softmax_focal_loss_forward(logits.softmax(1), target, empty, output, gamma=1.5, alpha=0.3)
        return output

    p = logits.softmax(1)[torch.arange(5), target.clamp(min=0)]
    torch.testing.assert_close(loss(logits), (-0.3 * (1 - p) ** 1.5 * p.log()) * (target >= 0))
    gradient = torch.zeros_like(logits)
    ext.softmax_focal_loss_backward(
        logits.softmax(1), target, empty, logits.new_zeros(5), gradient, gamma=1.5, alpha=0.3
    )
    (expected,) = numeric_gradient(loss, [logits], torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(gradient, expected)


def test_multi_scale_attention_matches_mmcv_python():
    attention = pytest.importorskip("mmcv.ops.multi_scale_deform_attn") if _has_ops() else None
    shapes = torch.tensor([[5, 4], [3, 2]])
    value = torch.randn(2, 26, 3, 4, requires_grad=True)
    locations = (torch.rand(2, 7, 3, 2, 4, 2) * 1.4 - 0.2).requires_grad_()
    weights = torch.rand(2, 7, 3, 2, 4, requires_grad=True)
    start = torch.tensor([0, 20])
    output = ext.ms_deform_attn_forward(value, shapes, start, locations, weights, im2col_step=64)
    grad = torch.randn_like(output)
    grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
    ext.ms_deform_attn_backward(value, shapes, start, locations, weights, grad, *grads, im2col_step=64)
    for mine, expected in zip(grads, torch.autograd.grad(output, (value, locations, weights), grad)):
        assert expected.any()
        torch.testing.assert_close(mine, expected)
    if attention is not None:
        theirs = attention.multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)
        torch.testing.assert_close(output, theirs)


def _has_ops() -> bool:
    try:
        import mmcv.ops  # noqa: F401
    except ImportError:
        return False
    return True


def test_carafe():
    """Each output pixel is a weighted sum of the input around the corresponding pixel."""
    groups, kernel_size, scale = 2, 3, 2
    features = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    masks = torch.randn(2, groups * 9, 6, 10, dtype=torch.float64)

    def carafe(features, masks):
        output = features.new_zeros(2, 4, 6, 10)
        scratch = [features.new_zeros(features.shape), output.clone(), masks.clone()]
        ext.carafe_forward(features, masks, *scratch, output, kernel_size, groups, scale)
        assert torch.equal(scratch[0], features)
        return output

    around = F.unfold(features, kernel_size, padding=1).view(2, groups, 2, 9, 3, 5)
    around = around.repeat_interleave(scale, dim=4).repeat_interleave(scale, dim=5)
    expected = (around * masks.view(2, groups, 1, 9, 6, 10)).sum(3).view(2, 4, 6, 10)
    torch.testing.assert_close(carafe(features, masks), expected)
    grad = torch.randn(2, 4, 6, 10, dtype=torch.float64)
    grads = [torch.zeros_like(features), torch.zeros_like(masks)]
    ext.carafe_backward(grad, features, masks, None, None, None, None, *grads, kernel_size, groups, scale)
    leaves = [features.clone().requires_grad_(), masks.clone().requires_grad_()]
    around = F.unfold(leaves[0], kernel_size, padding=1).view(2, groups, 2, 9, 3, 5)
    around = around.repeat_interleave(scale, dim=4).repeat_interleave(scale, dim=5)
    upsampled = (around * leaves[1].view(2, groups, 1, 9, 6, 10)).sum(3).view(2, 4, 6, 10)
    for mine, theirs in zip(grads, torch.autograd.grad(upsampled, leaves, grad)):
        torch.testing.assert_close(mine, theirs)


def test_masked_convolution():
    image, weight = torch.randn(1, 3, 6, 7), torch.randn(4, 3, 3, 3)
    mask = torch.rand(6, 7) > 0.5
    rows, columns = mask.nonzero().unbind(1)
    gathered = torch.zeros(27, len(rows))
    ext.masked_im2col_forward(image, rows, columns, gathered, kernel_h=3, kernel_w=3, pad_h=1, pad_w=1)
    output = torch.zeros(1, 4, 6, 7)
    ext.masked_col2im_forward(weight.flatten(1) @ gathered, rows, columns, output, height=6, width=7, channels=4)
    torch.testing.assert_close(output, F.conv2d(image, weight, padding=1) * mask)


def roi_pool_by_hand(features, rois, bins, scale):
    """mmcv's definition: a box includes its last pixel, and is scaled without rounding."""
    output = torch.zeros(len(rois), features.shape[1], *bins)
    for index, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (box[0] * scale, box[1] * scale, (box[2] + 1) * scale, (box[3] + 1) * scale)
        for row, column in itertools.product(*map(range, bins)):
            ys = [int(y1 + (y2 - y1) / bins[0] * row // 1), -int(-(y1 + (y2 - y1) / bins[0] * (row + 1)) // 1)]
            xs = [int(x1 + (x2 - x1) / bins[1] * column // 1), -int(-(x1 + (x2 - x1) / bins[1] * (column + 1)) // 1)]
            ys = [min(max(y, 0), features.shape[2]) for y in ys]
            xs = [min(max(x, 0), features.shape[3]) for x in xs]
            pixels = features[int(image), :, ys[0] : ys[1], xs[0] : xs[1]].flatten(1)
            if pixels.shape[1]:
                output[index, :, row, column] = pixels.max(1).values
    return output


def test_roi_pool():
    features = torch.randn(2, 3, 8, 9)
    rois = torch.tensor(
        [[0, 1, 2, 12, 14], [1, 0, 0, 17, 15], [0, -6, 3, 5, 30], [1, 40, 40, 50, 50], [0, 5, 5, 2, 2.0]]
    )
    output, argmax = torch.zeros(5, 3, 2, 3), torch.zeros(5, 3, 2, 3, dtype=torch.int)
    options = dict(pooled_height=2, pooled_width=3, spatial_scale=0.5)
    ext.roi_pool_forward(features, rois, output, argmax, **options)
    assert torch.equal(output[:4], roi_pool_by_hand(features, rois[:4], (2, 3), 0.5))
    assert (output[3:] == 0).all()
    assert (argmax[3:] == -1).all()
    grad, gradient = torch.randn_like(output), torch.zeros_like(features)
    ext.roi_pool_backward(grad, rois, argmax, gradient, **options)
    flat = torch.zeros(2, 3, 72)
    for index, channel, row, column in itertools.product(range(3), range(3), range(2), range(3)):
        pixel = argmax[index, channel, row, column]
        if pixel >= 0:
            flat[int(rois[index, 0]), channel, pixel] += grad[index, channel, row, column]
    torch.testing.assert_close(gradient, flat.view_as(features))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_deformable_roi_pool(sampling_ratio):
    """Without offsets it equals RoIAlign. Gradients are compared with numeric ones."""
    features = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    rois = torch.tensor([[0, 2.3, 3.1, 15.7, 17.2], [1, 5.3, 3.6, 20.1, 14.9]], dtype=torch.float64)
    options = dict(pooled_height=2, pooled_width=2, spatial_scale=0.3, sampling_ratio=sampling_ratio)

    def pool(features, offset):
        output = features.new_zeros(2, 3, 2, 2)
        ext.deform_roi_pool_forward(features, rois, offset, output, **options, gamma=0.1)
        return output

    aligned = features.new_zeros(2, 3, 2, 2)
    ext.roi_align_forward(
        features, rois, aligned, None, None, 2, 2, 0.3, sampling_ratio=sampling_ratio, pool_mode=1, aligned=True
    )
    torch.testing.assert_close(pool(features, features.new_zeros(0)), aligned)
    torch.testing.assert_close(pool(features, features.new_zeros(2, 2, 2, 2)), aligned)
    offset = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    grad = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    grads = [torch.zeros_like(features), torch.zeros_like(offset)]
    ext.deform_roi_pool_backward(grad, features, rois, offset, *grads, **options, gamma=0.1)
    for mine, expected in zip(grads, numeric_gradient(pool, [features, offset], grad)):
        assert expected.any()
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


GEOMETRY = dict(stride_h=1, stride_w=1, pad_h=1, pad_w=1, dilation_h=1, dilation_w=1, group=1, deformable_group=1)


def modulated_convolution(features, weight, offset, mask):
    """Output and gradients of mmcv's modulated deformable convolution."""
    bias, output, scratch = torch.zeros(2), torch.zeros(2, 2, 5, 4), torch.zeros(0)
    ext.modulated_deform_conv_forward(
        features, weight, bias, scratch, offset, mask, output, scratch, with_bias=False, **GEOMETRY
    )
    grads = [torch.zeros_like(tensor) for tensor in (features, weight, bias, offset, mask)]
    grad = torch.cos(output)
    ext.modulated_deform_conv_backward(
        features, weight, bias, scratch, offset, mask, scratch, *grads, grad, with_bias=False, **GEOMETRY
    )
    return output, *grads[:2], *grads[3:]


def test_modulated_convolution_with_larger_maps():
    """As mmcv does; mmdet's DyHead and GLIP depend on it. ``tests/compat`` compares it with compiled mmcv."""
    features, weight = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 3, 3)
    both = torch.randn(2, 27, 7, 6)
    offset, mask = both[:, :18], both[:, 18:].sigmoid()  # as DyHead does: the offsets are not contiguous
    read = [maps.flatten(1)[:, : maps.shape[1] * 20].reshape(2, -1, 5, 4) for maps in (offset, mask)]
    expected = modulated_convolution(features, weight, *read)
    computed = modulated_convolution(features, weight, offset, mask)
    for mine, theirs in zip(computed, expected):
        assert theirs.any()
        assert torch.equal(mine.flatten(1)[:, : theirs[0].numel()], theirs.flatten(1))
        assert not mine.flatten(1)[:, theirs[0].numel() :].any()


@pytest.mark.parametrize("small", ["offset", "mask"])
def test_modulated_convolution_rejects_smaller_maps(small):
    size = {"offset": (5, 4), "mask": (5, 4), small: (4, 4)}
    with raises(ValueError, small, "(4, 4)", "(5, 4)"):
        modulated_convolution(
            torch.randn(2, 3, 5, 4),
            torch.randn(2, 3, 3, 3),
            torch.randn(2, 18, *size["offset"]),
            torch.rand(2, 9, *size["mask"]),
        )


def test_missing_operator_is_named_when_called():
    with raises(NotImplementedError, "'psamask_forward'", "resnet-backbone-build-mmcv"):
        ext.psamask_forward(torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_on_a_cpu(dtype):
    features, rois = torch.randn(1, 2, 8, 8).to(dtype), torch.tensor([[0, 1.0, 1.0, 6.0, 6.0]]).to(dtype)
    output = torch.zeros(1, 2, 2, 2, dtype=dtype)
    single = torch.zeros(1, 2, 2, 2)
    bins = (2, 2, 1.0, 2, 1, True)
    ext.roi_align_forward(features, rois, output, None, None, *bins)
    ext.roi_align_forward(features.float(), rois.float(), single, None, None, *bins)
    assert torch.equal(output, single.to(dtype))


def test_synchronized_batch_norm_in_one_process_is_batch_norm():
    features, grad = torch.randn(3, 4, 5) * 2 + 1, torch.randn(3, 4, 5)
    weight, bias = torch.randn(4), torch.randn(4)
    mean, var, std, running_mean = torch.zeros(4, 4).unbind()
    norm, output, running_var = torch.zeros_like(features), torch.zeros_like(features), torch.ones(4)
    ext.sync_bn_forward_mean(features, mean)
    ext.sync_bn_forward_var(features, mean, var)
    statistics = (running_mean, running_var)
    ext.sync_bn_forward_output(
        features, mean, var, weight, bias, *statistics, norm, std, output, eps=1e-5, momentum=0.2, group_size=1
    )
    grads = [torch.zeros_like(weight), torch.zeros_like(bias), torch.zeros_like(features)]
    ext.sync_bn_backward_param(grad, norm, *grads[:2])
    ext.sync_bn_backward_data(grad, weight, *grads[:2], norm, std, grads[2])

    leaves = [tensor.requires_grad_() for tensor in (weight, bias, features)]
    expected_statistics = (torch.zeros(4), torch.ones(4))
    expected = F.batch_norm(features, *expected_statistics, weight, bias, training=True, momentum=0.2)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(statistics, expected_statistics)
    for mine, theirs in zip(grads, torch.autograd.grad(expected, leaves, grad)):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("aligned", [True, False])
def test_maximum_of_roi_align(aligned):
    features = torch.randn(2, 3, 9, 11)
    rois = torch.tensor([[0, 1.0, 2.0, 13.0, 15.0], [1, 4.0, 0.0, 20.0, 9.0]])
    options = dict(aligned_height=2, aligned_width=3, spatial_scale=0.5, sampling_ratio=2, aligned=aligned)
    output, rows, columns = (torch.empty(2, 3, 2, 3) for _ in range(3))
    ext.roi_align_forward(features, rois, output, rows, columns, pool_mode=0, **options)
    # Twice as many bins with one sample each have the same samples, and their average is the sample.
    samples = torch.empty(2, 3, 4, 6)
    finer = options | dict(aligned_height=4, aligned_width=6, sampling_ratio=1)
    ext.roi_align_forward(features, rois, samples, rows, columns, pool_mode=1, **finer)
    torch.testing.assert_close(output, F.max_pool2d(samples, 2))
    grad = torch.rand_like(output)
    gradient, expected = torch.empty_like(features), torch.empty_like(features)
    ext.roi_align_backward(grad, rois, rows, columns, gradient, pool_mode=0, **options)
    chosen = torch.zeros_like(samples)
    positions = F.max_pool2d(samples, 2, return_indices=True)[1]
    chosen.flatten(2).scatter_(2, positions.flatten(2), grad.flatten(2))
    ext.roi_align_backward(chosen, rois, rows, columns, expected, pool_mode=1, **finer)
    torch.testing.assert_close(gradient, expected)
    assert gradient.any()

import copy
import pickle

import pytest
import torch
from helpers import assert_same_bits, gradients, shake
from torch import nn

from resnet_backbone import BasicBlock, Bottleneck

BLOCKS = [(BasicBlock, 8), (Bottleneck, 2)]
CONTEXT = dict(type="ContextBlock", ratio=0.5)


def projection(inplanes, outplanes, stride):
    return nn.Sequential(nn.Conv2d(inplanes, outplanes, 1, stride, bias=False), nn.BatchNorm2d(outplanes))


@pytest.mark.parametrize(("block", "planes"), BLOCKS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("style", ["pytorch", "caffe"])
def test_shape(block, planes, stride, dilation, style):
    downsample = projection(8, 8, stride) if stride > 1 else None
    out = block(8, planes, stride, dilation, downsample, style)(torch.rand(2, 8, 9, 12))
    assert out.shape == (2, 8, -(-9 // stride), -(-12 // stride))
    assert (out >= 0).all()


@pytest.mark.parametrize(("style", "strides"), [("pytorch", (1, 2)), ("caffe", (2, 1))])
def test_style_selects_the_strided_convolution(style, strides):
    block = Bottleneck(8, 2, stride=2, style=style)
    assert (block.conv1_stride, block.conv2_stride) == strides
    assert (block.conv1.stride[0], block.conv2.stride[0]) == strides


def test_basic_block_matches_the_paper():
    block = shake(BasicBlock(4, 4).eval())
    x = torch.randn(1, 4, 6, 6)
    residual = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    assert_same_bits([block(x)], [torch.relu(residual + x)])


def test_bottleneck_matches_the_paper():
    block = shake(Bottleneck(4, 2, downsample=projection(4, 8, 1)).eval())
    x = torch.randn(1, 4, 6, 6)
    residual = torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))))
    residual = block.bn3(block.conv3(residual))
    assert_same_bits([block(x)], [torch.relu(residual + block.downsample(x))])


def test_input_is_not_modified():
    x = torch.randn(1, 4, 6, 6)
    before = x.clone()
    BasicBlock(4, 4)(x)
    Bottleneck(4, 1)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("block", "planes"), BLOCKS)
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_is_bit_identical(block, planes, requires_grad, training):
    plain = shake(block(8, planes)).train(training)
    checkpointed = copy.deepcopy(plain)
    checkpointed.with_cp = True
    outs, xs = [], []
    for module in (plain, checkpointed):
        x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_(requires_grad)
        # The input also has a graph, which the block must not break.
        out = module(x * 2)
        out.square().sum().backward()
        outs.append(out)
        xs.append(x)
    assert_same_bits(outs[1:], outs[:1])
    assert_same_bits([xs[1].grad], [xs[0].grad])
    assert_same_bits(gradients(checkpointed), gradients(plain))
    if training and requires_grad:
        # As in mmdet, computing the block again moves the running statistics again.
        with torch.no_grad():
            plain(x * 2)
    assert_same_bits(checkpointed.buffers(), plain.buffers())


def saved_bytes(module, x):
    """Bytes of the tensors that autograd saves for the backward pass, each storage counted once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = module(x)
    del out
    parameters = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    return sum(size for pointer, size in kept.items() if pointer not in parameters)


@pytest.mark.parametrize(("block", "planes"), BLOCKS)
def test_checkpointing_saves_memory(block, planes):
    module = block(8, planes)
    x = torch.randn(1, 8, 32, 32, requires_grad=True)
    plain = saved_bytes(module, x)
    module.with_cp = True
    assert saved_bytes(module, x) < plain / 2


@pytest.mark.parametrize(("block", "planes"), BLOCKS)
def test_plugins_run_at_their_positions_in_order(block, planes):
    positions = block.plugin_positions
    plugins = [dict(cfg=dict(CONTEXT, postfix=f"_{number}{p}"), position=p) for p in positions for number in (1, 2)]
    before = copy.deepcopy(plugins)
    module = block(8, planes, plugins=plugins)
    assert plugins == before
    order = []
    for name, child in module.named_children():
        if name.startswith("context_block"):
            child.register_forward_hook(lambda *_, name=name: order.append(name))
    module(torch.rand(1, 8, 6, 6))
    assert order == [f"context_block_{number}{p}" for p in positions for number in (1, 2)]
    for position in positions:
        names = getattr(module, f"{position}_plugin_names")
        assert names == [f"context_block_1{position}", f"context_block_2{position}"]
        norm = getattr(module, f"norm{position[-1]}")
        assert all(getattr(module, name).in_channels == norm.num_features for name in names)


def test_plugin_changes_the_output():
    plugins = [dict(cfg=dict(type="ConvModule", kernel_size=1, out_channels=8), position="after_conv1")]
    block = shake(BasicBlock(8, 8, plugins=plugins).eval())
    (name,) = block.after_conv1_plugin_names
    x = torch.rand(1, 8, 6, 6)
    out = getattr(block, name)(torch.relu(block.bn1(block.conv1(x))))
    assert_same_bits([block(x)], [torch.relu(block.bn2(block.conv2(out)) + x)])


@pytest.mark.parametrize(("block", "planes"), BLOCKS)
def test_pickle_and_deepcopy(block, planes):
    module = shake(block(8, planes)).eval()
    x = torch.rand(1, 8, 6, 6)
    for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
        assert_same_bits([twin(x)], [module(x)])


def test_expansion():
    assert (BasicBlock.expansion, Bottleneck.expansion) == (1, 4)

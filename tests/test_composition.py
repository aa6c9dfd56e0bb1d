"""PyTorch's features work with the backbones, folded or not, checkpointed or not."""

import copy
import functools
import importlib
import pickle
import sys

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.distributed as dist
from helpers import TORCH, assert_same_bits, gradients, loss_of, raises, shake
from mmengine.model import revert_sync_batchnorm
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from mmengine.optim import build_optim_wrapper
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.checkpoint import checkpoint

from resnet_backbone import RegNet, ResNet, ResNetV1c, ResNetV1d, ResNeXt, build_backbone, with_fpn
from resnet_backbone.errors import ArgumentTypeError, DeployedError
from resnet_backbone.layers.deform import ModulatedDeformConv2dPack

SMALL = dict(base_channels=8, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
WAYS = {
    "exact": dict(),
    "folded": dict(fold_norm=True),
    "checkpointed": dict(with_cp=True),
    "folded, frozen": dict(fold_norm=True, frozen_stages=1),
    "folded, checkpointed": dict(fold_norm=True, with_cp=True),
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
tracing = pytest.importorskip("torchvision.models.feature_extraction")


def build(depth=18, cls=ResNet, **arguments):
    torch.manual_seed(0)
    return shake(cls(depth, **SMALL | arguments)).train()


def images(seed=1, **options):
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed), **options)


def assert_near(found, expected, tolerance=1e-4):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected):
        assert (one is None) == (other is None)
        if other is not None:
            assert (one - other).norm() <= tolerance * other.norm()


def computed(backbone, x):
    """Features and gradients."""
    backbone.zero_grad()
    levels = backbone(x)
    loss_of(levels).backward()
    return [*(level.detach() for level in levels), *gradients(backbone)]


class Wrapper(nn.Module):
    """Wraps a layer without its attributes, as adapters do."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x):
        return self.base_layer(x)


@each_way
@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_global_hooks_see_every_layer(way, register):
    backbone, seen = build(**way), set()
    expected = computed(backbone, images())
    handle = register(lambda module, *_: seen.add(module))
    try:
        found = computed(backbone, images())
    finally:
        handle.remove()
    assert_near(found, expected)
    for name, module in backbone.named_modules():
        if isinstance(module, (nn.Conv2d, _BatchNorm)):
            assert module in seen, name


@pytest.mark.parametrize("layer", ["conv1", "bn1"])
@pytest.mark.parametrize("on", ["instance", "class"])
def test_replaced_forward_is_called(layer, on, monkeypatch):
    backbones = build(), build(fold_norm=True)
    results = []
    for backbone in backbones:
        owner = getattr(backbone.layer1[0], layer)
        owner = type(owner) if on == "class" else owner
        with monkeypatch.context() as patch:
            forward = owner.forward
            patch.setattr(owner, "forward", lambda *args, forward=forward: forward(*args) * 2)
            results.append([*backbone(images()), *backbone.eval()(images())])
    assert_near(*results)
    assert not torch.allclose(results[0][0], build()(images())[0])


@pytest.mark.parametrize("way", [*WAYS.values(), dict(channels_last=True)], ids=[*WAYS, "channels_last"])
def test_per_sample_gradients(way):
    backbone = build(**way)
    parameters = {name: parameter.detach() for name, parameter in backbone.named_parameters()}

    def loss(parameters, x):
        return loss_of(torch.func.functional_call(backbone, parameters, x[None]))

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images())
    exact = build()
    for index in range(2):
        exact.zero_grad()
        loss_of(exact(images()[index : index + 1])).backward()
        for name, parameter in exact.named_parameters():
            assert_near([found[name][index]], [parameter.grad], 1e-3)


@each_way
def test_forward_mode_differentiation(way):
    if "with_cp" in way and TORCH < (2, 2):
        pytest.skip("the checkpoint of torch 2.1 knows no forward mode")
    tangents = []
    for backbone in (build(**way).double(), build().double()):
        with forward_ad.dual_level():
            x = forward_ad.make_dual(images().double(), images(2).double())
            tangents.append([forward_ad.unpack_dual(level).tangent for level in backbone(x)])
    assert_near(*tangents, 1e-10)
    assert tangents[0][0].any()


def test_backward_twice():
    backbone = build(fold_norm=True)
    weights = list(backbone.parameters())
    loss = loss_of(backbone(images()))
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    copies = [grad.clone() for grad in first]
    assert_same_bits(torch.autograd.grad(loss, weights), copies)
    assert_same_bits(first, copies)


@each_way
def test_function_modes(way):
    class Counting(torch.overrides.TorchFunctionMode):
        norms = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.norms += function is nn.functional.batch_norm
            return function(*args, **kwargs or {})

    backbone = build(**way)
    with Counting() as mode:
        found = computed(backbone, images())
    assert mode.norms >= sum(isinstance(module, _BatchNorm) for module in backbone.modules())
    assert_near(found, computed(backbone, images()))


@each_way
def test_hessian_vector_products(way):
    products = []
    for backbone in (build(**way).double(), build().double()):
        weights = [p for p in backbone.layer2.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss_of(backbone(images().double())), weights, create_graph=True)
        products.append(torch.autograd.grad(sum(grad.square().sum() for grad in grads), weights))
    assert_near(*products, 1e-8)


def test_tensor_subclasses():
    class Image(torch.Tensor):
        pass

    found = build(fold_norm=True)(images().as_subclass(Image))
    assert all(type(level) is Image for level in found)
    assert_same_bits([level.as_subclass(torch.Tensor) for level in found], build()(images()))


@each_way
def test_default_device_is_not_used(way):
    backbone, x = build(**way), images()
    torch.set_default_device("meta")
    try:
        found = backbone(x)
    finally:
        torch.set_default_device(None)
    assert_near(found, build()(x))


@each_way
def test_fake_tensors(way):
    mode = pytest.importorskip("torch._subclasses").FakeTensorMode(allow_non_fake_inputs=True)
    backbone, x = build(**way), mode.from_tensor(images())
    with mode:
        levels = backbone(x)
        loss_of(levels).backward()
    assert [tuple(level.shape) for level in levels] == [(2, 8, 8, 8), (2, 16, 4, 4)]
    assert_near(build(**way)(images()), build()(images()))


def test_transforms_leave_no_state():
    backbone = build(fold_norm=True, frozen_stages=2)
    torch.func.jvp(backbone, (images(),), (images(),))
    assert_near(backbone(images()), build()(images()))


@each_way
def test_symbolic_traces(way, tmp_path, monkeypatch):
    backbone = build(**way).eval()
    expected = build().eval()(images())
    extractor = tracing.create_feature_extractor(build(**way), ["layer1", "layer2"])
    assert_near(extractor.eval()(images()).values(), expected)
    traced = torch.fx.symbolic_trace(backbone)
    assert_same_bits(traced(images()), expected)
    assert_same_bits(pickle.loads(pickle.dumps(traced))(images()), expected)
    assert_same_bits(torch.jit.script(traced)(images()), expected)
    assert torch.jit.script(torch.fx.symbolic_trace(backbone.layer2[0]))
    traced.to_folder(tmp_path / "traced_backbone", "Traced")
    monkeypatch.syspath_prepend(tmp_path)
    assert_same_bits(importlib.import_module("traced_backbone").Traced().eval()(images()), expected)
    for name in ("traced_backbone", "traced_backbone.module"):
        del sys.modules[name]


@each_way
def test_efficient_conv_bn_eval_and_fx_quantization(way):
    quantization = pytest.importorskip("torch.ao.quantization.quantize_fx")
    model = nn.ModuleDict(dict(backbone=build(**way)))
    turn_on_efficient_conv_bn_eval(model, "backbone")
    assert_near(model["backbone"](images()), build()(images()))
    mapping = torch.ao.quantization.get_default_qconfig_mapping("fbgemm")
    observed = quantization.prepare_fx(build(**way).eval(), mapping, (images(),))
    assert_near(observed(images()), build().eval()(images()))


@pytest.mark.parametrize("way", [dict(), dict(frozen_stages=1)], ids=str)
def test_quantization_aware_training(way):
    quantization = pytest.importorskip("torch.ao.quantization.quantize_fx")
    mapping = torch.ao.quantization.get_default_qat_qconfig_mapping("fbgemm")
    model = quantization.prepare_qat_fx(build(**way, norm_eval=False), mapping, (images(),))
    loss_of(model(images())).backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_feature_extractor_of_a_deployed_backbone():
    expected = build().eval()(images())
    backbone = build().switch_to_deploy()
    extractor = tracing.create_feature_extractor(backbone, ["layer1", "layer2"])
    assert_near(extractor(images()).values(), expected)
    assert_near(backbone(images()), expected)
    backbone.conv1.requires_grad_(True)
    with pytest.raises(DeployedError):
        backbone.train()(images())


@each_way
@pytest.mark.parametrize("strict", [False, True])
def test_jit_trace_and_export(way, strict):
    backbone = build(**way, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    expected = backbone(images())
    assert_near(torch.jit.trace(backbone, images())(images()), expected)
    if TORCH >= (2, 5):
        program = torch.export.export(backbone, (images(),), strict=strict)
        assert_near(program.module()(images()), expected)


@each_way
def test_tracing_and_export_within_a_process_group(way, process_group):
    backbone = build(**way, out_indices=(0,))
    expected = backbone(images())
    assert_near(torch.jit.trace(backbone, images())(images()), expected)
    assert_near(torch.fx.symbolic_trace(backbone)(images()), expected)
    assert torch.func.grad(lambda x: loss_of(backbone(x)))(images()).any()
    assert dist.is_initialized()


@pytest.mark.parametrize("deploy", [False, True])
def test_reverted_sync_batch_norms_are_folded(deploy, monkeypatch):
    expected = build().eval()(images())
    backbone = revert_sync_batchnorm(build(fold_norm=True, norm_cfg=dict(type="SyncBN"))).eval()
    if deploy:
        backbone.switch_to_deploy()
    monkeypatch.setattr(nn.functional, "batch_norm", None)
    assert_near(backbone(images()), expected)


@pytest.mark.parametrize("cls", [ResNet, ResNetV1d])
@pytest.mark.parametrize("which", ["the stem", "all"])
def test_adapters_around_convolutions(cls, which):
    backbone = build(50, cls, fold_norm=True)
    expected = backbone(images())
    strides, channels = backbone.out_strides, backbone.out_channels
    for parent in [backbone, *backbone.modules()]:
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and (which == "all" or parent in (backbone, getattr(backbone, "stem", 0))):
                setattr(parent, name, Wrapper(layer))
    assert any(isinstance(module, Wrapper) for module in backbone.modules())
    assert (backbone.out_strides, backbone.out_channels) == (strides, channels) == ((4, 8), (32, 64))
    assert_near(backbone(images()), expected)
    assert set(with_fpn(backbone, 8).eval()(images())) >= {"0", "1"}
    if cls is ResNet:
        backbone.maxpool = nn.Identity()
        assert backbone.out_strides == (2, 4)


@pytest.mark.parametrize("type_", ["resnet_backbone.DCNv2", "DCNv2"])
def test_offset_learning_rate(type_):
    model = build(dcn=dict(type=type_), stage_with_dcn=(False, True))
    config = dict(optimizer=dict(type="SGD", lr=0.5), paramwise_cfg=dict(dcn_offset_lr_mult=0.1, bias_lr_mult=2.0))
    groups = build_optim_wrapper(model, config).optimizer.param_groups
    rates = {id(group["params"][0]): group["lr"] for group in groups}
    offsets = {id(p) for name, p in model.named_parameters() if "conv_offset" in name}
    assert len(offsets) == 4
    for name, parameter in model.named_parameters():
        assert (rates[id(parameter)] == 0.05) == (id(parameter) in offsets), name
    assert type_ == "DCNv2" or any(isinstance(module, ModulatedDeformConv2dPack) for module in model.modules())


def test_reimport_replaces_registered_classes(run_python):
    run_python("""
import importlib, sys
import resnet_backbone
first = resnet_backbone.ResNet
for name in [name for name in sys.modules if name.split(".")[0] == "resnet_backbone"]:
    del sys.modules[name]
import resnet_backbone
second = resnet_backbone.ResNet
assert first is not second
assert type(resnet_backbone.build_backbone(dict(type="ResNet", depth=18))) is second
assert type(resnet_backbone.build_backbone(dict(type="resnet_backbone.ResNet", depth=18))) is second
for name in [name for name in sys.modules if name.split(".")[0] == "resnet_backbone"]:
    importlib.reload(sys.modules[name])
""")


def test_misspelled_architecture_is_named():
    with raises(ArgumentTypeError, "RegNet", "'arhc'", "'arch'"):
        RegNet(arhc="regnetx_400mf")


@pytest.mark.parametrize("cls", [ResNet, ResNetV1c, ResNetV1d, ResNeXt])
def test_misspelled_required_argument_is_named(cls):
    with raises(ArgumentTypeError, cls.__name__, "'dpeth'", "'depth'"):
        cls(dpeth=18)
    with raises(ArgumentTypeError, cls.__name__, "'dpeth'", "'depth'"):
        build_backbone(dict(type=cls.__name__, dpeth=18))
    with raises(TypeError, "'depth'"):
        cls()


@each_way
def test_copies_and_averaged_models(way):
    backbone = build(**way)
    expected = computed(backbone, images())
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert_same_bits(computed(other, images()), expected)
    average = torch.optim.swa_utils.AveragedModel(backbone)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(1.5)
    average.update_parameters(backbone)
    changed = {name: 1.25 / 1.5 * value for name, value in backbone.named_parameters()}
    found = torch.func.functional_call(backbone, changed, (images(),))
    assert_near(found, torch.func.functional_call(build(), changed, (images(),)))


@each_way
def test_selective_activation_checkpointing(way):
    contexts = pytest.importorskip("torch.utils.checkpoint").__dict__.get("create_selective_checkpoint_contexts")
    if contexts is None:
        pytest.skip("torch 2.4 brought it")
    backbone, x = build(**way), images()
    expected = computed(backbone, x)

    class Selective(nn.Module):
        parameters = backbone.parameters
        zero_grad = backbone.zero_grad

        def forward(self, x):
            cached = functools.partial(contexts, [torch.ops.aten.convolution.default])
            return checkpoint(backbone, x, use_reentrant=False, context_fn=cached)

    assert_near(computed(Selective(), x), expected)

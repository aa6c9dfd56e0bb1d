"""Wrapped backbones, state dicts, averaged weights, input channels and preprocessing."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch
from helpers import raises
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from resnet_backbone import ResNet, ResNetV1d, load_pretrained, with_fpn
from resnet_backbone.errors import ArgumentError, ArgumentTypeError, DeployedError
from resnet_backbone.weights import CheckpointError, MismatchError

NARROW = dict(depth=18, base_channels=8)


@pytest.fixture
def source(shake):
    return shake(ResNet(**NARROW), seed=3)


@pytest.fixture
def state(source):
    return source.state_dict()


def holds(backbone, state):
    own = backbone.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in state)


# Modules around the backbone


class Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Conv2d(64, 4, 1)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "compiled in DataParallel": lambda backbone: nn.DataParallel(torch.compile(backbone)),
    "averaged model": AveragedModel,
    "mmengine's EMA": ExponentialMovingAverage,
    "FPN": with_fpn,
    "detector": Detector,
    "compiled detector": lambda backbone: torch.compile(Detector(backbone)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_backbones(name, state):
    backbone = ResNet(**NARROW)
    wrapped = WRAPPERS[name](backbone)
    before = {key: value.clone() for key, value in wrapped.state_dict().items()}
    report = load_pretrained(wrapped, state)
    assert report.loaded == tuple(state)
    inner = next(module for module in wrapped.modules() if isinstance(module, ResNet))
    assert holds(inner, state)
    parameters = {parameter.data_ptr() for parameter in inner.state_dict().values()}
    for key, value in wrapped.state_dict().items():
        assert value.data_ptr() in parameters or torch.equal(value, before[key]), key


def test_distributed_data_parallel(process_group, state):
    backbone = ResNet(**NARROW)
    load_pretrained(nn.parallel.DistributedDataParallel(backbone), state)
    assert holds(backbone, state)


def test_checkpointed_stage(state):
    backbone = ResNet(**NARROW)
    # Its state dict leaves out the wrapper's name.
    backbone.layer1 = checkpoint_wrapper(backbone.layer1)
    load_pretrained(backbone, state)
    assert holds(backbone, state)


def test_compiled_blocks(state):
    backbone = ResNet(**NARROW)
    backbone.layer1[0] = torch.compile(backbone.layer1[0])
    assert len(load_pretrained(backbone, state).loaded) == len(state)
    assert torch.equal(backbone.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


def test_several_backbones_are_rejected(state):
    pair = nn.ModuleDict(dict(teacher=ResNet(**NARROW), student=ResNet(**NARROW)))
    before = copy.deepcopy(pair.state_dict())
    with raises(ArgumentError, "backbone", "one", "teacher", "student"):
        load_pretrained(pair, state)
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    load_pretrained(pair.teacher, state)
    assert holds(pair.teacher, state)


def test_compiled_deployed_backbone_cannot_be_loaded(source):
    deployed = source.switch_to_deploy()
    backbone = ResNet(**NARROW).switch_to_deploy()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.compile()
    for load in (backbone.load_state_dict, lambda state: load_pretrained(backbone, state)):
        with pytest.raises(DeployedError):
            load(deployed.state_dict())
    assert holds(backbone, before)


# State dicts


@pytest.mark.parametrize(
    "kind", [dict, OrderedDict, lambda state: {name: value.numpy() for name, value in state.items()}]
)
def test_state_dict_as_the_source(kind, state):
    backbone = ResNet(**NARROW)
    report = load_pretrained(backbone, kind(state))
    assert holds(backbone, state)
    assert report.source == "the state dict"


def test_state_dict_is_not_modified(state):
    before = copy.deepcopy(state)
    load_pretrained(ResNet(**NARROW, in_channels=6), state)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_wrong_arguments(state, source):
    backbone = ResNet(**NARROW)
    with raises(ArgumentError, "sha256='12345678'", "state dict"):
        load_pretrained(backbone, state, sha256="12345678")
    with raises(ArgumentTypeError, "source", "state_dict()"):
        load_pretrained(backbone, source)
    with raises(CheckpointError, "the state dict", "tensors"):
        load_pretrained(backbone, {})
    for device in ("cuda:93", "nonsense", torch.device("cuda:93")):
        with raises(ArgumentError, f"map_location='{device}'"):
            load_pretrained(backbone, "no file", map_location=device)


def test_sharded_tensors_are_named(process_group, state):
    tensor = pytest.importorskip("torch.distributed.tensor", reason="this PyTorch has no public DTensor")
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this PyTorch has no fully_shard")
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (1,))
    name = "layer2.0.conv1.weight"
    sharded = {**state, name: tensor.distribute_tensor(state[name], mesh, [tensor.Shard(0)])}
    with raises(CheckpointError, name, "DTensor", "full_tensor()"):
        load_pretrained(ResNet(**NARROW), sharded)
    with raises(MismatchError, "conv1.weight", "DTensor", "fully_shard()"):
        load_pretrained(fsdp.fully_shard(ResNet(**NARROW), mesh=mesh), state)


def test_quantized_tensors_are_named(state):
    name = "layer2.0.conv1.weight"
    quantized = torch.quantize_per_tensor(state[name], 0.1, 0, torch.qint8)
    with raises(CheckpointError, name, "quantized", "torch.qint8"):
        load_pretrained(ResNet(**NARROW), {**state, name: quantized})


@pytest.mark.parametrize(
    "change",
    [
        lambda array: array.astype(array.dtype.newbyteorder()),
        lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
        lambda array: np.asfortranarray(array),
    ],
)
def test_arrays_of_other_layouts(change, state):
    backbone = ResNet(**NARROW)
    load_pretrained(backbone, {name: change(value.numpy()) if value.dim() else value for name, value in state.items()})
    assert holds(backbone, state)


def test_long_keys_are_handled_quickly(state):
    long = {"layer1.0." + "downsample.1." * 37 + str(number): torch.zeros(1) for number in range(5_000)}
    with_dots = {"0." * 140 + str(number): torch.zeros(1) for number in range(5_000)}
    assert len(load_pretrained(ResNet(**NARROW), {**state, **long, **with_dots}).loaded) == len(state)


# Averaged weights


def averaged(state, other):
    return {
        "RT-DETR": ({"model": other, "ema": {"module": state, "updates": 3}}, "ema.module"),
        "ema_model": ({"state_dict": other, "ema_model": state}, "ema_model"),
        "timm": ({"state_dict": other, "state_dict_ema": state}, "state_dict_ema"),
        "ema_state_dict of others": ({"model": other, "ema_state_dict": state}, "ema_state_dict"),
        "in one state dict": (
            {f"model.{name}": value for name, value in other.items()}
            | {f"ema.module.{name}": value for name, value in state.items()},
            "ema.module",
        ),
    }


@pytest.mark.parametrize("name", averaged({}, {}))
def test_averaged_weights_are_preferred(name, state, shake):
    checkpoint, place = averaged(state, shake(ResNet(**NARROW), seed=4).state_dict())[name]
    backbone = ResNet(**NARROW)
    report = load_pretrained(backbone, checkpoint)
    assert holds(backbone, state)
    assert report.container + report.prefix.rstrip(".") == place
    if name != "ema_state_dict of others":
        assert report.averaged
        assert repr(place) in str(report)


def test_averaged_weights_swapped_by_mmengine(state, shake):
    other = shake(ResNet(**NARROW), seed=4).state_dict()
    backbone = ResNet(**NARROW)
    report = load_pretrained(backbone, {"meta": {}, "state_dict": state, "ema_state_dict": other})
    assert holds(backbone, state)
    assert not report.averaged


# Input channels


def first(in_channels, state, **kwargs):
    backbone = ResNet(**NARROW, in_channels=in_channels)
    report = load_pretrained(backbone, state, **kwargs)
    (change,) = report.changes
    return backbone.conv1.weight, change


def test_red_is_copied(state):
    weight, change = first(5, state, input_channels="red")
    given = state["conv1.weight"]
    assert torch.equal(weight, torch.cat([given, given[:, :1], given[:, :1]], 1))
    assert "3 from 0, 4 from 0" in change


def test_red_channel_of_bgr_weights(shake):
    config = "model = dict(data_preprocessor=dict(mean=[103., 116., 123.], std=[1., 1., 1.], bgr_to_rgb=False))"
    state = shake(ResNet(**NARROW)).state_dict()
    weight, _ = first(4, {"state_dict": state, "meta": {"cfg": config}}, input_channels="red")
    assert torch.equal(weight[:, 3], state["conv1.weight"][:, 2])


def test_zeros_leave_the_features_unchanged(state, source, relative_difference):
    backbone = ResNet(**NARROW, in_channels=5)
    load_pretrained(backbone, state, input_channels="zeros")
    image = torch.randn(1, 5, 32, 32)
    assert relative_difference(backbone.eval()(image), source(image[:, :3])) < 1e-6


def test_bands_by_name(state):
    weight, change = first(13, state, input_channels={3: "red", 2: "green", 1: "blue", 7: 0})
    given = state["conv1.weight"]
    assert torch.equal(weight[:, [3, 2, 1, 7]], given[:, [0, 1, 2, 0]])
    rest = [channel for channel in range(13) if channel not in (3, 2, 1, 7)]
    assert not weight[:, rest].any()
    assert change.endswith("zeros for 0, 4, 5, 6, 8, 9, 10, 11, 12")


def test_three_of_thirteen_bands(shake):
    state = shake(ResNet(**NARROW, in_channels=13)).state_dict()
    weight, _ = first(3, state, input_channels={0: 3, 1: 2, 2: 1})
    assert torch.equal(weight, state["conv1.weight"][:, [3, 2, 1]])


def test_color_order_can_be_reversed(state, source, relative_difference):
    backbone = ResNet(**NARROW)
    load_pretrained(backbone, state, input_channels={0: "blue", 1: "green", 2: "red"})
    image = torch.randn(1, 3, 32, 32)
    assert relative_difference(backbone.eval()(image), source(image.flip(1))) < 1e-6


@pytest.mark.parametrize("value", ["average", 3, {}, {0: "infrared"}, {-1: 0}, {0: -1}, {"red": 0}, None])
def test_invalid_input_channels(value, state):
    with raises(ArgumentError, "input_channels", repr(value), "'repeat'", "'red'", "'zeros'"):
        load_pretrained(ResNet(**NARROW), state, input_channels=value)


@pytest.mark.parametrize(("in_channels", "value"), [(1, "red"), (2, "zeros"), (4, {4: 0}), (4, {0: 3})])
def test_input_channels_that_do_not_match(in_channels, value, state, snapshot):
    backbone = ResNet(**NARROW, in_channels=in_channels)
    unchanged = snapshot(backbone)
    with raises(ArgumentError, f"input_channels={value!r}", str(in_channels), "3"):
        load_pretrained(backbone, state, input_channels=value)
    assert unchanged()


# Images


def images(checkpoint, in_channels=3):
    backbone = ResNet(**NARROW, in_channels=in_channels)
    report = load_pretrained(backbone, checkpoint)
    return report.preprocessing, report.preprocessing_basis


def saved(config, state, key="cfg"):
    return {"meta": {key: config}, "state_dict": {f"backbone.{name}": value for name, value in state.items()}}


BGR = "mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0]"
RGB = "mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]"
OF_MODEL = f"model = dict(data_preprocessor=dict({BGR}, bgr_to_rgb=False))"


@pytest.mark.parametrize(
    ("config", "key", "rgb"),
    [
        (OF_MODEL, "cfg", False),
        (f"data_preprocessor = dict({RGB}, bgr_to_rgb=True)\n{OF_MODEL}", "cfg", False),
        (OF_MODEL.replace("dict(mean", "dict(type='Wrapper', data_preprocessor=dict(mean") + ")", "cfg", False),
        (f"data_preprocessor = dict({RGB}, to_rgb=True)\nmodel = dict(type='ImageClassifier')", "cfg", True),
        (f"img_norm_cfg = dict({BGR}, to_rgb=False)", "config", False),
        (f"train_pipeline = [dict(type='Resize'), dict(type='Normalize', {BGR}, to_rgb=False)]", "config", False),
    ],
)
def test_preprocessing_from_the_config_in_the_file(config, key, rgb, state):
    preprocessing, basis = images(saved(config, state, key))
    assert preprocessing.bgr_to_rgb is rgb
    assert basis == "file"


@pytest.mark.parametrize(
    "config",
    [
        "model = dict(",
        "model = " + "[" * 5000,
        "model = dict(data_preprocessor=dict(mean=1" + "0" * 5000 + ", std=1, bgr_to_rgb=True))",
        "model = dict(data_preprocessor=dict(mean=['a'], std=[1], bgr_to_rgb=True))",
        "model = dict(data_preprocessor=dict(mean=[1e999], std=[1], bgr_to_rgb=True))",
        "model = dict(data_preprocessor=dict(mean=[1, 2], std=[1], bgr_to_rgb=True))",
        "model = __import__('os').abort()",
        "img_norm_cfg = dict(mean=mean, std=std, to_rgb=True)",
        f"img_norm_cfg = dict({RGB}, to_rgb=True)\n" + "#" * 100_000,
        f"a = dict(type='Normalize', {BGR}, to_rgb=False)\nb = dict(type='Normalize', {RGB}, to_rgb=True)",
        7,
    ],
)
def test_configs_without_preprocessing(config, state):
    assert images(saved(config, state)) == (None, None)


@pytest.mark.parametrize(
    "provenance",
    [
        {"preprocessing": 3, "style": []},
        {"preprocessing": {"mean": [1]}, "style": "\x1b[2J"},
        {"preprocessing": {"mean": [1], "std": {}, "bgr_to_rgb": "yes"}},
        {"preprocessing": {"mean": "123", "std": "111", "bgr_to_rgb": True}},
        {"preprocessing": {"mean": [10**5000], "std": [1], "bgr_to_rgb": True}},
    ],
)
def test_malformed_provenance(provenance, state):
    report = load_pretrained(ResNet(**NARROW), {"meta": {"resnet_backbone": provenance}, "state_dict": state})
    assert (report.preprocessing, report.style) == (None, None)


def test_basis_of_the_provenance_may_be_anything(state):
    said = {"preprocessing": {"mean": [1], "std": [1], "bgr_to_rgb": True}, "preprocessing_basis": np.arange(2)}
    report = load_pretrained(ResNet(**NARROW), {"meta": {"resnet_backbone": said}, "state_dict": state})
    assert report.preprocessing_basis is None


def test_conventional_preprocessing_is_marked(state):
    preprocessing, basis = images(state)
    assert preprocessing.bgr_to_rgb
    assert basis == "convention"
    assert "usual" in str(load_pretrained(ResNet(**NARROW), state))


def test_no_preprocessing_for_thirteen_bands(shake):
    state = shake(ResNet(**NARROW, in_channels=13)).state_dict()
    assert images(state, in_channels=13) == (None, None)


def detectron2(state):
    from test_weights_formats import detectron2_name

    return {detectron2_name(name): value for name, value in state.items() if not name.endswith("tracked")}


@pytest.mark.parametrize(
    ("extra", "rgb", "basis"),
    [
        ({}, False, "convention"),
        ({"pixel_mean": np.float32([[123.675], [116.28], [103.53]]), "pixel_std": np.ones((3, 1))}, True, "file"),
        ({"pixel_mean": torch.tensor([103.53, 116.28, 123.675]), "pixel_std": torch.ones(3)}, False, "file"),
        ({"pixel_mean": torch.tensor([127.0, 127.0, 127.0]), "pixel_std": torch.ones(3)}, False, "convention"),
        ({"pixel_mean": [123.675, 116.28, 103.53], "pixel_std": "1"}, False, "convention"),
        ({"pixel_mean": torch.ones(3, device="meta"), "pixel_std": torch.ones(3)}, False, "convention"),
        ({"pixel_mean": np.array([10**400, 1, 0], object), "pixel_std": np.ones(3)}, False, "convention"),
        ({"pixel_mean": torch.arange(3.0).bfloat16(), "pixel_std": torch.ones(3)}, False, "file"),
    ],
)
def test_detectron2_pixel_mean_gives_the_color_order(extra, rgb, basis, state):
    preprocessing, said = images({"model": {**detectron2(state), **extra}, "__author__": np.arange(2)})
    assert (preprocessing.bgr_to_rgb, said) == (rgb, basis)


def test_detectron2_conversion_of_torchvision_weights(state):
    report = load_pretrained(ResNet(**NARROW), {"model": detectron2(state), "__author__": "torchvision"})
    assert report.preprocessing.bgr_to_rgb
    assert (report.preprocessing_basis, report.style) == ("file", "pytorch")


# The same names, another function


@pytest.mark.parametrize("name", ["resnetaa50_a1h_in1k.pth", "resnetblur50.bt_in1k.pth", "seresnextaa101d.pth"])
def test_anti_aliased_networks_are_rejected(name, state, tmp_path):
    torch.save(state, tmp_path / name)
    backbone = ResNet(**NARROW)
    with raises(MismatchError, name, "anti-aliased", "strict=False"):
        load_pretrained(backbone, tmp_path / name)
    assert not holds(backbone, state)
    (warning,) = load_pretrained(backbone, tmp_path / name, strict=False).warnings
    assert "anti-aliased" in warning


GN = dict(**NARROW, norm_cfg=dict(type="GN", num_groups=4))


def test_weight_standardization_from_the_file_name(tmp_path):
    path = tmp_path / "resnet50_gn_ws-15beedd8.pth"
    torch.save(ResNet(**GN, conv_cfg=dict(type="ConvWS")).state_dict(), path)
    with raises(MismatchError, path.name, "conv_cfg=dict(type='ConvWS')", "strict=False"):
        load_pretrained(ResNet(**GN), path)
    assert not load_pretrained(ResNet(**GN, conv_cfg=dict(type="ConvWS")), path).warnings


def test_weight_standardization_from_the_config():
    config = "model = dict(backbone=dict(type='ResNet', depth=18, conv_cfg=dict(type='ConvWS')))"
    checkpoint = saved(config, ResNet(**GN).state_dict())
    with raises(MismatchError, "the state dict", "conv_cfg=dict(type='ConvWS')", "strict=False"):
        load_pretrained(ResNet(**GN), checkpoint)


def test_differences_from_the_config(state):
    config = "model = dict(backbone=dict(type='ResNetV1c', depth=18, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)))"
    checkpoint = saved(config, state)
    warnings = load_pretrained(ResNet(**NARROW), checkpoint).warnings
    assert [word for warning in warnings for word in ("strides", "dilations") if word in warning] == [
        "strides",
        "dilations",
    ]
    same = ResNet(**NARROW, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1))
    assert not load_pretrained(same, checkpoint).warnings
    fewer = ResNet(**NARROW, num_stages=2, dilations=(1, 1), strides=(1, 2), out_indices=(1,))
    assert not load_pretrained(fewer, checkpoint).warnings


@pytest.mark.parametrize("value", ["3", "{}", "()", "'abc'", "dilations", "((1,), 2)"])
def test_malformed_configs(value, state):
    config = f"model = dict(backbone=dict(type='ResNet', strides={value}, dilations={value}, conv_cfg={value}))"
    assert load_pretrained(ResNet(**NARROW), saved(config, state)).loaded


def test_style_from_the_config():
    config = "model = dict(backbone=dict(type='ResNet', depth=50, style='caffe'))"
    backbone = ResNet(depth=50, base_channels=8)
    report = load_pretrained(backbone, saved(config, ResNet(depth=50, base_channels=8).state_dict()))
    assert report.style == "caffe"
    assert len(report.warnings) == 1


def test_timm_d_variant_in_a_dilated_backbone(shake):
    timms = {"stem.0": "conv1.0", "stem.1": "conv1.1", "stem.3": "conv1.3", "stem.4": "conv1.4", "stem.6": "conv1.6"}
    state = {}
    for name, value in shake(ResNetV1d(**NARROW)).state_dict().items():
        owner, _, leaf = name.rpartition(".")
        state[f"{ {**timms, 'stem.7': 'bn1'}.get(owner, owner) }.{leaf}".strip()] = value
    dilated = dict(**NARROW, dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1))
    (warning,) = load_pretrained(ResNetV1d(**dilated), state).warnings
    assert "timm" in warning
    assert not load_pretrained(ResNetV1d(**NARROW), state).warnings

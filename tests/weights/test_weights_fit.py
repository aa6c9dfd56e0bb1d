"""Matching of weights and backbone, and the report about it."""

import copy
import pickle

import pytest
import torch
import torchvision
from helpers import assert_mentions, raises
from torch import nn

from resnet_backbone import LoadReport, ResNet, ResNetV1c, ResNetV1d, load_pretrained
from resnet_backbone.errors import ArgumentError, ArgumentTypeError
from resnet_backbone.weights import CheckpointError, MismatchError


def narrow(depth, **kwargs):
    return ResNet(depth=depth, base_channels=8, **kwargs)


@pytest.fixture(scope="module")
def states():
    """State dicts with torchvision's names, of small networks."""
    classifier = {"fc.weight": torch.rand(10, 4), "fc.bias": torch.rand(10)}
    return {depth: {**narrow(depth).state_dict(), **classifier} for depth in (18, 34, 50)}


@pytest.fixture
def file(states):
    """A function that returns a changed copy of a state dict."""

    def make(depth=18, change=lambda state: None):
        state = copy.copy(states[depth])
        change(state)
        return state

    return make


@pytest.fixture
def refused(snapshot):
    """A function that checks that a source is rejected, with these words, and that the backbone is unchanged."""

    def check(backbone, source, *words, error=MismatchError, **kwargs):
        unchanged = snapshot(backbone)
        with raises(error, *words):
            load_pretrained(backbone, source, **kwargs)
        assert unchanged()

    return check


@pytest.mark.parametrize(
    ("depth", "backbone", "words"),
    [
        (18, dict(depth=50), ["ResNet-18", "depth=50"]),
        (50, dict(depth=18), ["ResNet-50", "depth=18"]),
        (34, dict(depth=18), ["ResNet-34", "depth=18"]),
        (50, dict(depth=101), ["ResNet-50", "depth=101"]),
        (50, dict(depth=34), ["ResNet-50", "depth=34"]),
        (18, dict(depth=18, deep_stem=True), ["ResNet-18", "7x7", "deep_stem=True"]),
        (18, dict(depth=18, avg_down=True), ["ResNet-18", "1x1", "avg_down=True"]),
        (18, dict(depth=18, base_channels=32), ["ResNet-18", "base_channels=8", "base_channels=32"]),
        (18, dict(depth=18, norm_cfg=dict(type="GN", num_groups=4)), ["batch norm", "running statistics"]),
    ],
)
def test_different_network(depth, backbone, words, file, refused):
    refused(ResNet(**{"base_channels": 8, **backbone}), file(depth), *words)


@pytest.mark.parametrize(
    ("model", "name"), [("resnext50_32x4d", "ResNeXt-50 32x4d"), ("wide_resnet50_2", "Wide ResNet-50-2")]
)
def test_wider_network(model, name, refused):
    with torch.device("meta"):
        saved = torchvision.models.get_model(model).state_dict()
    refused(ResNet(depth=50), saved, name, "ResNet-50")


def test_deep_stems(refused):
    saved = ResNetV1d(depth=18, base_channels=8).state_dict()
    refused(narrow(18), saved, "ResNet-18-D", "3x3", "deep_stem=False")
    refused(ResNetV1c(depth=18, base_channels=8), saved, "ResNet-18-D", "average", "avg_down=False")


def test_group_norm_is_not_a_folded_batch_norm(refused):
    saved = narrow(18, norm_cfg=dict(type="GN", num_groups=4)).state_dict()
    refused(narrow(18), saved, "running statistics", "group norm", "batch norm")


def test_missing_parameter_is_listed(file, refused):
    path = file(change=lambda state: state.pop("layer3.1.conv2.weight"))
    refused(narrow(18), path, "file", "layer3.1.conv2.weight", "strict=False")
    report = load_pretrained(narrow(18), path, strict=False)
    assert report.missing == ("layer3.1.conv2.weight",)


def test_other_shape_is_listed(file, refused):
    path = file(change=lambda state: state.update({"layer3.1.bn1.bias": torch.rand(7)}))
    refused(narrow(18), path, "layer3.1.bn1.bias", "(7,)", "(32,)", "strict=False")
    report = load_pretrained(narrow(18), path, strict=False)
    assert report.mismatched == (("layer3.1.bn1.bias", (7,), (32,)),)
    assert_mentions(str(report), "layer3.1.bn1.bias", "(7,)", "(32,)")


def test_unexpected_parameter_in_a_stage_is_an_error(file, refused):
    path = file(change=lambda state: state.update({"layer1.0.se.fc1.weight": torch.rand(4, 8, 1, 1)}))
    refused(narrow(18), path, "backbone", "layer1.0.se.fc1.weight", "strict=False")
    report = load_pretrained(narrow(18), path, strict=False)
    assert report.unexpected == ("layer1.0.se.fc1.weight",)


def test_second_tensor_with_the_same_name_is_unexpected(file, refused):
    # As in networks with an instance norm beside each batch norm.
    path = file(change=lambda state: state.update({"layer1.0.in1.weight": torch.rand(8)}))
    refused(narrow(18), path, "layer1.0.in1.weight")
    backbone = narrow(18)
    load_pretrained(backbone, path, strict=False)
    assert torch.equal(backbone.layer1[0].bn1.weight, path["layer1.0.bn1.weight"])


@pytest.mark.parametrize("name", ["maxpool.0.weight", "prelu.weight"])
def test_other_stems_are_unexpected(name, file, refused):
    # ResNet-RS has a convolution in place of the pooling.
    refused(narrow(18), file(change=lambda state: state.update({name: torch.rand(8)})), name)


def test_fewer_stages_than_the_file(file):
    report = load_pretrained(narrow(18, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)), file())
    assert not report.missing
    assert {name.split(".")[0] for name in report.unused} == {"layer3", "layer4", "fc"}


def test_more_stages_than_the_file(file, refused):
    def cut(state):
        for name in [name for name in state if name.startswith("layer4")]:
            state.pop(name)

    refused(narrow(18), file(change=cut), "file", "layer4.0.conv1.weight", "5")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("strict", [True, False])
def test_nan_and_inf(value, strict, file, refused):
    def spoil(state):
        state["layer2.0.bn1.running_var"] = state["layer2.0.bn1.running_var"].clone()
        state["layer2.0.bn1.running_var"][3] = value

    refused(
        narrow(18),
        file(change=spoil),
        *("layer2.0.bn1.running_var", "NaN", "Inf"),
        error=CheckpointError,
        strict=strict,
    )


def test_nan_in_unused_parameters_is_ignored(file):
    path = file(change=lambda state: state.update({"fc.bias": torch.full((10,), torch.nan)}))
    assert load_pretrained(narrow(18), path).loaded


def test_integer_weights(file, refused):
    path = file(change=lambda state: state.update({"conv1.weight": torch.zeros(8, 3, 7, 7, dtype=torch.int8)}))
    refused(narrow(18), path, "conv1.weight", "torch.int8", error=CheckpointError)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("change", "dtype", "words"),
    [
        (lambda w: w.to("meta"), torch.float32, ["meta"]),
        (lambda w: w.double() * 1e300, torch.float32, ["range", "torch.float32"]),
        (lambda w: w * 1e7, torch.float16, ["range", "torch.float16"]),
        (lambda w: torch.full_like(w, torch.nan).to(torch.float8_e4m3fn), torch.float32, ["NaN"]),
    ],
)
def test_tensors_with_invalid_values(change, dtype, words, strict, file, refused):
    name = "layer2.0.conv1.weight"
    path = file(change=lambda state: state.update({name: change(state[name])}))
    refused(narrow(18).to(dtype), path, name, *words, error=CheckpointError, strict=strict)


@pytest.mark.parametrize("input_channels", ["repeat", "zeros", {0: 2, 1: 1}])
@pytest.mark.parametrize("dtype", ["int8", "bits8", "complex64", "float8_e5m2"])
def test_only_floating_point_weights_are_adapted(dtype, input_channels, file, refused):
    def change(state):
        state["conv1.weight"] = torch.ones(8, 3, 7, 7).to(torch.float8_e5m2).view(torch.uint8)
        dtypes = {"bits8": torch.bits8, "float8_e5m2": torch.float8_e5m2}
        weight = state["conv1.weight"]
        state["conv1.weight"] = weight.view(dtypes[dtype]) if dtype in dtypes else weight.to(getattr(torch, dtype))

    backbone = narrow(18, in_channels=4)
    if dtype.startswith("float"):
        load_pretrained(backbone, file(change=change), input_channels=input_channels)
        assert backbone.conv1.weight[:, 0].unique().item() in (1, 0.75)
    else:
        refused(backbone, file(change=change), "conv1.weight", "(8, 3, 7, 7)", input_channels=input_channels)


def test_counts_of_other_dtypes(file, refused):
    count = torch.zeros(1, dtype=torch.uint8).view(torch.bits8)
    path = file(change=lambda state: state.update({"bn1.num_batches_tracked": count}))
    refused(narrow(18), path, "bn1.num_batches_tracked", "torch.bits8", error=CheckpointError)


def test_weights_without_elements_are_not_unfolded(file, refused):
    def change(state):
        state |= {"layer1.0.conv1.weight": torch.empty(2**40, 0, 3, 3), "layer1.0.conv1.bias": torch.zeros(8)}
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            del state[f"layer1.0.bn1.{leaf}"]

    refused(narrow(18), file(change=change), "base_channels=1099511627776")


@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, lambda w: torch.nested.nested_tensor([w[0, 0], w[0, 0, :2]])])
def test_sparse_and_nested_tensors(make, file, refused):
    name = "layer2.0.conv2.weight"
    refused(narrow(18), file(change=lambda s: s.update({name: make(s[name])})), "file", name)


def test_narrow_dtypes(file, states):
    name = "layer2.0.conv1.weight"
    backbone = narrow(18)
    value = states[18][name].to(torch.float8_e4m3fn)
    load_pretrained(backbone, file(change=lambda state: state.update({name: value})))
    assert torch.equal(backbone.layer2[0].conv1.weight, value.float())


def test_num_batches_tracked_as_a_vector(file):
    path = file(change=lambda state: state.update({"bn1.num_batches_tracked": torch.tensor([5])}))
    backbone = narrow(18)
    load_pretrained(backbone, path)
    assert backbone.bn1.num_batches_tracked == torch.tensor(5)


@pytest.mark.parametrize("strict", [True, False])
def test_deployed_backbone_rejects_training_weights(strict, file, refused):
    deployed = narrow(18).eval().switch_to_deploy()
    refused(deployed, file(), "norm", "switch_to_deploy()", strict=strict)


def test_deployed_backbone_loads_deployed_weights(shake, relative_difference):
    source = shake(narrow(18)).switch_to_deploy()
    saved = source.state_dict()
    deployed, ordinary = (
        narrow(18).eval().switch_to_deploy(),
        narrow(18).eval(),
    )
    x = torch.randn(1, 3, 32, 32)
    for backbone in (deployed, ordinary):
        assert not load_pretrained(backbone, saved).missing
        assert relative_difference(backbone(x), source(x)) < 1e-5


def test_backbone_on_the_meta_device(file):
    with raises(MismatchError, "conv1.weight", "meta", "backbone.to_empty(device='cpu')"):
        load_pretrained(narrow(18).to("meta"), file())


def test_failure_while_copying_is_rolled_back(file, snapshot, monkeypatch):
    backbone = narrow(18)
    unchanged = snapshot(backbone)
    broken = {"layer4.1.bn2.bias"}
    copy_ = torch.Tensor.copy_

    def fail(tensor, value, *args):
        target = backbone.state_dict()["layer4.1.bn2.bias"]
        if broken and tensor.data_ptr() == target.data_ptr():
            broken.clear()
            raise RuntimeError("out of memory")
        return copy_(tensor, value, *args)

    monkeypatch.setattr(torch.Tensor, "copy_", fail)
    with raises(RuntimeError, "out of memory"):
        load_pretrained(backbone, file())
    assert unchanged()


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_in_channels(channels, file, states):
    backbone = narrow(18, in_channels=channels)
    report = load_pretrained(backbone, file())
    weight = states[18]["conv1.weight"]
    if channels == 1:
        expected = weight.sum(1, keepdim=True)
        words = ("summed", "3", "in_channels=1")
    else:
        expected = torch.cat([weight, weight], 1)[:, :channels] * 3 / channels
        words = ("repeated", str(channels), f"3/{channels}")
    (change,) = report.changes
    assert_mentions(change, "conv1.weight", *words)
    torch.testing.assert_close(backbone.conv1.weight, expected)


def test_gray_image_matches_its_rgb_copy(file, relative_difference, shake):
    model = shake(narrow(18))
    saved = model.state_dict()
    gray = narrow(18, in_channels=1)
    load_pretrained(gray, saved)
    image = torch.rand(1, 1, 32, 32)
    assert relative_difference(gray.eval()(image), model(image.repeat(1, 3, 1, 1))) < 1e-5


def test_in_channels_of_a_deep_stem():
    saved = ResNetV1c(depth=18, base_channels=8).state_dict()
    report = load_pretrained(ResNetV1c(depth=18, base_channels=8, in_channels=1), saved)
    (change,) = report.changes
    assert_mentions(change, "stem.0.weight", "summed", "3", "in_channels=1")


def test_other_number_of_channels_in_the_file_is_a_mismatch(refused):
    saved = narrow(18, in_channels=4).state_dict()
    refused(narrow(18), saved, "conv1.weight", "(8, 4, 7, 7)", "(8, 3, 7, 7)")


class Offsets(nn.Conv2d):
    """A convolution with additional parameters, like a deformable one."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.conv_offset = nn.Conv2d(self.in_channels, 2, 1)


def test_missing_plugins_and_offsets_are_allowed(file):
    context = dict(cfg=dict(type="ContextBlock", ratio=1 / 4), position="after_conv3")
    backbone = narrow(50, plugins=[context])
    block = backbone.layer3[0]
    block.conv2 = Offsets(32, 32, 3, 2, 1, bias=False)
    report = load_pretrained(backbone, file(50))
    assert not report.missing
    assert "layer3.0.conv2.conv_offset.weight" in report.added
    assert any("context_block" in name for name in report.added)
    assert all("context_block" in name or "conv_offset" in name for name in report.added)
    assert "new " in str(report)


def test_plugins_in_the_file_are_loaded():
    context = dict(cfg=dict(type="ContextBlock", ratio=1 / 4), position="after_conv3")
    source = narrow(50, plugins=[context])
    saved = source.state_dict()
    report = load_pretrained(narrow(50, plugins=[context]), saved)
    assert not report.added
    assert len(report.loaded) == len(source.state_dict())


def test_no_match_is_an_error_without_strict(refused):
    saved = {"layer1.0.conv1.weight": torch.rand(3, 3, 3, 3)}
    refused(narrow(18), saved, "nothing", "the state dict", strict=False)


def test_half_precision_file_and_backbone(file, states):
    backbone = narrow(18).double()
    halves = {name: value.half() for name, value in states[18].items() if value.is_floating_point()}
    load_pretrained(backbone, file(change=lambda state: state.update(halves)))
    assert backbone.conv1.weight.dtype == torch.float64
    torch.testing.assert_close(backbone.conv1.weight, states[18]["conv1.weight"].half().double())


def test_frozen_and_training_state_is_kept(file):
    backbone = narrow(18, frozen_stages=1).train()
    load_pretrained(backbone, file())
    assert backbone.training
    assert not backbone.conv1.weight.requires_grad
    assert backbone.layer2[0].conv1.weight.requires_grad


def test_torchvision_model_as_the_backbone():
    model, state = torchvision.models.resnet18(), torchvision.models.resnet18().state_dict()
    report = load_pretrained(model, state)
    assert torch.equal(model.fc.weight, state["fc.weight"])
    assert not report.unused


def caffe_file(tmp_path, prefix=""):
    blobs = {}
    for name, value in narrow(50).state_dict().items():
        parts = name.split(".")
        if parts[0] == "conv1":
            blobs["conv1_w"] = value.numpy()
        elif parts[0] == "bn1" and parts[1] in ("weight", "bias"):
            blobs[f"res_conv1_bn_{parts[1][0].replace('w', 's')}"] = value.numpy()
        elif parts[0].startswith("layer"):
            branch = "1" if parts[2] == "downsample" else "2" + "abc"[int(parts[2][-1]) - 1]
            norm = parts[2].startswith("bn") or (parts[2] == "downsample" and parts[3] == "1")
            if norm and parts[-1] not in ("weight", "bias"):
                continue
            leaf = f"bn_{parts[-1][0].replace('w', 's')}" if norm else "w"
            blobs[f"res{int(parts[0][-1]) + 1}_{parts[1]}_branch{branch}_{leaf}"] = value.numpy()
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    return path


def test_caffe_weights_in_a_pytorch_backbone(tmp_path):
    report = load_pretrained(narrow(50), caffe_file(tmp_path))
    assert report.style == "caffe"
    assert report.preprocessing.as_config() == dict(
        mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False
    )
    (warning,) = report.warnings
    assert_mentions(warning, "style='caffe'", "style='pytorch'")
    assert not load_pretrained(narrow(50, style="caffe"), caffe_file(tmp_path)).warnings


def test_folded_weights_with_trained_statistics_warn(tmp_path):
    report = load_pretrained(narrow(50, style="caffe", norm_eval=False), caffe_file(tmp_path))
    assert any("folded" in warning for warning in report.warnings)


def test_pytorch_weights_in_a_caffe_backbone(file):
    (warning,) = load_pretrained(narrow(50, style="caffe"), file(50)).warnings
    assert "style='pytorch'" in warning
    # A BasicBlock is the same in both styles.
    assert not load_pretrained(narrow(18, style="caffe"), file(18)).warnings


def test_report_as_text(file):
    report = load_pretrained(narrow(18), file())
    assert isinstance(report, LoadReport)
    text = str(report)
    assert text.startswith(f"ResNet-18 from {report.origin}\n")
    assert "loaded      120 tensors: conv1 (1), bn1 (5), layer1 (24), layer2 (30), layer3 (30), layer4 (30)" in text
    assert "not used    2 tensors: fc (2)" in text
    assert "bgr_to_rgb=True" in text


def test_wrong_arguments(file, tmp_path):
    with raises(ArgumentTypeError, "source", "path", "URL", "7"):
        load_pretrained(narrow(18), 7)
    with raises(ArgumentError, "source", "empty", "path", "URL"):
        load_pretrained(narrow(18), "")
    with raises(ArgumentTypeError, "backbone", "torch.nn.Module", "None"):
        load_pretrained(None, file())
    with raises(ArgumentTypeError, "prefix", "string", "None", "3"):
        load_pretrained(narrow(18), file(), prefix=3)
    torch.save(file(), tmp_path / "model.pth")
    for digest in ("xyz", 12345678):
        with raises(ArgumentError, "sha256", repr(digest), "8", "64", "hexadecimal"):
            load_pretrained(narrow(18), tmp_path / "model.pth", sha256=digest)
    with raises(CheckpointError, "model.pth", "SHA-256", "12345678"):
        load_pretrained(narrow(18), tmp_path / "model.pth", sha256="12345678")


def test_file_errors_are_not_assertion_errors(file):
    with pytest.raises(MismatchError) as caught:
        load_pretrained(narrow(50), file())
    assert isinstance(caught.value, RuntimeError)
    assert not isinstance(caught.value, (AssertionError, ValueError))

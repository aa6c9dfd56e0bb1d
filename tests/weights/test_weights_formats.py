"""Weights with the names of every framework give the features of the framework's model.

The checkpoints are in memory: reading files is tested elsewhere.
"""

import re

import pytest
import timm
import torch
import torchvision
from helpers import raises
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from resnet_backbone import ResNet, ResNetV1c, ResNetV1d, load_pretrained
from resnet_backbone.weights import CheckpointError, MismatchError, load
from resnet_backbone.weights.names import SCHEMES, find_prefixes, module_names

# Names depend on the kind of block alone.
DEPTHS = (18, 50)


@pytest.fixture(autouse=True)
def _no_initialization(monkeypatch):
    """Skip random initialization, which takes longer than the tests."""
    for name in ("kaiming_uniform_", "kaiming_normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.fixture
def check(image, relative_difference):
    def run(backbone, source, expected, **kwargs):
        report = load_pretrained(backbone, source, **kwargs)
        assert not report.missing
        assert not report.unexpected
        assert not report.mismatched
        with torch.no_grad():
            assert relative_difference(backbone.eval()(image), expected) < 1e-5
        return report

    return run


def timm_levels(model, image):
    with torch.no_grad():
        x = model.maxpool(model.act1(model.bn1(model.conv1(image))))
        levels = []
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(model, name)(x)
            levels.append(x)
    return levels


def features(backbone, image):
    with torch.no_grad():
        return backbone.eval()(image)


def detectron2_name(name):
    parts = name.split(".")
    if name.startswith("conv1."):
        return f"stem.{name}"
    if name.startswith("bn1."):
        return f"stem.conv1.norm.{parts[1]}"
    stage, block, layer, *rest = parts
    stage = f"res{int(stage[-1]) + 1}"
    if layer == "downsample":
        return f"{stage}.{block}.shortcut.{'norm.' if rest[0] == '1' else ''}{rest[1]}"
    if layer.startswith("bn"):
        return f"{stage}.{block}.conv{layer[-1]}.norm.{rest[0]}"
    return f"{stage}.{block}.{layer}.{rest[0]}"


def caffe2_name(name, norm, leaves):
    parts = name.split(".")
    if name == "conv1.weight":
        return "conv1_w"
    if parts[0] in ("bn1", "gn1"):
        return f"res_conv1_{norm}_{leaves[parts[1]]}" if norm == "bn" else f"conv1_{norm}_{leaves[parts[1]]}"
    stage, block, layer, *rest = parts
    branch = "1" if layer == "downsample" else "2" + "abc"[int(layer[-1]) - 1]
    is_norm = layer.startswith(("bn", "gn")) or rest[0] == "1"
    leaf = f"{norm}_{leaves[rest[-1]]}" if is_norm else "w"
    return f"res{int(stage[-1]) + 1}_{block}_branch{branch}_{leaf}"


@pytest.mark.parametrize("depth", DEPTHS)
def test_torchvision(depth, check, shake, image, torchvision_levels):
    model = shake(torchvision.models.get_model(f"resnet{depth}"))
    source = model.state_dict()
    report = check(ResNet(depth=depth), source, torchvision_levels(model, image))
    assert report.network == f"ResNet-{depth}"
    assert report.unused == ("fc.weight", "fc.bias")
    assert not report.renamed
    assert report.preprocessing.bgr_to_rgb


@pytest.mark.parametrize(
    ("name", "cls", "depth"),
    [(f"resnet{depth}", ResNet, depth) for depth in DEPTHS]
    + [(f"resnet{depth}d", ResNetV1d, depth) for depth in DEPTHS]
    + [(f"resnet{depth}c", ResNetV1c, depth) for depth in (50,)],
)
def test_timm(name, cls, depth, check, shake, image):
    model = shake(timm.create_model(name, zero_init_last=False) if name in timm.list_models() else _timm_c())
    source = model.state_dict()
    report = check(cls(depth=depth), source, timm_levels(model, image))
    assert report.network == f"ResNet-{depth}{'-' + name[-1].upper() if name[-1] in 'cd' else ''}"


def _timm_c():
    resnet = timm.models.resnet
    return resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], stem_width=32, stem_type="deep")


def test_timm_group_norm(check, shake, image):
    model = shake(timm.create_model("resnet50_gn"))
    source = model.state_dict()
    backbone = ResNet(depth=50, norm_cfg=dict(type="GN", num_groups=32))
    report = check(backbone, source, timm_levels(model, image))
    assert report.renamed["layer1.0.gn1.weight"] == "layer1.0.bn1.weight"


@pytest.mark.parametrize(
    ("depth", "prefix"), [*((depth, "") for depth in DEPTHS), (18, "backbone.bottom_up."), (50, "backbone.bottom_up.")]
)
def test_detectron2(depth, prefix, check, shake, image):
    source = shake(ResNet(depth=depth, style="caffe"))
    # FrozenBatchNorm counts no batches; arrays, as detectron2's own conversions write them.
    weights = {
        prefix + detectron2_name(name): value.numpy()
        for name, value in source.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    weights["proposal_generator.rpn_head.conv.weight" if prefix else "fc1000.weight"] = torch.rand(4, 4).numpy()
    checkpoint = {"model": weights, "__author__": "detectron2"}
    report = check(ResNet(depth=depth, style="caffe"), checkpoint, features(source, image))
    assert report.format == "detectron2"
    assert len(report.unused) == 1
    assert report.preprocessing.std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("depth", DEPTHS)
def test_caffe2_folded(depth, check, shake, image):
    source = shake(ResNet(depth=depth, style="caffe"))
    leaves = {"weight": "s", "bias": "b"}
    state = source.state_dict()
    blobs = {}
    for name, module in source.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            scale = module.weight / (module.running_var.double() + module.eps).sqrt()
            shift = module.bias - module.running_mean * scale
            blobs[caffe2_name(f"{name}.weight", "bn", leaves)] = scale.detach().float().numpy()
            blobs[caffe2_name(f"{name}.bias", "bn", leaves)] = shift.detach().float().numpy()
        elif isinstance(module, nn.Conv2d):
            blobs[caffe2_name(f"{name}.weight", "bn", leaves)] = state[f"{name}.weight"].numpy()
    blobs["fc1000_w"] = state["conv1.weight"].flatten(1).numpy()
    # A file of a training holds the optimizer's momentum of every weight.
    blobs["conv1_w_momentum"] = state["conv1.weight"].numpy()
    blobs["res2_0_branch2a_w_momentum"] = state["layer1.0.conv1.weight"].numpy()
    checkpoint = {"blobs": blobs}
    report = check(ResNet(depth=depth, style="caffe"), checkpoint, features(source, image))
    assert report.format == "Caffe2"
    assert any("folded" in change for change in report.changes)
    assert report.preprocessing.bgr_to_rgb is False


@pytest.mark.parametrize(
    "leaves",
    [
        {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"},
        {"weight": "gamma", "bias": "beta", "running_mean": "running_mean", "running_var": "running_var"},
    ],
)
def test_caffe2_with_statistics(leaves, check, shake, image):
    source = shake(ResNet(depth=50, style="caffe"))
    blobs = {
        caffe2_name(name, "bn", leaves): value.numpy()
        for name, value in source.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    checkpoint = blobs
    report = check(ResNet(depth=50, style="caffe"), checkpoint, features(source, image))
    assert not report.changes
    # Norm layers without statistics are not folded if others have them.
    for leaf in ("running_mean", "running_var"):
        del blobs[caffe2_name(f"layer2.0.bn1.{leaf}", "bn", leaves)]
    with raises(MismatchError, "layer2.0.bn1.running_mean", "layer2.0.bn1.running_var"):
        load_pretrained(ResNet(depth=50, style="caffe"), checkpoint)


def test_caffe2_group_norm(check, shake, image):
    cfg = dict(depth=50, norm_cfg=dict(type="GN", num_groups=32))
    source = shake(ResNet(**cfg))
    leaves = {"weight": "s", "bias": "b"}
    blobs = {caffe2_name(name, "gn", leaves): value.numpy() for name, value in source.state_dict().items()}
    checkpoint = {"blobs": blobs}
    report = check(ResNet(**cfg), checkpoint, features(source, image))
    assert report.style == "pytorch"
    assert not report.warnings


def test_batch_norm_inside_the_convolutions(check, shake, image, torchvision_levels):
    model = shake(torchvision.models.resnet50())
    expected = torchvision_levels(model, image)
    for module in list(model.modules()):
        for number in "123":
            if isinstance(getattr(module, f"bn{number}", None), nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(getattr(module, f"conv{number}"), getattr(module, f"bn{number}"))
                setattr(module, f"conv{number}", fused)
                setattr(module, f"bn{number}", nn.Identity())
        if getattr(module, "downsample", None) is not None:
            module.downsample = nn.Sequential(fuse_conv_bn_eval(*module.downsample))
    source = model.state_dict()
    report = check(ResNet(depth=50), source, expected)
    assert len(report.changes) == 2


def test_bias_before_batch_norm(check, shake, image):
    """Caffe's ResNet-50 has a bias in its first convolution, before the norm layer."""
    model = torchvision.models.resnet18()
    model.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=True)
    shake(model)
    source = model.state_dict()
    check(ResNet(depth=18), source, timm_levels(_with_act(model), image))


def _with_act(model):
    model.act1 = model.relu
    return model


def wrap(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def _moco(state, other):
    encoders = wrap(state, "module.encoder_q.") | wrap(other, "module.encoder_k.") | {"module.queue": torch.rand(8, 4)}
    return {"epoch": 800, "arch": "resnet50", "state_dict": encoders, "optimizer": {"state": {0: torch.rand(3)}}}


def _byol(state, other):
    names = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    renamed = {f"{names[n.split('.')[0]]}.{n.split('.', 1)[1]}": v for n, v in state.items() if not n.startswith("fc")}
    return {"state_dict": wrap(renamed, "online_encoder.") | {"predictor.0.weight": torch.rand(4, 4)}}


WRAPPERS = {
    "plain": (lambda s, o: s, "torchvision or timm", ""),
    "DDP": (lambda s, o: {"state_dict": wrap(s, "module.")}, "torchvision or timm", "module."),
    "Lightning": (lambda s, o: {"state_dict": wrap(s, "model."), "epoch": 3}, "torchvision or timm", "model."),
    "compiled": (lambda s, o: wrap(s, "module._orig_mod."), "torchvision or timm", "module."),
    "MoCo": (_moco, "MoCo", "module.encoder_q."),
    "OpenSelfSup": (lambda s, o: wrap(s, "encoder_q.0.") | wrap(o, "encoder_k.0."), "MoCo", "encoder_q.0."),
    "MoCo v3": (
        lambda s, o: {"state_dict": wrap(s, "module.base_encoder.") | wrap(o, "module.momentum_encoder.")},
        "MoCo v3",
        "module.base_encoder.",
    ),
    "SwAV": (
        lambda s, o: wrap(s, "module.") | {"module.prototypes.weight": torch.rand(4, 4)},
        "SwAV",
        "module.",
    ),
    "DINO": (
        lambda s, o: {
            "student": wrap(o, "module.backbone.") | {"module.head.last_layer.weight_g": torch.rand(4, 1)},
            "teacher": wrap(s, "backbone.") | {"head.last_layer.weight_g": torch.rand(4, 1)},
            "epoch": 100,
        },
        "DINO",
        "backbone.",
    ),
    "Barlow Twins": (
        lambda s, o: {"model": wrap(s, "module.backbone.") | {"module.projector.0.weight": torch.rand(4, 4)}},
        "Barlow Twins or VICReg",
        "module.backbone.",
    ),
    "VICReg": (
        lambda s, o: {"model": wrap(s, "module.backbone.") | {"module.expander.0.weight": torch.rand(4, 4)}},
        "Barlow Twins or VICReg",
        "module.backbone.",
    ),
    "mmengine": (
        lambda s, o: {
            "meta": {"epoch": 12},
            "state_dict": wrap(s, "backbone.") | {"neck.fpn.weight": torch.rand(4, 4)},
            "ema_state_dict": wrap(o, "module.backbone.") | {"steps": torch.tensor(3)},
        },
        "mmdet, mmpretrain or mmseg",
        "backbone.",
    ),
    "mmdet 2 EMA": (
        lambda s, o: {"state_dict": wrap(s, "backbone.") | {f"ema_{n.replace('.', '_')}": v for n, v in o.items()}},
        "mmdet, mmpretrain or mmseg",
        "backbone.",
    ),
    "torchvision detectors": (lambda s, o: wrap(s, "backbone.body."), "torchvision's detectors", "backbone.body."),
    "timm EMA": (lambda s, o: {"state_dict": o, "state_dict_ema": s}, "torchvision or timm", ""),
    "unknown": (lambda s, o: {"nets": {"a": wrap(s, "my.odd/encoder.")}}, "torchvision or timm", "my.odd/encoder."),
    "BYOL": (_byol, "nn.Sequential of torchvision's layers", "online_encoder."),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped(name, check, shake, image, torchvision_levels):
    wrapper, label, prefix = WRAPPERS[name]
    model = shake(torchvision.models.resnet18())
    other = shake(torchvision.models.resnet18(), seed=5).state_dict()
    source = wrapper(model.state_dict(), other)
    report = check(ResNet(depth=18), source, torchvision_levels(model, image))
    assert (report.format, report.prefix) == (label, prefix)


def scheme_of(name):
    return next(scheme for scheme in SCHEMES if scheme.name == name)


def renamed(backbone, rename):
    """A backbone's state dict with names translated by ``rename``, without ``num_batches_tracked``."""
    state = backbone.state_dict()
    return {rename(name): value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def block_layer(name):
    """Split ``layer2.0.bn1.weight`` into stage, block, 'conv' or 'norm', number (None for a shortcut) and leaf."""
    match = re.fullmatch(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(\w+)", name)
    if match is None:
        return None
    stage, block, kind, number, index, leaf = match.groups()
    return int(stage), int(block), kind, number, index, leaf


def stem_layer(name):
    """Split ``stem.4.weight`` or ``conv1.weight`` into number, 'conv' or 'norm', and leaf."""
    if match := re.fullmatch(r"stem\.(\d)\.(\w+)", name):
        return int(match[1]) // 3 + 1, "norm" if int(match[1]) % 3 else "conv", match[2]
    layer, leaf = name.split(".")
    return 1, "norm" if layer == "bn1" else "conv", leaf


def is_projection(index, avg_down):
    """Whether a layer of a shortcut is its convolution, also after a pooling layer."""
    return int(index) == int(avg_down)


def conv_module_stem(name):
    if not name.startswith("stem."):
        return name
    number, kind, leaf = stem_layer(name)
    return f"stem.{number - 1}.{'bn' if kind == 'norm' else 'conv'}.{leaf}"


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("cls", [ResNetV1c, ResNetV1d])
def test_stem_of_conv_modules(cls, prefix, check, shake, image):
    source = shake(cls(depth=18, base_channels=8))
    state = wrap(renamed(source, conv_module_stem), prefix)
    check(cls(depth=18, base_channels=8), state, features(source, image))


def rt_detr_transformers(depth):
    def rename(name):
        if name.startswith("stem."):
            number, kind, leaf = stem_layer(name)
            return f"embedder.embedder.{number - 1}.{'convolution' if kind == 'conv' else 'normalization'}.{leaf}"
        stage, block, kind, number, index, leaf = block_layer(name)
        kind = kind or ("conv" if is_projection(index, True) else "bn")
        word = "convolution" if kind == "conv" else "normalization"
        # The first stage does not stride, so its shortcut does not pool.
        shortcut = "shortcut" if stage == 1 else "shortcut.1"
        layer = shortcut if number is None else f"layer.{int(number) - 1}"
        return f"encoder.stages.{stage - 1}.layers.{block}.{layer}.{word}.{leaf}"

    return rename


def rt_detr_authors(depth):
    def rename(name):
        if name.startswith("stem."):
            number, kind, leaf = stem_layer(name)
            return f"conv1.conv1_{number}.{kind}.{leaf}"
        stage, block, kind, number, index, leaf = block_layer(name)
        kind = (kind or ("conv" if is_projection(index, True) else "bn")).replace("bn", "norm")
        shortcut = "short" if stage == 1 else "short.conv"
        layer = shortcut if number is None else f"branch2{'abc'[int(number) - 1]}"
        return f"res_layers.{stage - 1}.blocks.{block}.{layer}.{kind}.{leaf}"

    return rename


def paddle_leaf(leaf):
    return {"running_mean": "_mean", "running_var": "_variance"}.get(leaf, leaf)


def paddledetection(depth):
    def rename(name):
        if name.startswith("stem."):
            number, kind, leaf = stem_layer(name)
            return f"conv1.conv1_{number}.{kind}.{paddle_leaf(leaf)}"
        stage, block, kind, number, index, leaf = block_layer(name)
        kind = (kind or ("conv" if is_projection(index, True) else "bn")).replace("bn", "norm")
        shortcut = "short" if stage == 1 else "short.conv"
        layer = shortcut if number is None else f"branch2{'abc'[int(number) - 1]}"
        return f"res{stage + 1}.res{stage + 1}{chr(ord('a') + block)}.{layer}.{kind}.{paddle_leaf(leaf)}"

    return rename


def paddleclas(depth):
    blocks = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)

    def rename(name):
        if name.startswith("stem."):
            number, kind, leaf = stem_layer(name)
            return f"stem.{number - 1}.{kind.replace('norm', 'bn')}.{paddle_leaf(leaf)}"
        stage, block, kind, number, index, leaf = block_layer(name)
        kind = kind or ("conv" if is_projection(index, True) else "bn")
        layer = "short" if number is None else f"conv{int(number) - 1}"
        return f"blocks.{sum(blocks[: stage - 1]) + block}.{layer}.{kind}.{paddle_leaf(leaf)}"

    return rename


def paddleclas_before_2_2(depth):
    def rename(name):
        if name.startswith("stem."):
            number, kind, leaf = stem_layer(name)
            return f"conv1_{number}.{'_conv' if kind == 'conv' else '_batch_norm'}.{paddle_leaf(leaf)}"
        stage, block, kind, number, index, leaf = block_layer(name)
        kind = kind or ("conv" if is_projection(index, True) else "bn")
        layer = "short" if number is None else f"conv{int(number) - 1}"
        return f"bb_{stage - 1}_{block}.{layer}.{'_conv' if kind == 'conv' else '_batch_norm'}.{paddle_leaf(leaf)}"

    return rename


def paddle_parameters(depth):
    """The names of Paddle's static graphs, as PaddleClas and PaddleDetection wrote them until 2020."""
    leaves = {"weight": "scale", "bias": "offset", "running_mean": "mean", "running_var": "variance"}

    def rename(name):
        if name.startswith("stem."):
            number, kind, leaf = stem_layer(name)
            return f"conv1_{number}_weights" if kind == "conv" else f"bnv1_{number}_{leaves[leaf]}"
        stage, block, kind, number, index, leaf = block_layer(name)
        kind = kind or ("conv" if is_projection(index, True) else "bn")
        branch = "1" if number is None else f"2{'abc'[int(number) - 1]}"
        of_stage = f"{stage + 1}{chr(ord('a') + block)}_branch{branch}"
        return f"res{of_stage}_weights" if kind == "conv" else f"bn{of_stage}_{leaves[leaf]}"

    return rename


VD = {
    "transformers": (rt_detr_transformers, "model.backbone.model."),
    "RT-DETR": (rt_detr_authors, "backbone."),
    "PaddleDetection": (paddledetection, ""),
    "PaddleClas": (paddleclas, ""),
    "PaddleClas before 2.2": (paddleclas_before_2_2, ""),
    "Paddle, static graph": (paddle_parameters, ""),
}


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("scheme", VD)
def test_resnet_vd(scheme, depth, check, shake, image):
    rename, prefix = VD[scheme]
    options = dict(depth=depth, base_channels=8, **({} if depth == 50 else {"projection_shortcut": True}))
    source = shake(ResNetV1d(**options))
    report = check(ResNetV1d(**options), wrap(renamed(source, rename(depth)), prefix), features(source, image))
    assert (report.format, report.prefix) == (scheme.partition(" before")[0], prefix)
    if depth != 50:
        with raises(MismatchError, f"ResNet-{depth}", "layer1.0", "projection_shortcut=True"):
            load_pretrained(ResNetV1d(depth=depth, base_channels=8), renamed(source, rename(depth)))


def test_file_without_the_projection_is_rejected():
    with raises(MismatchError, "ResNet-18", "layer1.0", "projection_shortcut=False"):
        load_pretrained(
            ResNet(depth=18, base_channels=8, projection_shortcut=True), ResNet(depth=18, base_channels=8).state_dict()
        )


def test_paddledetection_stages_with_many_blocks():
    rename = scheme_of("PaddleDetection").rename
    assert rename("res4.res4a.branch2a.conv.weight") == "layer3.0.conv1.weight"
    assert rename("res4.res4b22.branch2c.norm._mean") == "layer3.22.norm3.running_mean"


def test_paddle_names_of_stems_and_long_stages():
    rename = scheme_of("Paddle, static graph").rename
    assert rename("conv1_weights") == "stem.conv1.weight"
    assert rename("bn_conv1_offset") == "stem.norm1.bias"
    assert rename("bn4b22_branch2c_variance") == "layer3.22.norm3.running_var"
    assert rename("fc_0.w_0") == "fc_0.w_0"
    assert scheme_of("PaddleClas").rename("conv._batch_norm._mean") == "stem.norm1.running_mean"


def test_folded_norm_layers_of_paddle(check, shake, image):
    # PaddleDetection's affine_channel: a scale and an offset, without statistics.
    source = shake(ResNetV1d(depth=50, base_channels=8))
    for module in source.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.running_var.fill_(1 - module.eps)
    state = renamed(source, paddle_parameters(50))
    state = {name: value for name, value in state.items() if not name.endswith(("_mean", "_variance"))}
    report = check(ResNetV1d(depth=50, base_channels=8), state, features(source, image))
    assert "folded" in report.changes[0]


def test_paddle_vision(check, shake, image, torchvision_levels):
    model = shake(torchvision.models.resnet18())
    state = {}
    for name, value in model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        state[f"{owner}.{paddle_leaf(leaf)}"] = value.numpy()
    check(
        ResNet(depth=18),
        {**state, "StructuredToParameterName@@": {"fc.weight": "linear_0.w_0"}},
        torchvision_levels(model, image),
    )


def conv_modules(name):
    if block_layer(name) is None:
        _, kind, leaf = stem_layer(name)
        return f"conv1.{kind.replace('norm', 'bn')}.{leaf}"
    stage, block, kind, number, index, leaf = block_layer(name)
    kind = kind or ("conv" if index == "0" else "bn")
    return f"layer{stage}.{block}.{'downsample' if number is None else f'conv{number}'}.{kind}.{leaf}"


@pytest.mark.parametrize("depth", DEPTHS)
def test_mmaction(depth, check, shake, image):
    source = shake(ResNet(depth=depth, base_channels=8))
    state = wrap(renamed(source, conv_modules), "backbone.") | {"cls_head.fc_cls.weight": torch.rand(4, 4)}
    report = check(ResNet(depth=depth, base_channels=8), {"state_dict": state}, features(source, image))
    assert report.format == "mmaction2"


@pytest.mark.parametrize("depth", DEPTHS)
def test_nvidia(depth, check, shake, image):
    source = shake(ResNet(depth=depth, base_channels=8))
    state = renamed(source, lambda name: re.sub(r"^layer(\d)", lambda m: f"layers.{int(m[1]) - 1}", name))
    report = check(
        ResNet(depth=depth, base_channels=8), {"state_dict": wrap(state, "module.")}, features(source, image)
    )
    assert report.format == "NVIDIA"


VOLUMES = dict(base_channels=8, conv_cfg=dict(type="Conv3d"), norm_cfg=dict(type="BN3d"))


def video(name):
    if block_layer(name) is None:
        return {"conv1": "stem.0", "bn1": "stem.1"}[name.split(".")[0]] + name[name.index(".") :]
    stage, block, kind, number, index, leaf = block_layer(name)
    layer = f"downsample.{index}" if number is None else f"conv{number}.{int(kind == 'bn')}"
    return f"layer{stage}.{block}.{layer}.{leaf}"


def pytorchvideo(name):
    if block_layer(name) is None:
        _, kind, leaf = stem_layer(name)
        return f"blocks.0.{kind}.{leaf}"
    stage, block, kind, number, index, leaf = block_layer(name)
    kind = (kind or ("conv" if index == "0" else "bn")).replace("bn", "norm")
    layer = f"branch1_{kind}" if number is None else f"branch2.{kind}_{'abc'[int(number) - 1]}"
    return f"blocks.{stage}.res_blocks.{block}.{layer}.{leaf}"


@pytest.mark.parametrize(("rename", "label"), [(video, "torchvision's video ResNets"), (pytorchvideo, "pytorchvideo")])
@pytest.mark.parametrize("depth", DEPTHS)
def test_volumes(rename, label, depth, shake, relative_difference):
    source = shake(ResNet(depth=depth, **VOLUMES))
    backbone = ResNet(depth=depth, **VOLUMES)
    report = load_pretrained(backbone, renamed(source, rename))
    assert report.format == label
    assert not report.missing
    assert report.preprocessing is None
    x = torch.randn(1, 3, 8, 16, 16)
    assert relative_difference(features(backbone, x), features(source, x)) < 1e-5


def test_pytorchvideo_pooling_between_stages(shake):
    # C2D and I3D have a pooling behind the first stage, which counts as a block.
    source = shake(ResNet(depth=50, **VOLUMES))
    state = renamed(
        source, lambda name: re.sub(r"^blocks\.([2-4])", lambda m: f"blocks.{int(m[1]) + 1}", pytorchvideo(name))
    )
    backbone = ResNet(depth=50, **VOLUMES)
    assert not load_pretrained(backbone, state).missing
    assert torch.equal(backbone.layer2[0].conv1.weight, source.layer2[0].conv1.weight)


@pytest.mark.parametrize(
    ("make", "scheme"),
    [("r3d_18", "torchvision's video ResNets"), ("mc3_18", "torchvision's video ResNets")],
)
def test_video_networks_with_other_stems_are_rejected_by_shape(make, scheme):
    state = getattr(torchvision.models.video, make)().state_dict()
    with raises(MismatchError, "conv1.weight", "(64, 3, 3, 7, 7)"):
        load_pretrained(ResNet(depth=18, conv_cfg=dict(type="Conv3d"), norm_cfg=dict(type="BN3d")), state)


OTHER_NETWORKS = {
    "CLIP": [
        "visual.conv1.weight",
        "visual.conv3.weight",
        "visual.layer1.0.conv1.weight",
        "visual.attnpool.c_proj.bias",
    ],
    "CLIP without its head": ["conv1.weight", "conv3.weight", "layer1.0.conv1.weight"],
    "R(2+1)D": ["stem.0.weight", "layer1.0.conv1.0.0.weight"],
    "BiT": ["resnet/root_block/standardized_conv2d/kernel", "resnet/block1/unit01/a/standardized_conv2d/kernel"],
    "Keras": ["conv1_conv/kernel:0", "conv2_block1_1_conv/conv2_block1_1_conv/kernel:0"],
}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", OTHER_NETWORKS)
def test_other_networks_are_named(name, strict):
    state = {key: torch.zeros(8, 3, 3, 3) for key in OTHER_NETWORKS[name]}
    error = CheckpointError if name in ("R(2+1)D", "BiT", "Keras") else MismatchError
    with raises(error, name.partition(" without")[0]):
        load_pretrained(ResNet(depth=50, base_channels=8), state, strict=strict)


def test_timms_bit_is_named():
    with torch.device("meta"):
        state = timm.create_model("resnetv2_50x1_bit").state_dict()
    with raises(CheckpointError, "BiT"):
        load_pretrained(ResNet(depth=50), state)


def test_transformer_is_not_taken_for_bit():
    state = {"patch_embed.projection.weight": torch.zeros(8, 3, 4, 4), "stages.0.blocks.0.norm1.weight": torch.zeros(8)}
    with raises(CheckpointError, "patch_embed.projection.weight") as caught:
        load_pretrained(ResNet(depth=18, base_channels=8), state)
    assert "BiT" not in str(caught.value)


def test_list_of_many_networks_is_shortened():
    state = {f"net{number}.layer1.0.conv1.weight": torch.zeros(1, 1, 1, 1) for number in range(10_000)}
    with raises(CheckpointError, "10000", "'net0.'", "9990", "prefix") as caught:
        load_pretrained(ResNet(depth=18, base_channels=8), state)
    assert len(str(caught.value)) < 1000
    with pytest.raises(MismatchError):
        load_pretrained(ResNet(depth=18, base_channels=8), state, prefix="net77.")


def test_networks_with_too_many_names_are_not_compared(monkeypatch):
    state = {"." * number + "layer1.0.conv1.weight": torch.zeros(1, 1, 1, 1) for number in range(20)}
    with pytest.raises(MismatchError):
        load_pretrained(ResNet(depth=18, base_channels=8), state)
    monkeypatch.setattr(load, "_MAX_NAMES", 30)
    with raises(CheckpointError, "20 networks"):
        load_pretrained(ResNet(depth=18, base_channels=8), state)
    monkeypatch.setattr(load, "_MAX_NAMES", 10)
    with raises(CheckpointError, "20 tensors"):
        load_pretrained(ResNet(depth=18, base_channels=8), state)


def test_keys_that_are_not_parameter_names_are_ignored(shake):
    source = shake(ResNet(depth=18, base_channels=8))
    state = {**source.state_dict(), "\x1b[2Jlayer1": torch.zeros(2), "layer1.0." + "x" * 10_000: torch.zeros(2)}
    report = load_pretrained(ResNet(depth=18, base_channels=8), state)
    assert not report.unexpected
    assert "\x1b" not in str(report)


def transformers_name(name):
    parts = name.split(".")
    leaf = parts[-1]
    if parts[0] in ("conv1", "bn1"):
        return f"resnet.embedder.embedder.{'convolution' if parts[0] == 'conv1' else 'normalization'}.{leaf}"
    if parts[0] == "fc":
        return f"classifier.1.{leaf}"
    stage = f"resnet.encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}"
    if parts[2] == "downsample":
        return f"{stage}.shortcut.{'convolution' if parts[3] == '0' else 'normalization'}.{leaf}"
    kind = "convolution" if parts[2].startswith("conv") else "normalization"
    return f"{stage}.layer.{int(parts[2][-1]) - 1}.{kind}.{leaf}"


def test_transformers_names(check, shake, image, torchvision_levels):
    model = shake(torchvision.models.resnet50())
    state = {transformers_name(name): value for name, value in model.state_dict().items()}
    source = state
    report = check(ResNet(depth=50), source, torchvision_levels(model, image))
    assert report.format == "transformers"


def test_pycls_and_timm_regnets_get_canonical_names():
    (found,) = find_prefixes(timm.create_model("regnetx_004").state_dict())
    assert found.scheme.name == "timm RegNet"
    assert found.scheme.rename("s2.b1.conv2.conv.weight") == "layer2.0.conv2.weight"
    assert found.scheme.rename("s2.b1.downsample.bn.running_var") == "layer2.0.downsample.1.running_var"
    pycls = next(scheme for scheme in SCHEMES if scheme.name == "pycls")
    names = ["stem.bn.bias", "s1.b2.f.c_bn.weight", "s3.b1.proj.weight", "s3.b1.bn.weight", "head.fc.bias"]
    assert list(map(pycls.rename, names)) == [
        "stem.norm1.bias",
        "layer1.1.norm3.weight",
        "layer3.0.downsample.0.weight",
        "layer3.0.downsample.1.weight",
        "head.fc.bias",
    ]


def test_renaming_is_injective_for_every_kind_of_network():
    for backbone in (ResNet(depth=18), ResNet(depth=50), ResNetV1c(depth=50), ResNetV1d(depth=18)):
        names, _ = module_names({name: tuple(value.shape) for name, value in backbone.state_dict().items()})
        assert len(set(names.values())) == len(names)


def test_two_networks_of_one_kind_need_a_prefix(shake, image, torchvision_levels, check):
    model = shake(torchvision.models.resnet18())
    other = shake(torchvision.models.resnet18(), seed=5)
    source = wrap(model.state_dict(), "left.") | wrap(other.state_dict(), "right.")
    with raises(CheckpointError, "2", "'left.'", "'right.'", "prefix"):
        load_pretrained(ResNet(depth=18), source)
    for prefix in ("left", "left."):
        check(ResNet(depth=18), source, torchvision_levels(model, image), prefix=prefix)
    with raises(CheckpointError, "prefix='up'", "'left.'", "'right.'"):
        load_pretrained(ResNet(depth=18), source, prefix="up")


def test_two_state_dicts_need_a_prefix(shake, image, torchvision_levels, check, tmp_path):
    models = {name: shake(torchvision.models.resnet18(), seed) for seed, name in enumerate(("first", "second"))}
    source = {"nets": {name: model.state_dict() for name, model in models.items()}}
    with raises(CheckpointError, "2", "'nets.first.'", "'nets.second.'", "prefix"):
        load_pretrained(ResNet(depth=18), source)
    for name, model in models.items():
        levels = torchvision_levels(model, image)
        check(ResNet(depth=18), source, levels, prefix=f"nets.{name}")


def test_shared_state_dict_is_one_network(shake, image, torchvision_levels, check):
    model = shake(torchvision.models.resnet18())
    state = dict(model.state_dict())
    checkpoint = {"best": state, "last": state}
    checkpoint["itself"] = checkpoint
    source = checkpoint
    check(ResNet(depth=18), source, torchvision_levels(model, image))

"""``resnet-backbone info``: counts compared with torchvision's model, calculations by hand and autograd."""

import copy

import pytest
import torch
from helpers import assert_mentions, assert_same_bits, raises
from torch import nn

from benchmarks.bench.measure import saved_bytes
from resnet_backbone import MultiScaleResNet1d, ResNet, ResNetV1c
from resnet_backbone.errors import ArgumentError, ArgumentTypeError
from resnet_backbone.tools.cli import main
from resnet_backbone.tools.info import describe

SMALL = dict(base_channels=4)
SIZE = (64, 96)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def macs_by_hooks(model, x):
    """Count independently of the tool: each output of a convolution is a sum over one filter."""
    macs = 0

    def count(conv, _, out):
        nonlocal macs
        macs += out.numel() * conv.weight[0].numel()

    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, (*CONVS, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(x)
    return macs


def state_of(backbone):
    tensors = [*backbone.state_dict().values(), *(p.grad for p in backbone.parameters())]
    return [t if t is None else t.clone() for t in tensors], [module.training for module in backbone.modules()]


@pytest.mark.parametrize(("depth", "classifier"), [(18, 512), (50, 2048)])
def test_counts_match_torchvision(depth, classifier):
    models = pytest.importorskip("torchvision.models", reason="the network to compare with")
    with torch.device("meta"):
        peer = getattr(models, f"resnet{depth}")()
    ours = describe(ResNet(depth))
    fc = 1000 * classifier
    assert ours.total.params == sum(parameter.numel() for parameter in peer.parameters()) - fc - 1000
    with torch.device("meta"):
        x = torch.empty(1, 3, 224, 224)
    assert ours.total.macs == macs_by_hooks(peer, x) - fc
    # GFLOPS from torchvision's documentation, for the network with its classifier.
    documented = models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1.meta["_ops"]
    assert round((ours.total.macs + fc) / 1e9, 1) == round(documented, 1)


def test_counts_of_resnet50():
    description = describe(ResNet(50, frozen_stages=1).train())
    assert [part.name for part in description.parts] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert [part.channels for part in description.parts] == [64, 256, 512, 1024, 2048]
    assert [part.stride for part in description.parts] == [4, 4, 8, 16, 32]
    assert [part.size for part in description.parts] == [(56, 56), (56, 56), (28, 28), (14, 14), (7, 7)]
    assert [part.layers for part in description.parts][:2] == ["conv 7x7, max pool", "3 Bottleneck"]
    assert description.total.params == 23_508_032
    assert description.total.macs == 4_087_136_256
    assert [part.trainable for part in description.parts][:2] == [0, 0]
    assert description.total.trainable == 23_508_032 - 9_536 - 215_808
    assert [part.saved_bytes for part in description.parts][:2] == [0, 0]


VARIANTS = {
    "plain": ResNet(18, **SMALL),
    "eval": ResNet(18, **SMALL).eval(),
    "norms in train mode": ResNet(50, norm_eval=False, frozen_stages=2, **SMALL).train(),
    "deep stem, GN, checkpoints": ResNetV1c(18, norm_cfg=dict(type="GN", num_groups=2), with_cp=True, **SMALL),
    "three stages, one unused": ResNet(
        18, num_stages=3, strides=(1, 2, 1), dilations=(1, 1, 2), out_indices=(0, 1), **SMALL
    ),
    "folded": ResNet(50, fold_norm=True, frozen_stages=1, **SMALL).train(),
    "deployed": ResNet(18, **SMALL).switch_to_deploy(),
    "SyncBN": ResNet(18, norm_cfg=dict(type="SyncBN"), norm_eval=False, **SMALL).train(),
    "float64": ResNet(18, **SMALL).double(),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_are_right_and_the_backbone_is_unchanged(name):
    backbone = VARIANTS[name]
    for parameter in backbone.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, modes = state_of(backbone)
    generator = torch.get_rng_state()
    with torch.no_grad():
        description = describe(backbone, SIZE, batch=2)
    after, modes_after = state_of(backbone)
    assert_same_bits(before, after)
    assert modes == modes_after
    assert torch.equal(generator, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())

    assert description.input_shape == (2, 3, *SIZE)
    assert description.total.params == sum(parameter.numel() for parameter in backbone.parameters())
    plain = copy.deepcopy(backbone)
    if backbone.fold_norm:
        plain._set_fold_norm(False)
    x = torch.zeros(2, 3, *SIZE, dtype=next(backbone.parameters()).dtype)
    assert description.total.macs == macs_by_hooks(plain, x)
    if name != "SyncBN":  # which runs in a process group alone
        assert description.total.saved_bytes == saved_bytes(backbone, lambda: backbone(x))


def test_unused_stages_have_only_parameters():
    last = describe(VARIANTS["three stages, one unused"], SIZE).parts[-1]
    assert last.size is None
    assert (last.macs, last.saved_bytes) == (0, 0)
    assert last.params > 0
    assert last.layers == "2 BasicBlock, dilation 2"
    assert "not run" in last.cells


def test_norms_are_named_with_their_mode():
    norms = describe(ResNet(50, norm_eval=False, frozen_stages=2, **SMALL).train(), SIZE).parts
    assert [part.norms for part in norms] == [
        f"{count} BatchNorm2d {mode}"
        for count, mode in [(1, "eval"), (10, "eval"), (13, "eval"), (19, "train"), (10, "train")]
    ]
    assert describe(VARIANTS["folded"], SIZE).parts[1].norms == "10 BatchNorm2d eval folded"
    assert describe(VARIANTS["deployed"], SIZE).parts[1].norms == ""
    assert describe(VARIANTS["deep stem, GN, checkpoints"], SIZE).parts[0].norms == "3 GroupNorm"
    # A norm whose convolution has a hook is not folded.
    hooked = copy.deepcopy(VARIANTS["folded"])
    hooked.layer2[0].conv1.register_forward_hook(lambda *_: None)
    assert describe(hooked, SIZE).parts[2].norms == "1 BatchNorm2d eval, 12 BatchNorm2d eval folded"


def test_folding_halves_the_saved_bytes():
    exact, folded = (describe(ResNet(50, fold_norm=fold, **SMALL).train(), (224, 224)) for fold in (False, True))
    assert exact.total.macs == folded.total.macs
    assert folded.total.saved_bytes < 0.6 * exact.total.saved_bytes


def test_checkpointed_blocks_save_their_inputs():
    backbone = ResNet(18, with_cp=True, frozen_stages=1, out_indices=(3,), **SMALL).train()
    parts = {part.name: part for part in describe(backbone, SIZE).parts}
    assert parts["layer1"].saved_bytes == 0
    # The output of the first block, which the second one's ReLU, outside of the checkpoint, makes its own output of.
    assert parts["layer3"].saved_bytes == 4 * 2 * 16 * (64 // 16) * (96 // 16)
    assert parts["layer3"].layers == "2 BasicBlock, checkpointed"


@pytest.mark.parametrize(("kind", "per_point"), [("DCN", 2), ("DCNv2", 3)])
def test_deformable_convolutions_count_with_their_offsets(kind, per_point):
    pytest.importorskip("torchvision", reason="its operator stands in where mmcv is not compiled")
    plain = ResNet(50, **SMALL)
    dcn = ResNet(50, dcn=dict(type=kind), stage_with_dcn=(False, False, True, False), **SMALL)
    deform, ordinary = describe(dcn, SIZE), describe(plain, SIZE)
    layer = type(dcn.layer3[0].conv2).__name__
    assert deform.parts[3].layers == f"6 Bottleneck, 6 {layer}"
    # Six 3x3 convolutions with as many inputs as the 3x3 that they serve; the first strides.
    positions = (64 // 16) * (96 // 16)
    offsets = 6 * positions * (16 * 9) * (per_point * 9)
    assert deform.parts[3].macs - ordinary.parts[3].macs == offsets
    assert [part.macs for part in deform.parts][:3] == [part.macs for part in ordinary.parts][:3]
    assert any("interpolation" in note for note in deform.notes)
    assert not any("interpolation" in note for note in ordinary.notes)


def test_plugins_are_named_and_counted():
    plugins = [
        dict(cfg=dict(type="ContextBlock", ratio=0.25), stages=(False, True, False, False), position="after_conv3")
    ]
    with_plugins, plain = describe(ResNet(50, plugins=plugins, **SMALL), SIZE), describe(ResNet(50, **SMALL), SIZE)
    assert with_plugins.parts[2].layers == "4 Bottleneck, 4 ContextBlock"
    assert with_plugins.parts[2].macs > plain.parts[2].macs
    assert with_plugins.parts[3].macs == plain.parts[3].macs


def test_signals_and_volumes():
    signals = ResNet(18, conv_cfg=dict(type="Conv1d"), norm_cfg=dict(type="BN1d"), **SMALL).train()
    description = describe(signals)
    assert description.input_shape == (1, 3, 1000)
    assert [part.size for part in description.parts] == [(250,), (250,), (125,), (63,), (32,)]
    assert description.total.macs == macs_by_hooks(signals, torch.zeros(1, 3, 1000))
    volumes = ResNet(18, conv_cfg=dict(type="Conv3d"), norm_cfg=dict(type="BN3d"), **SMALL).train()
    assert describe(volumes, (8, 32, 32)).parts[-1].size == (1, 1, 1)


def test_multi_scale_resnet():
    backbone = MultiScaleResNet1d(in_channels=2, base_channels=4)
    description = describe(backbone, (400,))
    assert description.parts[1].channels == backbone.out_channels[0] == 12
    assert description.parts[1].layers == "1 BasicBlock1d in each branch, kernels 3 5 7"
    assert description.total.macs == macs_by_hooks(backbone, torch.zeros(1, 2, 400))
    classifier = describe(MultiScaleResNet1d(base_channels=4, num_classes=5, padding="reference"), (400,))
    assert classifier.parts[-1].name == "fc"
    assert classifier.parts[-1].macs == 5 * 4 * 4 * 3
    assert any("branches' lengths" in note for note in classifier.notes)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(size=(64,)), ArgumentError, ["size", "(64,)", "2", "1", "(N, C, H, W)"]),
        (dict(size=(64, 0)), ArgumentError, ["size", "(64, 0)", "2", "1", "(N, C, H, W)"]),
        (dict(size=SIZE, batch=0), ArgumentError, ["batch", "0", "1"]),
        (dict(backbone=nn.Conv2d(3, 4, 1)), ArgumentTypeError, ["backbone", "Conv2d", "ResNet"]),
        (dict(backbone=ResNet(18, **SMALL).to("meta")), ArgumentError, ["backbone", "'meta'"]),
        (
            dict(backbone=ResNet(18, norm_eval=False, **SMALL).train(), size=(32, 32)),
            ArgumentError,
            ["size=(32, 32)", "batch=1", "small"],
        ),
    ],
)
def test_wrong_arguments_are_rejected(arguments, error, words):
    with raises(error, *words):
        describe(**{"backbone": VARIANTS["plain"], **arguments})


def test_text_is_an_aligned_table():
    description = describe(VARIANTS["plain"], SIZE)
    title, headings, rule, *rows = str(description).splitlines()
    assert title == "ResNet-18, frozen_stages=-1, train mode; input 1 x 3 x 64 x 96"
    assert set(rule) == {"-"}
    for row, part in zip(rows, description.parts):
        assert row[headings.index("output") :].startswith(" x ".join(map(str, part.size)))


def test_command(tmp_path, capsys):
    config = tmp_path / "config.py"
    config.write_text(
        "model = dict(backbone=dict(type='ResNet', depth=18, base_channels=4, norm_cfg=dict(type='BN'),"
        "init_cfg=dict(type='Pretrained', checkpoint='missing.pth')))"
    )
    command = ["info", "--config", str(config), "--frozen-stages", "2", "--size", "64", "96", "--batch", "2"]
    assert main([*command, "--cfg-options", "norm_eval=False", "norm_cfg.momentum=0.01"]) == 0
    printed = capsys.readouterr().out
    assert "ResNet-18, frozen_stages=2, train mode; input 2 x 3 x 64 x 96" in printed
    rows = {line.split()[0]: line for line in printed.splitlines()}
    assert "5 BatchNorm2d eval" in rows["layer2"]
    assert "5 BatchNorm2d train" in rows["layer3"]
    assert "total" in rows
    assert main([*command, "--eval"]) == 0
    assert "eval mode" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--depth", "51"], ["depth", "51", "18, 34, 50, 101, 152"]),
        (["--config", "missing.py"], ["config", "'missing.py'", "file", "resnet_backbone"]),
        (
            ["--config", "_base_/backbones/resnet19.py"],
            ["config", "'_base_/backbones/resnet19.py'", "'_base_/backbones/resnet18.py'"],
        ),
        (["--cfg-options", "frozen"], ["--cfg-options", "'frozen'", "key=value"]),
        (
            ["--cfg-options", "norm_cfg=dict(type='GN',num_groups=32)"],
            ["--cfg-options", "norm_cfg=dict(type='GN',num_groups=32)", "norm_cfg.type=GN norm_cfg.num_groups=32"],
        ),
        (["--cfg-options", "with_cp=True", "out_indices=(1,2"], ["--cfg-options", "'out_indices=(1,2'", "key=value"]),
        (["--cfg-options", "type=ResNetV1e"], ["'ResNetV1e'", "'mmdet'", "'ResNetV1d'"]),
        (["--cfg-options", "type=Unheard"], ["'Unheard'", "'mmdet'", "ResNet, ResNetV1d, ResNeXt, RegNet"]),
        (["--cfg-options", "depth.x=3"], ["--cfg-options", "'depth.x=3'", "key=value"]),
        (["--cfg-options", "frozen_stage=1"], ["ResNet", "'frozen_stage'", "'frozen_stages'"]),
    ],
)
def test_command_rejects(arguments, words, capsys):
    assert main(["info", *arguments]) == 1
    error = capsys.readouterr().err
    assert_mentions(error, *words)
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.py", "model = dict(neck=dict(type='FPN'))", ["model.backbone", "type"]),
        ("config.py", "model = dict(", ["SyntaxError"]),
        ("config.txt", "nothing", ["OSError"]),
    ],
)
def test_configs_without_a_backbone_are_rejected(name, text, words, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    assert main(["info", "--config", str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    assert_mentions(error, "config", repr(str(tmp_path / name)), *words)

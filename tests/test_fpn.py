"""The backbone with a feature pyramid, in torchvision's detectors."""

import pytest
import torch
from helpers import assert_mentions, raises
from torchvision.models import get_model
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from resnet_backbone import MultiScaleResNet1d, ResNet, ResNetV1d, with_fpn
from resnet_backbone.errors import ArgumentError, ArgumentTypeError

SIDE = 128


def test_matches_torchvision():
    theirs = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=3
    ).eval()
    ours = with_fpn(ResNet(50, frozen_stages=1)).eval()
    # The names are torchvision's, so its checkpoints load.
    ours.load_state_dict(theirs.state_dict())
    assert [name for name, parameter in ours.named_parameters() if parameter.requires_grad] == [
        name for name, parameter in theirs.named_parameters() if parameter.requires_grad
    ]
    x = torch.randn(2, 3, 96, 128)
    levels, expected = ours(x), theirs(x)
    assert list(levels) == list(expected) == ["0", "1", "2", "3", "pool"]
    assert ours.out_channels == theirs.out_channels == 256
    for name, level in levels.items():
        assert torch.equal(level, expected[name])
    loss, expected_loss = (sum(level.square().sum() for level in found.values()) for found in (levels, expected))
    loss.backward()
    expected_loss.backward()
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters()):
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, other.grad), name


def test_accepts_frozen_batch_norms():
    theirs = resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d).eval()
    for module in theirs.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    # torchvision's frozen norm computes in another order.
    theirs.double()
    ours = with_fpn(ResNet(18)).double().eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert not unexpected
    x = torch.randn(1, 3, 64, 64).double()
    for level, expected in zip(ours(x).values(), theirs(x).values()):
        torch.testing.assert_close(level, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [
        (ResNet(18, base_channels=8, out_indices=(1, 2, 3)), (8, 16, 32, 64)),
        (ResNetV1d(50, base_channels=8, out_indices=(3,)), (32, 64)),
        (ResNet(18, base_channels=8, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)), (4, 8, 8, 8, 16)),
    ],
    ids=["three levels", "one level", "dilated"],
)
def test_levels(backbone, strides):
    levels = with_fpn(backbone, out_channels=16).eval()(torch.rand(1, 3, SIDE, SIDE))
    assert list(levels)[-1] == "pool"
    assert [tuple(level.shape) for level in levels.values()] == [(1, 16, SIDE // s, SIDE // s) for s in strides]


def test_norm_layer_and_extra_blocks():
    channels = ResNet(18).out_channels[-1]
    for made_of in (channels, 32):
        pyramid = with_fpn(ResNet(18), 32, LastLevelP6P7(made_of, 32), norm_layer=torch.nn.BatchNorm2d).eval()
        levels = pyramid(torch.rand(1, 3, SIDE, SIDE))
        assert list(levels) == ["0", "1", "2", "3", "p6", "p7"]
        assert levels["p7"].shape == (1, 32, 1, 1)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in pyramid.fpn.modules())


def test_deployed_and_folded_are_close():
    backbone = ResNet(18, base_channels=16, zero_init_residual=False, fold_norm=True)
    backbone.init_weights()
    pyramid, x = with_fpn(backbone, 16).eval(), torch.randn(1, 3, 64, 64)
    folded = pyramid(x)
    backbone.fold_norm = False
    exact = pyramid(x)
    backbone.switch_to_deploy()
    for name, level in pyramid(x).items():
        torch.testing.assert_close(level, exact[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(folded[name], exact[name], rtol=1e-4, atol=1e-5)


def rectangles(count):
    """Images with one bright square each, and the targets that torchvision's detectors train on."""
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(count):
        image = torch.rand(3, SIDE, SIDE, generator=generator) * 0.2
        size = int(torch.randint(32, 64, (), generator=generator))
        x, y = torch.randint(0, SIDE - size, (2,), generator=generator).tolist()
        image[:, y : y + size, x : x + size] = 0.9
        images.append(image)
        targets.append(dict(boxes=torch.tensor([[x, y, x + size, y + size]]).float(), labels=torch.tensor([1])))
    return images, targets


def detector(kind):
    backbone = ResNet(18, base_channels=16, out_indices=(1, 2, 3), norm_eval=False, zero_init_residual=False)
    backbone.init_weights()
    options = dict(num_classes=2, min_size=SIDE, max_size=SIDE, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    sizes = ((16,), (32,), (64,), (96,))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4)
    if kind == "FasterRCNN":
        few = dict(rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=50, box_batch_size_per_image=32)
        return FasterRCNN(with_fpn(backbone, 32), rpn_anchor_generator=anchors, **few, **options)
    pyramid = with_fpn(backbone, 32, LastLevelP6P7(32, 32))
    if kind == "RetinaNet":
        anchors = AnchorGenerator((*sizes, (112,)), ((1.0,),) * 5)
        return RetinaNet(pyramid, anchor_generator=anchors, **options)
    return FCOS(
        pyramid, anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5), **options
    )


@pytest.mark.parametrize(("kind", "steps"), [("FasterRCNN", 80), ("RetinaNet", 60), ("FCOS", 40)])
def test_torchvision_detectors_train(kind, steps):
    model = detector(kind).train()
    images, targets = rectangles(4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(model(images, targets).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    model.eval()
    with torch.no_grad():
        found = model(images)
    for image, detections, target in zip(images, found, targets):
        assert image.shape == (3, SIDE, SIDE)
        best = detections["boxes"][detections["scores"].argmax()]
        assert overlap(best, target["boxes"][0]) > 0.5


def test_mask_rcnn_trains_and_predicts_masks():
    torch.manual_seed(0)
    backbone = ResNet(18, base_channels=16, frozen_stages=1)
    options = dict(min_size=SIDE, max_size=SIDE, box_score_thresh=0.0, box_detections_per_img=3)
    model = MaskRCNN(with_fpn(backbone, 32), num_classes=2, **options).train()
    images, targets = rectangles(2)
    for target in targets:
        left, top, right, bottom = target["boxes"][0].int().tolist()
        target["masks"] = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
        target["masks"][0, top:bottom, left:right] = 1
    losses = model(images, targets)
    assert "loss_mask" in losses
    losses["loss_mask"].backward()
    trainable = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trainable)
    with torch.no_grad():
        found = model.eval()(images)
    for detections in found:
        assert detections["masks"].shape == (len(detections["boxes"]), 1, SIDE, SIDE)


def overlap(one, other):
    low, high = torch.maximum(one[:2], other[:2]), torch.minimum(one[2:], other[2:])
    shared = (high - low).clamp(min=0).prod()
    areas = [(box[2:] - box[:2]).prod() for box in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize(
    ("arguments", "exception", "words"),
    [
        ((get_model("resnet18", weights=None),), ArgumentTypeError, ["backbone", "ResNet", "feature_info"]),
        ((ResNet,), ArgumentTypeError, ["backbone", "class ResNet", "feature_info"]),
        ((MultiScaleResNet1d(in_channels=12),), ArgumentError, ["backbone", "MultiScaleResNet1d", "(N, C, H, W)"]),
        ((ResNet(18), 0), ArgumentError, ["out_channels", "0", "1"]),
        ((ResNet(18), 64, "pool"), ArgumentTypeError, ["extra_blocks", "'pool'", "ExtraFPNBlock"]),
        (
            (ResNet(18), 64, LastLevelP6P7(256, 64)),
            ArgumentError,
            ["extra_blocks", *(f"LastLevelP6P7({size}, 64)" for size in (512, 64, 256))],
        ),
        ((ResNet(18), 64, LastLevelMaxPool(), 3), ArgumentTypeError, ["norm_layer", "3", "torch.nn.BatchNorm2d"]),
    ],
    ids=["foreign", "class", "signals", "channels", "extra", "p6p7", "norm"],
)
def test_rejects(arguments, exception, words):
    with raises(exception, *words):
        with_fpn(*arguments)


def test_missing_torchvision_is_named(run_python):
    printed = run_python(
        "from resnet_backbone import ResNet, with_fpn\n"
        "try:\n    with_fpn(ResNet(18))\n"
        "except ImportError as error:\n    print('refused:', error)\n",
        packages={"torchvision/__init__.py": "raise ImportError('built for another torch')\n"},
    )
    assert_mentions(printed, "refused", "with_fpn", "built for another torch", "pip install torchvision")


def test_type_of_error():
    with raises(ArgumentTypeError, "backbone", "ResNet", "str"):
        with_fpn("resnet50")

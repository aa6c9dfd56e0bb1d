"""Weights for mmdet's other classes, and checkpoints of mmdet and mmengine."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet.models", reason="no mmdet that can be imported", exc_type=ImportError)

import mmdet
from mmdet.registry import MODELS
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from resnet_backbone import ResNet, load_pretrained
from resnet_backbone.weights import sources
from resnet_backbone.weights.zoo import is_named


@pytest.mark.parametrize(
    ("cfg", "source"),
    [
        (dict(type="ResNeXt", depth=50, groups=32, base_width=4), "resnext50_32x4d"),
        (dict(type="RegNet", arch="regnetx_400mf"), "regnetx_400mf"),
        (dict(type="Res2Net", depth=50, scales=4, base_width=26), "res2net101_v1d_26w_4s"),
        (dict(type="ResNeSt", depth=50, radix=2), "resnest50"),
        (dict(type="mmdet.ResNet", depth=50, style="caffe"), "detectron2/resnet50_caffe"),
        (
            dict(
                type="TridentResNet",
                depth=50,
                num_branch=3,
                test_branch_idx=1,
                trident_dilations=(1, 2, 3),
                num_stages=3,
            )
            | dict(strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,), style="caffe"),
            "detectron2/resnet50_caffe",
        ),
        (dict(type="ResLayer", depth=50, stage=3, stride=2, style="caffe"), "detectron2/resnet50_caffe"),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else None,
)
def test_unavailable_names_load_into_mmdet_classes(cfg, source, tmp_path, monkeypatch):
    expected = MODELS.build(dict(cfg)).state_dict()
    if cfg["type"] == "ResLayer":
        expected = ResNet(depth=50, style="caffe").state_dict()
    torch.save(expected, tmp_path / "model.pth")
    monkeypatch.setattr(sources, "fetch", lambda *args, **kwargs: Path(tmp_path / "model.pth"))
    checkpoint = f"open-mmlab://{source}"
    module = MODELS.build(dict(cfg, init_cfg=dict(type="Pretrained", checkpoint=checkpoint)))
    module.init_weights()
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_table_has_all_server_files_of_mmdet_resnet_configs():
    named = r"""open-mmlab://[\w./-]+|https?://download\.openmmlab\.com/(?:pretrain|mmclassification)/[\w./-]+"""
    configs = (Path(mmdet.__file__).parent / ".mim" / "configs").rglob("*.py")
    used = {source for config in configs for source in re.findall(named, config.read_text())}
    assert len(used) > 30
    others = r"convnext|hrnet|vgg16|mobilenet|darknet|efficientnet"
    assert not {source for source in used if not is_named(source) and not re.search(others, source)}


class Detector(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = ResNet(depth=18)
        self.neck = torch.nn.Conv2d(512, 4, 1)

    def forward(self, inputs, data_samples=None, mode="loss"):
        return dict(loss=self.neck(self.backbone(inputs[None])[-1]).square().mean())


def test_runner_checkpoint(tmp_path):
    model = Detector()
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=dict(dataset=[torch.rand(3, 32, 32)] * 2, batch_size=1, sampler=dict(type="DefaultSampler")),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type=CheckpointHook, interval=1)),
        custom_hooks=[dict(type=EMAHook)],
        experiment_name="weights_compat",
        default_scope="mmdet",
    )
    runner.train()
    backbone = ResNet(depth=18)
    report = load_pretrained(backbone, tmp_path / "epoch_1.pth")
    assert report.prefix == "backbone."
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=False)
    assert {"ema_state_dict", "message_hub", "optimizer"} <= saved.keys()
    assert torch.equal(backbone.conv1.weight, saved["state_dict"]["backbone.conv1.weight"])

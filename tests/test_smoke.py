import torch

import resnet_backbone


def test_builds_from_config():
    backbone = resnet_backbone.build_backbone(dict(type="ResNet", depth=18))
    assert [level.shape[1] for level in backbone(torch.rand(1, 3, 64, 64))] == [64, 128, 256, 512]

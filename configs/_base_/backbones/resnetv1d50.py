# ResNet-50-D (Bottleneck; levels of 256, 512, 1024 and 2048 channels): a stem of three 3x3 convolutions, and average
# pooling in the shortcuts. torchvision has no weights for it, so it starts from scratch: no stage is frozen, and
# batch norms are in train mode. To use your own weights, add init_cfg=dict(type="Pretrained", checkpoint=...).
custom_imports = dict(imports=["resnet_backbone"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type="ResNetV1d",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
    )
)

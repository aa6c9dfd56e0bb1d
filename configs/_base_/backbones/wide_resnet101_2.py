# Wide ResNet-101-2 (levels of 256, 512, 1024 and 2048 channels), whose 3x3 convolutions are twice as wide as
# ResNet's: ImageNet weights from torchvision, stem and first stage frozen, batch norms in eval mode.
custom_imports = dict(imports=["resnet_backbone"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type="ResNet",
        depth=101,
        base_width=128,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://wide_resnet101_2"),
    )
)

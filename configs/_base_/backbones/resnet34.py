# ResNet-34 (BasicBlock; levels of 64, 128, 256 and 512 channels) as in mmdet's detectors: ImageNet weights from
# torchvision, stem and first stage frozen, batch norms in eval mode.
custom_imports = dict(imports=["resnet_backbone"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type="ResNet",
        depth=34,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet34"),
    )
)

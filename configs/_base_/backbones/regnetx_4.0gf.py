# RegNetX-4.0GF (levels of 80, 240, 560 and 1360 channels) as in mmdet's detectors: ImageNet weights from pycls, for
# images in BGR with mean (103.53, 116.28, 123.675) and std (57.375, 57.12, 58.395); stem and first stage frozen,
# batch norms in eval mode.
custom_imports = dict(imports=["resnet_backbone"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type="RegNet",
        arch="regnetx_4.0gf",
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://regnetx_4.0gf"),
    )
)

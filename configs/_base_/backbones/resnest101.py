# ResNeSt-101 (levels of 256, 512, 1024 and 2048 channels) as in mmdet's detectors: ImageNet weights from its authors,
# stem and first stage frozen, batch norms synchronized across GPUs.
custom_imports = dict(imports=["resnet_backbone"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type="ResNeSt",
        depth=101,
        stem_channels=128,
        radix=2,
        reduction_factor=4,
        avg_down_stride=True,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://resnest101"),
    )
)

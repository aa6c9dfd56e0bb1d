# ResNet-50 with switchable atrous convolutions (levels of 256, 512, 1024 and 2048 channels) as in mmdet's DetectoRS:
# torchvision's ImageNet weights of an ordinary ResNet, stem and first stage frozen, batch norms in eval mode.
custom_imports = dict(imports=["resnet_backbone"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type="DetectoRS_ResNet",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=True,
        style="pytorch",
        conv_cfg=dict(type="ConvAWS"),
        sac=dict(type="SAC", use_deform=True),
        stage_with_sac=(False, True, True, True),
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    )
)

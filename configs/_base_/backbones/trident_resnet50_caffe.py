# ResNet-50 whose third stage runs at three dilations (one level of 1024 channels) as in mmdet's TridentNet: ImageNet
# weights of MSRA's ResNet-50, for images in BGR with mean (103.53, 116.28, 123.675) and std 1; stem and first stage
# frozen, batch norms in eval mode.
custom_imports = dict(imports=["resnet_backbone"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        type="TridentResNet",
        depth=50,
        num_branch=3,
        test_branch_idx=1,
        trident_dilations=(1, 2, 3),
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="caffe",
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://detectron2/resnet50_caffe"),
    )
)

# Mask R-CNN with a Caffe-style ResNet-50, with the stride in the first 1x1 of a block. Its weights come from
# detectron2 and expect BGR images from 0 to 255 with the mean subtracted and no scaling. The data_preprocessor below
# is mmdet's, repeated here because the weights need it.
_base_ = "mmdet::mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py"

custom_imports = dict(imports=["resnet_backbone"], allow_failed_imports=False)

model = dict(
    data_preprocessor=dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    backbone=dict(
        norm_cfg=dict(requires_grad=False),
        style="caffe",
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://detectron2/resnet50_caffe"),
    ),
)

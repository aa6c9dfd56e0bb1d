# Faster R-CNN with a ResNet-18 whose last three stages have modulated deformable convolutions (DCNv2), in the second
# 3x3 of each BasicBlock. mmdet's ResNet-18 does not support this.
_base_ = "../faster_rcnn/faster-rcnn_r18_fpn_1x_coco.py"

model = dict(
    backbone=dict(
        dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True),
    )
)

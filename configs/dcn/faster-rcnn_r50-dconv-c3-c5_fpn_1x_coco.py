# Faster R-CNN with a ResNet-50 whose last three stages have deformable 3x3 convolutions (DCN).
_base_ = "mmdet::dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py"

custom_imports = dict(imports=["resnet_backbone"], allow_failed_imports=False)

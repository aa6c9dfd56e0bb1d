# mmdet's RetinaNet with a ResNet-18 of this package.
_base_ = "mmdet::retinanet/retinanet_r18_fpn_1x_coco.py"

custom_imports = dict(imports=["resnet_backbone"], allow_failed_imports=False)

"""The registry of this package, where mmengine looks for it.

mmengine finds ``type='resnet_backbone.ResNet'`` by importing a module of exactly this name.
"""

from .integrations.mmdet.registry import BACKBONES, MODELS

__all__ = ["BACKBONES", "MODELS"]

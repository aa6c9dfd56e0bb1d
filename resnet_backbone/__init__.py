"""mmdet's ResNet backbones as a maintained drop-in.

``custom_imports = dict(imports=['resnet_backbone'])`` in an mmdet config makes ``type='ResNet'`` build the classes of
this package; ``import resnet_backbone`` gives them to code.
"""

from .version import __version__

try:
    import mmcv.cnn  # noqa: F401
    import mmengine  # noqa: F401
except ImportError as _error:
    raise ImportError(
        f"resnet_backbone needs mmengine and mmcv, and could not import them ({_error}). "
        "Without mmdet: pip install mmengine 'mmcv-lite>=2.1' 'setuptools<82'. In any other environment, "
        "`resnet-backbone-doctor` prints the commands that fix it."
    ) from _error

from .blocks import BasicBlock, Bottleneck
from .detectors import DetectoRS_ResNet, DetectoRS_ResNeXt
from .int8 import quantize_int8
from .integrations.mmdet.install import install as _install
from .integrations.mmdet.registry import BACKBONES, build_backbone
from .integrations.torchvision import with_fpn
from .layers.build import build_conv_layer, build_norm_layer, build_plugin_layer
from .multi_scale import MultiScaleResNet1d
from .regnet import RegNet
from .res2net import Res2Net
from .res_layer import ResLayer
from .resnest import ResNeSt
from .resnet import ResNet, ResNetV1c, ResNetV1d
from .resnext import ResNeXt
from .trident import TridentResNet
from .weights import LoadReport, load_pretrained

# Registries and loaders of mmengine's and mmdet's: all that importing this package changes outside it.
_install()

__all__ = [
    "BACKBONES",
    "BasicBlock",
    "Bottleneck",
    "DetectoRS_ResNeXt",
    "DetectoRS_ResNet",
    "LoadReport",
    "MultiScaleResNet1d",
    "RegNet",
    "Res2Net",
    "ResLayer",
    "ResNeSt",
    "ResNeXt",
    "ResNet",
    "ResNetV1c",
    "ResNetV1d",
    "TridentResNet",
    "__version__",
    "build_backbone",
    "build_conv_layer",
    "build_norm_layer",
    "build_plugin_layer",
    "load_pretrained",
    "quantize_int8",
    "with_fpn",
]

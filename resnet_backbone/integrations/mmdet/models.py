"""mmdet's model registry imports this module at its first look-up, in place of ``mmdet.models``: see ``registry``."""

from importlib import import_module

from .registry import BACKBONES, MMDET_LOCATIONS, explain, log, register

for _location in MMDET_LOCATIONS:
    try:
        import_module(_location)
    except Exception as error:  # noqa: BLE001 - if mmdet is broken, the backbones still build
        remedy = (
            ". Import resnet_backbone.integrations.mmdet.operators first (or add it to custom_imports), or compile mmcv"
            if getattr(error, "name", None) == "mmcv._ext"
            else ""
        )
        log(f"{_location} cannot be imported ({explain(error)}): only this package's own types are available{remedy}")
register(BACKBONES)

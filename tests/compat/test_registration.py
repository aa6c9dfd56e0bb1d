"""``type='ResNet'`` builds our class for every order of imports. Each order runs in its own process."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest

IMPORTS = {
    "ours": "import resnet_backbone",
    "mmdet.models": "import mmdet.models",
    "register_all_modules": "from mmdet.utils import register_all_modules; register_all_modules()",
    "register_all_modules without scope": "from mmdet.utils import register_all_modules; register_all_modules(False)",
    "a look-up": "from mmdet.registry import MODELS; MODELS.get('FPN')",
}
ORDERS = [("ours",), *itertools.permutations(["ours", "mmdet.models"])]
ORDERS += [order for other in list(IMPORTS)[2:] for order in itertools.permutations(["ours", other])]
ORDERS += [("mmdet.models", "ours", "register_all_modules"), ("a look-up", "ours", "mmdet.models")]

CHECK = """
import resnet_backbone
from mmdet.registry import MODELS
from mmengine.registry import MODELS as ROOT, DefaultScope, init_default_scope
ours = resnet_backbone.ResNet
assert resnet_backbone.BACKBONES is MODELS
for registry, name in [(MODELS, 'ResNet'), (MODELS, 'mmdet.ResNet'), (ROOT, 'mmdet.ResNet'),
                       (MODELS, 'resnet_backbone.ResNet'), (ROOT, 'resnet_backbone.ResNet')]:
    assert type(registry.build(dict(type=name, depth=18, base_channels=4))) is ours, (registry, name)
assert type(MODELS.build(dict(type='ResNetV1d', depth=18, base_channels=4))) is resnet_backbone.ResNetV1d
assert type(MODELS.build(dict(type=ours, depth=18, base_channels=4))) is ours
init_default_scope('mmdet')
assert type(ROOT.build(dict(type='ResNet', depth=18, base_channels=4))) is ours
# mmdet's own names keep their meaning: the shared head of the C4 detectors is called ResLayer too.
assert MODELS.get('ResLayer').__module__.startswith('mmdet.models.roi_heads')
assert MODELS.get('HRNet').__module__ == 'mmdet.models.backbones.hrnet'
for relative in ('ResNeXt', 'RegNet', 'Res2Net', 'ResNeSt', 'TridentResNet', 'DetectoRS_ResNet', 'DetectoRS_ResNeXt'):
    assert MODELS.get(relative) is getattr(resnet_backbone, relative), relative
assert MODELS.get('FasterRCNN') is not None and MODELS.get('BasicBlock') is resnet_backbone.BasicBlock
print('as it should be')
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("order", ORDERS, ids=" then ".join)
def test_resnet_is_ours_in_every_import_order(order):
    printed = run("\n".join(IMPORTS[name] for name in order) + CHECK)
    assert "as it should be" in printed
    assert "cannot be" not in printed


def test_importing_ours_does_not_import_mmdets_models():
    assert run("import sys, resnet_backbone; print('mmdet.models' in sys.modules)").strip().endswith("False")


def test_custom_imports_in_a_config(tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "custom_imports = dict(imports=['resnet_backbone'])\n"
        "default_scope = 'mmdet'\n"
        "model = dict(backbone=dict(type='ResNet', depth=18, base_channels=4))\n"
    )
    printed = run(
        f"""
from mmengine.config import Config
from mmengine.registry import init_default_scope, MODELS
config = Config.fromfile({str(config)!r})
init_default_scope(config.default_scope)
print(type(MODELS.build(config.model.backbone)).__module__)
"""
    )
    assert printed.strip().endswith("resnet_backbone.resnet")

"""Installation of the operators without a compiler: when they are used, and when compiled ones are kept."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest.importorskip("torchvision")
# The stand-in, if another test has installed it, has no loader.
_spec = find_spec("mmcv._ext")
COMPILED = _spec is not None and _spec.loader is not None

REGISTRY = """
from mmengine.registry import MODELS as ROOT, Registry
MODELS = Registry("model", parent=ROOT, scope="mmdet", locations=["mmdet.models"])
"""
# As mmdet's: nothing is registered unless mmcv's operators can be imported.
MODELS = """
from mmcv.ops import batched_nms
from torch import nn
from mmdet.registry import MODELS

@MODELS.register_module()
class ResNet(nn.Module):
    pass

@MODELS.register_module()
class FPN(nn.Module):
    pass
"""
MMDET = {"mmdet/__init__.py": "", "mmdet/registry.py": REGISTRY, "mmdet/models.py": MODELS}

OPERATORS = "import resnet_backbone.integrations.mmdet.operators\n"
TOO_EARLY = "from mmdet.registry import MODELS\nassert MODELS.get('FPN') is None\n"
FAILED = "try: import mmdet.models\nexcept ImportError: pass\nelse: raise AssertionError\n"
BUILT = "resnet_backbone.build_conv_layer(dict(type='DCNv2'), 4, 4, 3)\n"
ORDERS = {
    "operators": OPERATORS,
    "package, operators": "import resnet_backbone\n" + OPERATORS,
    "package, a layer and a look-up, operators": "import resnet_backbone\n" + BUILT + TOO_EARLY + OPERATORS,
    "mmdet, operators": FAILED + OPERATORS,
    "package, mmdet, operators": "import resnet_backbone\n" + FAILED + OPERATORS,
}
CHECK = """
import resnet_backbone, mmcv.ops, torch
from mmdet.registry import MODELS
from mmengine.registry import MODELS as ROOT
assert MODELS.get("ResNet") is resnet_backbone.ResNet
assert MODELS.get("FPN").__module__ == "mmdet.models"
assert ROOT.get("DCNv2") is mmcv.ops.ModulatedDeformConv2dPack
assert ROOT.get("resnet_backbone.DCNv2") is not mmcv.ops.ModulatedDeformConv2dPack
backbone = resnet_backbone.ResNet(50, base_channels=4, dcn=dict(type="DCNv2"), stage_with_dcn=(False, True, True, True))
assert type(backbone.layer2[0].conv2) is mmcv.ops.ModulatedDeformConv2dPack
backbone(torch.rand(1, 3, 64, 64))[-1].sum().backward()
assert backbone.layer2[0].conv2.weight.grad.any()
print("as it should be")
"""


@pytest.mark.skipif(COMPILED, reason="mmcv was compiled")
@pytest.mark.parametrize("order", ORDERS)
def test_operators_work_in_every_import_order(order, run_python):
    assert run_python(ORDERS[order] + CHECK, MMDET).endswith("as it should be\n")


@pytest.mark.skipif(COMPILED, reason="mmcv was compiled")
def test_log_names_the_operators_to_import(run_python):
    printed = run_python("import resnet_backbone\n" + TOO_EARLY, MMDET)
    assert "resnet_backbone.integrations.mmdet.operators" in printed


def test_compiled_operators_are_not_replaced(run_python):
    """Also if they cannot be imported, so that the error is visible."""
    script = """
import sys
from importlib.machinery import ModuleSpec
class Finder:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, loader=None, origin="compiled") if name == "mmcv._ext" else None
sys.meta_path.insert(0, Finder())
import resnet_backbone.integrations.mmdet.operators
print("mmcv._ext" in sys.modules)
"""
    assert run_python(script).strip().splitlines()[-1] == "False"


def test_script_runs_with_its_arguments(run_python, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys, mmcv.ops, beside\nprint(sys.argv[1:], __name__, beside.NAME)")
    (tmp_path / "beside.py").write_text("NAME = 'found'")
    printed = run_python(
        "import runpy, sys\n"
        f"sys.argv = ['operators', {str(script)!r}, 'one', '--two']\n"
        "runpy.run_module('resnet_backbone.integrations.mmdet.operators', run_name='__main__', alter_sys=True)"
    )
    assert printed.splitlines()[-1] == "['one', '--two'] __main__ found"

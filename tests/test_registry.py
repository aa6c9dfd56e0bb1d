"""The class that ``type='ResNet'`` builds, with a working mmdet, a broken one and none."""

import pytest
from helpers import raises
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope

import resnet_backbone
from resnet_backbone import BACKBONES, BasicBlock, Bottleneck, ResLayer, ResNet, ResNetV1c, ResNetV1d, build_backbone
from resnet_backbone.errors import ArgumentTypeError, UnknownNameError

SMALL = dict(depth=18, base_channels=4)

LOOK_UPS = """
import sys
import resnet_backbone
assert "mmdet.models" not in sys.modules, "imported before it is needed"
from mmengine.registry import DefaultScope, MODELS as ROOT
import other.registry
from resnet_backbone import BACKBONES, ResNet, build_backbone

small = dict(depth=18, base_channels=4)
def ours(backbone):
    assert type(backbone) is ResNet, type(backbone)

ours(build_backbone(dict(type="ResNet", **small)))
ours(BACKBONES.build(dict(type="ResNet", **small)))
ours(ROOT.build(dict(type="mmdet.ResNet", **small)))
ours(ROOT.build(dict(type="resnet_backbone.ResNet", **small)))
ours(ROOT.build(dict(type=ResNet, **small)))
for scope in ("mmdet", "resnet_backbone"):
    with DefaultScope.overwrite_default_scope(scope):
        ours(ROOT.build(dict(type="ResNet", **small)))
with DefaultScope.overwrite_default_scope("other"):
    ours(ROOT.build(dict(type="mmdet.ResNet", **small)))
    ours(ROOT.build(dict(type="resnet_backbone.ResNet", **small)))
    ours(build_backbone(dict(type="ResNet", **small)))
assert BACKBONES.scope == "mmdet"
print("done")
"""

OTHER = {
    "other/__init__.py": "",
    "other/registry.py": """
from mmengine.registry import MODELS as ROOT, Registry
MODELS = Registry("model", parent=ROOT, scope="other", locations=["other.registry"])
""",
}
REGISTRY = """
from mmengine.registry import MODELS as ROOT, Registry
MODELS = Registry("model", parent=ROOT, scope="mmdet", locations=["mmdet.models"])
"""
MODELS = """
from torch import nn
from mmdet.registry import MODELS

@MODELS.register_module()
class ResNet(nn.Module):
    pass

@MODELS.register_module()
class ResLayer(nn.Module):
    pass
"""

# Replacements for mmdet, and the reasons in the log.
CASES = {
    "missing": (
        {"mmdet/__init__.py": "raise ModuleNotFoundError(\"No module named 'mmdet'\")"},
        ["No module named 'mmdet'"],
    ),
    "wrong mmcv": (
        {"mmdet/__init__.py": "assert False, 'MMCV==2.3.0 is used but incompatible.\\nPlease install mmcv<2.2.0'"},
        ["AssertionError: MMCV==2.3.0 is used but incompatible. Please install mmcv<2.2.0"],
    ),
    "no compiled mmcv": (
        {
            "mmdet/__init__.py": "",
            "mmdet/registry.py": REGISTRY,
            "mmdet/models.py": "raise ModuleNotFoundError(\"No module named 'mmcv._ext'\")",
        },
        ["No module named 'mmcv._ext'"],
    ),
    "working": ({"mmdet/__init__.py": "", "mmdet/registry.py": REGISTRY, "mmdet/models.py": MODELS}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_resnet_is_found_from_every_scope(case, run_python):
    packages, reasons = CASES[case]
    printed = run_python(LOOK_UPS, {**OTHER, **packages}).splitlines()
    assert printed[-1] == "done"
    # One line for each problem, and no warnings of mmengine.
    logged = printed[:-1]
    assert len(logged) == len(reasons), printed
    for line, reason in zip(logged, reasons):
        assert "INFO" in line
        assert "resnet_backbone" in line
        assert reason in line


@pytest.mark.parametrize(
    "first",
    [
        "import mmdet.models",
        "from mmdet.registry import MODELS; MODELS.import_from_location()",
        "import mmdet.registry",
    ],
)
def test_this_package_is_used_in_any_import_order(first, run_python):
    script = f"""
{first}
import resnet_backbone
import mmdet.models
from mmdet.registry import MODELS
assert resnet_backbone.BACKBONES is MODELS
assert MODELS.get("ResNet") is resnet_backbone.ResNet
assert MODELS.get("ResNetV1d") is resnet_backbone.ResNetV1d
assert MODELS.get("ResNetV1c") is resnet_backbone.ResNetV1c
# mmdet's ResLayer is the shared head of its C4 detectors.
assert MODELS.get("ResLayer") is mmdet.models.ResLayer
"""
    assert run_python(script, CASES["working"][0]) == ""


MINE = """
from mmdet.models import ResNet as Base
from mmdet.registry import MODELS

@MODELS.register_module(force=True)
class ResNet(Base):
    pass
"""


@pytest.mark.parametrize("order", ["mine, resnet_backbone", "resnet_backbone, mine"])
def test_class_of_the_user_stays_registered(order, run_python):
    script = f"""
import {order}
from mmdet.registry import MODELS
assert MODELS.get("ResNet") is mine.ResNet
assert MODELS.get("ResNetV1d") is resnet_backbone.ResNetV1d
"""
    assert "mine.ResNet" in run_python(script, {**CASES["working"][0], "mine.py": MINE})


BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
for module in [module for module in sys.modules if module.partition(".")[0] == {name!r}]:
    del sys.modules[module]
sys.meta_path.insert(0, Blocker())
try:
    import resnet_backbone
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("missing", ["mmcv", "mmengine"])
def test_import_error_names_missing_packages(missing, run_python):
    printed = run_python(BLOCKER.format(name=missing))
    assert f"No module named '{missing}" in printed
    for command in ("pip install mmengine 'mmcv-lite>=2.1'", "resnet-backbone-doctor"):
        assert command in printed


@pytest.mark.parametrize("cls", [ResNet, ResNetV1c, ResNetV1d, BasicBlock, Bottleneck])
def test_classes_are_registered(cls):
    assert BACKBONES.get(cls.__name__) is cls
    assert ROOT.get(f"resnet_backbone.{cls.__name__}") is cls


def test_res_layer_is_registered_in_our_scope_only():
    assert ROOT.get("resnet_backbone.ResLayer") is ResLayer


@pytest.mark.parametrize("name", ["ResNet", "ResNetV1c", "ResNetV1d"])
def test_builds_by_name_and_by_class(name):
    cls = getattr(resnet_backbone, name)
    assert type(build_backbone(dict(type=name, **SMALL))) is cls
    assert type(build_backbone(dict(type=cls, **SMALL))) is cls


def test_config_is_not_modified():
    cfg = dict(type="ResNet", **SMALL)
    before = dict(cfg)
    build_backbone(cfg)
    assert cfg == before


@pytest.mark.parametrize(
    ("cfg", "exception", "words"),
    [
        (None, ArgumentTypeError, ["dict", "None"]),
        ("ResNet", ArgumentTypeError, ["dict", "'ResNet'"]),
        (dict(depth=18), UnknownNameError, ["'type'", "'depth': 18"]),
        (dict(type=None, depth=18), UnknownNameError, ["'type'", "None"]),
        (dict(type="ResNte", depth=18), UnknownNameError, ["'ResNte'", "'ResNet'", "ResNetV1d"]),
        (dict(type="resnet_backbone.ResNte", depth=18), UnknownNameError, ["'resnet_backbone.ResNte'", "ResNetV1d"]),
    ],
    ids=str,
)
def test_config_without_a_backbone_is_rejected(cfg, exception, words):
    with raises(exception, *words):
        build_backbone(cfg)


def test_new_style_config_inherits_and_builds(run_python):
    printed = run_python(
        """
from mmengine.config import Config
from mmengine.registry import MODELS
cfg = Config.fromfile("shadows/child.py")
print(type(MODELS.build(cfg.model.backbone)).__module__, cfg.model.backbone.depth)
cfg.dump("dumped.py")
print(type(MODELS.build(Config.fromfile("dumped.py").model.backbone)).__module__)
""",
        {
            "base.py": "from resnet_backbone import ResNet\n"
            "model = dict(backbone=dict(type=ResNet, depth=18, base_channels=4))\n",
            "child.py": "from mmengine.config import read_base\n"
            "with read_base():\n    from .base import *\n"
            "model.backbone.update(dict(depth=34))\n",
        },
    )
    assert printed.splitlines()[-2:] == ["resnet_backbone.resnet 34", "resnet_backbone.resnet"]


def test_default_scope_does_not_matter():
    with DefaultScope.overwrite_default_scope("resnet_backbone"):
        assert type(build_backbone(dict(type="mmdet.ResNet", **SMALL))) is ResNet


def test_all_public_names_exist():
    assert all(hasattr(resnet_backbone, name) for name in resnet_backbone.__all__)

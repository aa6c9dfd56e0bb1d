"""``import resnet_backbone`` does not load modules that it does not need."""

import subprocess
import sys

import pytest
import torch

SLOW = {"torch._dynamo", "torch._inductor", "torch.onnx", "triton", "torchvision", "torchao", "timm"}
SLOW |= {"matplotlib", "rich", "huggingface_hub", "safetensors", "onnxruntime"}
SCRIPT = """
import sys, torch, mmcv.cnn, mmengine
before = set(sys.modules)
import resnet_backbone
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.skipif(not hasattr(torch.compiler, "is_compiling"), reason="only torch._dynamo can be asked there")
def test_import_loads_no_slow_modules():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "resnet_backbone.resnet" in loaded
    assert not SLOW & loaded

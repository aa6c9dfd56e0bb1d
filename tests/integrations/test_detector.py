"""Training and evaluation of mmdet's detectors without compiled mmcv."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

_spec = find_spec("mmcv._ext")
if find_spec("mmdet") is None or (_spec is not None and _spec.loader is not None):
    pytest.skip("needs mmdet and mmcv-lite 2.1.0: pip install '.[mmdet]'", allow_module_level=True)

SCRIPT = Path(__file__).with_name("detector_training.py")


def test_detectors_train_resume_and_detect(run_python, tmp_path):
    printed = run_python(
        f"import runpy, sys\nsys.argv = ['training', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    results = {
        result.pop("detector"): result
        for result in (json.loads(line) for line in printed.splitlines() if line.startswith('{"detector"'))
    }
    assert results.keys() == {"RetinaNet", "Mask R-CNN"}
    for result in results.values():
        assert result["bbox"] > 0.4
        # Not identical: a resumed run draws other batches.
        assert result["resumed"] > 0.4
        assert result["best_score"] > 0.3
    assert results["Mask R-CNN"]["segm"] > 0.4

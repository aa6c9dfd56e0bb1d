"""mmcv's operators without a compiler: importing this lets ``mmcv.ops``, and with it mmdet, be imported.

A config does it by ``custom_imports = dict(imports=['resnet_backbone.integrations.mmdet.operators'])``, a script by
importing it before mmdet. Where mmcv was compiled, nothing is changed. Scripts that import mmdet before they read a
config, such as mmdet's ``tools/test.py``, run as they are by
``python -m resnet_backbone.integrations.mmdet.operators SCRIPT ARGUMENT...``.
"""

import runpy
import sys
from pathlib import Path

from .install import install_operators

install_operators()

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: python -m {__spec__.name} SCRIPT ARGUMENT...")
    # As when Python runs a script itself.
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")

"""mmcv's operators without a compiler: after importing this module, ``mmcv.ops`` and mmdet can be imported.

In a config, write ``custom_imports = dict(imports=['resnet_backbone.integrations.mmdet.operators'])``; in a script,
import it before mmdet. Where mmcv was compiled, it changes nothing. Scripts that import mmdet before they read a
config, such as mmdet's ``tools/test.py``, run unchanged with
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
    # As if Python ran the script directly.
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")

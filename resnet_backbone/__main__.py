"""``python -m resnet_backbone``: the same as the ``resnet-backbone`` command."""

import sys

from .tools.cli import main

sys.exit(main())

"""What works in an environment, what does not, and what mends it: ``resnet-backbone doctor``.

Only the standard library is imported here: the doctor runs where torch, mmengine or mmcv are missing or broken.
"""

from .diagnose import diagnose
from .facts import Facts, Probe, gather
from .finding import Finding

__all__ = ["Facts", "Finding", "Probe", "diagnose", "gather"]

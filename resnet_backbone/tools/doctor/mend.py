"""The commands that mend an environment."""

from __future__ import annotations

from .facts import DISTRIBUTIONS, Facts
from .versions import release

__all__ = ["install", "keep_one", "rebuild_mmcv", "reinstall", "suit_mmdet", "torchvision"]

# Compiling mmcv takes torch and an older setuptools from the environment itself, and pip's cache does not know for
# which torch a wheel was compiled.
_BUILD_TOOLS = 'pip install "setuptools>=77.0.3,<81" wheel ninja psutil'
_COMPILE = "pip install --no-cache-dir --no-build-isolation"
_MMCV_OF_MMDET = "mmcv>=2.0.0rc4,<2.2.0"
_FORK = {"mmengine": "onedl-mmengine", "mmcv": "onedl-mmcv", "mmdet": "onedl-mmdetection"}


def install(facts: Facts, component: str) -> str:
    """Install mmengine or mmcv: of the family that mmdet is of; mmcv compiled where there is an mmdet to need it."""
    if component == "mmcv":
        return _install_mmcv(facts)
    return f"pip install {_FORK[component] if _is_fork(facts) else component}"


def keep_one(facts: Facts, component: str) -> str:
    """Of the distributions of one component, keep the one that goes with the rest."""
    names = facts.installed(component)
    uninstall = f"pip uninstall -y {' '.join(names)}"
    if component == "mmcv":
        return f"{uninstall} && {_install_mmcv(facts)}"
    kept = _FORK[component] if _is_fork(facts) else names[0]
    # What the distribution needs is here already, or of the other family.
    return f"{uninstall} && pip install --no-deps {kept}=={facts.versions[kept]}"


def rebuild_mmcv(facts: Facts) -> str:
    """Compile mmcv for the torch that is here."""
    return f"pip uninstall -y {' '.join(facts.installed('mmcv'))} && {_install_mmcv(facts, compiled=True)}"


def suit_mmdet(facts: Facts, component: str, allowed: str) -> str:
    """Replace mmcv or mmengine by one that mmdet allows; or mmdet, where the rest is of the fork's family."""
    if _FORK[component] in facts.installed(component):
        return f"pip uninstall -y mmdet && {_BUILD_TOOLS} && pip install --no-build-isolation onedl-mmdetection"
    if component == "mmengine":
        return f'pip install "mmengine{allowed}"'
    names = " ".join(facts.installed("mmcv"))
    return f'pip uninstall -y {names} && {_BUILD_TOOLS} && {_COMPILE} "mmcv{allowed}"'


def torchvision(facts: Facts) -> str:
    """Replace torchvision by the one that belongs to the torch that is here."""
    return f"pip install torch=={facts.versions['torch'].partition('+')[0]} torchvision"


def reinstall(facts: Facts, component: str) -> str:
    """Install again what fails for a reason that nothing here knows."""
    names = facts.installed(component)
    if component == "mmcv":
        return rebuild_mmcv(facts) if names == ["mmcv"] else keep_one(facts, component)
    if component not in DISTRIBUTIONS or len(names) != 1:
        return ""
    return f"pip install --force-reinstall --no-deps --no-cache-dir {names[0]}=={facts.versions[names[0]]}"


def _install_mmcv(facts: Facts, compiled: bool = False) -> str:
    if _is_fork(facts):
        return f"{_BUILD_TOOLS} && {_COMPILE} onedl-mmcv"
    if facts.installed("mmdet"):
        return f'{_BUILD_TOOLS} && {_COMPILE} "{_MMCV_OF_MMDET}"'
    if compiled:
        version = facts.versions.get("mmcv", "")
        return f"{_BUILD_TOOLS} && {_COMPILE} mmcv" + (f"=={version}" if release(version) >= (2,) else "")
    return 'pip install "mmcv-lite>=2.1"'


def _is_fork(facts: Facts) -> bool:
    """Whether what is installed is of the fork's family: as mmdet is, or, without one, as all of mmcv is."""
    for component in ("mmdet", "mmcv", "mmengine"):
        names = facts.installed(component)
        if names:
            return names == [_FORK[component]]
    return False

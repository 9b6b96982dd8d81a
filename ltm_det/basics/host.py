"""What is installed of OpenMMLab's packages: which modules are there, and which collide.

Several distributions install a module of one name, so that the one overwrites files of the other:
mmcv, mmcv-lite and onedl-mmcv all are `mmcv`.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# Distributions by the module that they install.
DISTRIBUTIONS = {
    "mmengine": ("mmengine", "mmengine-lite", "onedl-mmengine"),
    "mmcv": ("mmcv", "mmcv-lite", "mmcv-full", "onedl-mmcv"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
}
EXTRAS = (
    'pip install "ltm_det[lite]" (mmdet, with mmcv-lite: nothing to compile), "ltm_det[full]" '
    '(mmdet, with the full mmcv) or "ltm_det[onedl]" (onedl-mmdetection); '
    '"ltm_det[mmdet]" where you have an mmcv'
)


def is_there(module: str) -> bool:
    """Whether a module can be imported; folders that an uninstallation left behind cannot."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def installed(names: Sequence[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def missing() -> list[str]:
    """Modules that are not there, of those that a detector needs."""
    return [module for module in DISTRIBUTIONS if not is_there(module)]


def collisions() -> dict[str, dict[str, str]]:
    """Of modules that several distributions installed, these and their versions."""
    found = {module: installed(names) for module, names in DISTRIBUTIONS.items()}
    return {module: several for module, several in found.items() if len(several) > 1}


def check_host() -> None:
    """That each of OpenMMLab's modules is there, once.

    Raises:
        ImportError: One is not, or several distributions have written the same one.
    """
    if several := collisions():
        raise ImportError(" ".join(map(told, several, several.values())))
    if gone := missing():
        found = installed([name for module in gone for name in DISTRIBUTIONS[module]])
        lost = "".join(
            f"; pip lists {name} {number}, but its files are gone: "
            f"pip install --force-reinstall --no-deps {name}=={number}"
            for name, number in found.items()
        )
        raise ImportError(f"ltm_det needs {' and '.join(gone)} for its detectors: {EXTRAS}{lost}")


def told(module: str, several: Mapping[str, str]) -> str:
    """What to do where distributions collide."""
    names = " and ".join(f"{name} {number}" for name, number in several.items())
    return (
        f"{names} both install the module {module}, so that files of the one lie over those of the "
        f"other: pip uninstall -y {' '.join(several)}, then pip install {' or '.join(several)}, "
        "one of them."
    )

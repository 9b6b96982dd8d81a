"""The two fixes that let mmdet 3.3 run on current torch, as functions without arguments.

``apply`` is called once by ``import ltm_det`` where mmdet is installed. It does no harm twice.
"""

from ltm_det.compat.checkpoint import allow_mmengine_checkpoints, load_safely
from ltm_det.compat.ops import provide_mmcv_ops


def apply() -> None:
    """Put both fixes in place: the compiled ops mmdet needs, and safe checkpoint loading.

    Raises:
        ImportError: Neither mmcv nor mmcv-lite is installed.
    """
    provide_mmcv_ops()
    allow_mmengine_checkpoints()
    load_safely()


__all__ = ["allow_mmengine_checkpoints", "apply", "load_safely", "provide_mmcv_ops"]

"""mmdet 3.3 beside mmcv 2.2, which it refuses by its number alone."""

import sys

LAST_KNOWN = "2.1.0"  # to mmdet 3.3


def accept_newer_mmcv() -> None:
    """Imports mmdet as if mmcv were the newest that mmdet 3.3 knows, where it is 2.2 or later.

    What mmdet uses of mmcv is there in 2.2 as it was. onedl-mmdetection asks for no number.
    """
    import mmcv

    own = mmcv.__version__
    if "mmdet" in sys.modules or tuple(map(int, own.split(".")[:2])) < (2, 2):
        return
    mmcv.__version__ = LAST_KNOWN
    try:
        import mmdet  # noqa: F401
    finally:
        mmcv.__version__ = own

"""Learnable token merging backbones for MMDetection.

Where mmdet is installed, importing this package registers everything in it, so that
``custom_imports = dict(imports=['ltm_det'])`` in a config is enough. Without mmdet,
``ltm_det.merging`` is still there: it needs torch alone.
"""

from ltm_det.basics.host import check_host, is_there
from ltm_det.basics.older_torch import complete

__version__ = "0.2.0"

complete()  # before operators are defined

if is_there("mmdet"):
    check_host()  # of packages that lie over one another, and of what mmdet needs
    from ltm_det import compat

    compat.apply()  # before anything of mmdet: its models need `mmcv._ext`

    # For their side effect: they register with mmdet.
    from ltm_det import backbones, deploy, detectors, engine, necks  # noqa: F401
    from ltm_det.prediction import Detector  # noqa: F401
else:

    def __getattr__(name: str) -> None:
        if name == "Detector":
            check_host()  # says what is missing
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Puts ``mmcv_ext.py`` in the place of ``mmcv._ext`` where mmcv has no compiled ops."""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

EXT_NAME = "mmcv._ext"
STAND_IN = Path(__file__).with_name("mmcv_ext.py")


def provide_mmcv_ops() -> None:
    """Make ``import mmcv._ext`` work; the full mmcv's own ops are left untouched.

    The stand-in is loaded under mmcv's name from a file, so its ``__spec__`` and loader are real
    ones: mmengine's environment report asks for them.
    """
    if find_spec(EXT_NAME) is not None:  # compiled, or the stand-in from an earlier call
        return
    spec = spec_from_file_location(EXT_NAME, STAND_IN)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[EXT_NAME] = module
    sys.modules["mmcv"]._ext = module  # as a real import of a submodule would

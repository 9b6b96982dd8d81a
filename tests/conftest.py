"""Settings and helpers for all tests."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import ltm_det  # noqa: F401  first of all: without it, mmdet's models cannot be imported

# isort: split
from mmengine.config import config as configs
from mmengine.device import utils as device
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope, init_default_scope
from mmengine.runner import runner
from mmengine.visualization import Visualizer

from ltm_det.cpu import convolutions, products

ROOT = Path(__file__).parents[1]
HIDE = """
import sys

class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)  # packages' metadata
    def find_spec(self, name, *args):
        return None if name.partition('.')[0] in {hidden!r} else self.finder.find_spec(name, *args)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
"""

# The order of sums, and so the last digits, depend on the number of threads: runs are one thread's,
# here and in processes that tests start, unless the environment names a number, for which all must
# pass too; and the CPU's, also where there is a GPU. Tests marked `gpu` ask for it by name.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
device.DEVICE = "cpu"

# Neither does the make of the CPU count: linear layers and training go one way, the fast one.
os.environ.setdefault(products.VARIABLE, products.ONEDNN)

# Every run logs the machine and its config, formatted, which takes longer than a tiny training.
runner.collect_env = dict
configs.FormatCode = lambda text, **options: (text, True)
gc.freeze()  # mmengine collects garbage for each data set, and would walk through all modules

# Processes that tests start need not wait for transformers.
HIDDEN = str(Path(__file__).parent / "hidden")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [HIDDEN, os.environ.get("PYTHONPATH")]))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess]:
    """Run code in a fresh interpreter, as if the packages named in ``hidden`` were not installed.

    ``path`` names folders whose packages come before the installed ones.
    """

    def run(code: str, hidden: Sequence[str] = (), path: Sequence[Path] = ()):
        return subprocess.run(
            [sys.executable, "-c", HIDE.format(hidden=tuple(hidden)) + code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT, HIDDEN]))},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture(autouse=True)
def narrow_convolutions_go_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide ones do, though it does not pay there."""
    monkeypatch.setattr(convolutions, "FEW_CHANNELS", 2 * convolutions.INPUT)


@pytest.fixture(autouse=True)
def no_visualizer_left_behind():
    """mmengine's hooks take the newest visualizer made in the process: each test's is its own."""
    yield
    Visualizer._instance_dict.clear()


@pytest.fixture(autouse=True)
def mmdets_scope() -> None:
    """A run names the registry that whatever comes later in the process is looked up in."""
    DefaultScope._instance_dict.clear()
    init_default_scope("mmdet")


@pytest.fixture(autouse=True)
def no_logger_left_behind():
    """mmengine's loggers live as long as the process; pytest closes what they write to."""
    yield
    for logger in list(MMLogger._instance_dict.values()):
        for handler in logger.handlers[:]:
            if getattr(getattr(handler, "stream", None), "closed", False):
                logger.removeHandler(handler)

"""The folder of a run: one run at a time, and no run's checkpoints under another's names."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ltm_det.basics.errors import InputError
from ltm_det.engine.checkpoints import POINTER

try:
    import fcntl
except ImportError:  # where files have no such locks
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
PATIENCE = 5  # seconds that a process which was told to end may take


@contextmanager
def occupied(work_dir: Path) -> Iterator[None]:
    """Inside, no other process's run goes on in a work folder.

    Raises:
        InputError: One does.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with open(work_dir / LOCK, "w") as file:
        for second in range(PATIENCE + 1 if fcntl else 0):
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    break  # a file system without locks
            if second == PATIENCE:
                raise InputError(
                    f"another run is at work in {work_dir}: wait for it, or name another --work-dir"
                )
            time.sleep(1)
        yield


def put_aside(work_dir: Path, say: Callable[[str], Any]) -> None:
    """Renames the checkpoints of an earlier run, which a new one would write over."""
    if not (work_dir / POINTER).exists():
        return
    folder = work_dir / f"earlier_{time.strftime('%Y%m%d_%H%M%S')}"
    folder.mkdir()
    files = sorted(work_dir.glob("*.pth"))
    for file in (work_dir / POINTER, *files):
        file.rename(folder / file.name)
    say(
        f"{work_dir} has {len(files)} checkpoints of an earlier run: they are in {folder} now. To "
        "go on from them, give --resume FILE"
    )

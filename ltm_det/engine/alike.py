"""Processes of one machine that go on, or end, alike, before they can talk to each other."""

import json
import os
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import write_text
from ltm_det.engine.preflight import PreflightError, is_local_main

PAUSE = 0.2  # seconds between two looks
PATIENCE = 30 * 60  # seconds
RESTARTS = "TORCHELASTIC_RESTART_COUNT"
IMPORTED = time.time()


def told_by_main(launcher: str, work_dir: str, find_out: Callable[[], Any]) -> Any:
    """What the first process of the machine finds out, in all of them.

    It tells the others by a file in the work folder, since the process group is there only later.
    They believe what was written after they began, so that no former run's file is taken for it.

    Args:
        launcher: 'none' for a single process.
        find_out: Gives values that JSON has.

    Raises:
        InputError: In all processes, where it is raised in the first; and where the first says
            nothing for `PATIENCE`.
    """
    if launcher == "none":
        return find_out()
    file = Path(work_dir) / f".told-{socket.gethostname()}-{job()}.json"
    if not is_local_main(launcher):
        return _hear(file)
    result: dict[str, Any] = dict(error="the first process of this machine failed")
    try:
        result = dict(value=find_out())
    except InputError as error:
        result = dict(error=str(error))
        raise
    finally:
        for old in file.parent.glob(f".told-{socket.gethostname()}-*.json"):
            with suppress(OSError):
                old.unlink()
        write_text(file, json.dumps(result | dict(at=time.time())))
    return result["value"]


def _hear(file: Path) -> Any:
    parent, began, end = os.getppid(), begun(), time.monotonic() + PATIENCE
    while True:
        with suppress(OSError):
            told = json.loads(file.read_text())
            if told["at"] >= began:
                break
        if os.getppid() != parent:
            raise PreflightError("the launcher has ended")
        if time.monotonic() > end:
            raise PreflightError(
                f"the first process of this machine has written no {file} in {PATIENCE // 60} "
                "minutes: did it end? If its check takes longer, run ltm-det check-data before"
            )
        time.sleep(PAUSE)
    if "error" in told:
        raise PreflightError(told["error"])
    return told["value"]


def job() -> str:
    """What tells this run from others on the machine, the same in all of its processes."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "MASTER_ADDR", "MASTER_PORT", RESTARTS)
    words = [os.environ[name] for name in names if name in os.environ]
    return re.sub(r"\W", "_", "-".join(words))


def begun() -> float:
    """When this process was started, in seconds since 1970; of other systems than Linux, when it
    came to this file."""
    with suppress(OSError, IndexError, ValueError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        (boot,) = re.findall(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
        return int(boot) + ticks / os.sysconf("SC_CLK_TCK") - 1  # boot is known to a second
    return IMPORTED

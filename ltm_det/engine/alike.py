"""Processes of one machine that go on, or end, alike, before they can talk to each other."""

import json
import os
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


def told_by_main(launcher: str, work_dir: str, find_out: Callable[[], Any]) -> Any:
    """What the first process of the machine finds out, in all of them.

    It tells the others by a file in the work folder, since the process group is there only later,
    and waits for nobody longer than some minutes.

    Args:
        launcher: 'none' for a single process.
        find_out: Gives values that JSON has.

    Raises:
        InputError: In all processes, where it is raised in the first.
    """
    if launcher == "none":
        return find_out()
    parent = os.getppid()
    file = Path(work_dir) / f".told-{socket.gethostname()}-{parent}-{started(parent)}.json"
    if not is_local_main(launcher):
        return _hear(file, parent)
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
        write_text(file, json.dumps(result))
    return result["value"]


def _hear(file: Path, parent: int) -> Any:
    while not file.exists():
        if os.getppid() != parent:
            raise PreflightError("the launcher has ended")
        time.sleep(PAUSE)
    told = json.loads(file.read_text())
    if "error" in told:
        raise PreflightError(told["error"])
    return told["value"]


def started(process: int) -> str:
    """What tells a launcher from an earlier one of the same number, and its restarts."""
    start = ""
    with suppress(OSError, IndexError):
        start = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{start}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"

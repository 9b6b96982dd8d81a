"""A load is there inside its context, and gone after it, whatever happened."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ltm_det.measure import load
from ltm_det.measure.load import LoadError, busy

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="reads /proc, which Linux has"
)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody asked for yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def ticks(pid: int) -> int:
    """What a process had of a CPU, in its own code."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def soon(condition: Callable[[], bool]) -> bool:
    """Whether something comes true within some seconds."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_processes_are_at_work_inside_and_gone_after() -> None:
    with busy(2) as processes:
        pids = [process.pid for process in processes]
        assert len(set(pids)) == 2 and all(map(alive, pids))
        assert all(soon(lambda pid=pid: ticks(pid) > 5) for pid in pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_they_are_gone_after_an_exception(kind: type[BaseException]) -> None:
    with pytest.raises(kind), busy(2) as processes:
        raise kind
    assert not any(Path(f"/proc/{process.pid}").exists() for process in processes)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_they_do_not_outlive_their_parent(number: int) -> None:
    # the file alone: the package takes seconds to import
    code = "import runpy, signal, sys, time\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells may ignore it
    code += "busy = runpy.run_path(sys.argv[1])['busy']\n"
    code += "with busy(2) as own: print(*(p.pid for p in own), flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code, load.__file__]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    with subprocess.Popen(command, **pipes) as parent:
        try:
            pids = [int(word) for word in parent.stdout.readline().split()]
            assert len(pids) == 2 and all(map(alive, pids))
        finally:
            parent.send_signal(number)
        parent.wait()
        assert soon(lambda: not any(map(alive, pids)))


def test_no_load_is_no_process() -> None:
    with busy(0) as processes:
        assert processes == []
    with pytest.raises(ValueError, match="a load of -1: it must be at least 0"), busy(-1):
        pass


def test_a_load_that_did_not_last_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LoadError, match="ended before their time"), busy(2) as processes:
        os.kill(processes[0].pid, signal.SIGKILL)
        assert soon(lambda: not alive(processes[0].pid))
    assert not any(alive(process.pid) for process in processes)
    monkeypatch.setattr(load, "BUSY", "1 / 0")
    with pytest.raises(LoadError, match="a load of 1: a process of it did not start"), busy(1):
        pass

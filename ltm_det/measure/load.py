"""Load beside a measurement: processes that each keep a CPU busy, as neighbours on a machine do."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Says when it starts; ends when its parent is another, which is when the one that started it died,
# however it did. It asks a few hundred times a second.
BUSY = """
import os, sys
parent = int(sys.argv[1])
print(end=".", flush=True)
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


class LoadError(RuntimeError):
    """A load did not stand as asked for."""


@contextmanager
def busy(number: int) -> Iterator[list[subprocess.Popen]]:
    """Processes of one thread that are at work inside the context, and gone after it in any case.

    They start on the CPUs and with the priority of this process. They stand in a session of their
    own, so that Ctrl-C interrupts the measurement alone, which then ends them.

    Args:
        number: How many, 0 or more.

    Raises:
        ValueError: Fewer than 0.
        LoadError: One of them did not start, or ended before its time.
    """
    if number < 0:
        raise ValueError(f"a load of {number}: it must be at least 0")
    words = [sys.executable, "-I", "-S", "-c", BUSY, str(os.getpid())]
    processes: list[subprocess.Popen] = []
    try:
        for _ in range(number):
            processes.append(
                subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
        for process in processes:
            if process.stdout is None or process.stdout.read(1) != b".":
                raise LoadError(f"a load of {number}: a process of it did not start")
        yield processes
        if ended := [process.pid for process in processes if process.poll() is not None]:
            raise LoadError(f"a load of {number}: processes {ended} ended before their time")
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()  # until it is gone

"""One thread a piece: pieces of a pass are spread over threads, each of which computes alone.

An operator that torch spreads over threads ends at a barrier, at which each thread spins until all
have come. Beside other processes the one whose core was taken keeps all others waiting, once for
every small product, thousands of times a pass. Here a thread takes a piece from its start to its
end, and who has none left sleeps.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_here = threading.local()


@cache
def _libtorch() -> ctypes.CDLL | None:
    """torch's library, where it can be told to use one thread in this thread alone."""
    for file in Path(torch.__file__).parent.glob("lib/*torch_cpu.*"):
        try:
            library = ctypes.CDLL(str(file))
            library.omp_set_num_threads  # noqa: B018  raises where there is none
            return library
        except (OSError, AttributeError):
            continue
    return None


def _work_alone() -> None:
    """Operators that this thread calls have no other threads from here on."""
    _here.working = True
    torch.get_num_threads()  # torch's own choice for a new thread comes first, once
    library = _libtorch()
    assert library is not None  # see `spread`
    library.omp_set_num_threads(1)
    if hasattr(library, "MKL_Set_Num_Threads_Local"):
        library.MKL_Set_Num_Threads_Local(1)


@cache
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """Threads that work alone; of this process, since a fork has none of its parent's."""
    return ThreadPoolExecutor(count, "ltm_det", initializer=_work_alone)


def spread() -> bool:
    """Whether pieces go to several threads; otherwise their operators may."""
    count = torch.get_num_threads()
    if count == 1 or getattr(_here, "working", False) or _libtorch() is None:
        return False
    # a thread that OMP_PROC_BIND bound to a core would hand that down to all
    return not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) >= count


def shared(count: int) -> int:
    """At least so many pieces, as many for each thread."""
    threads = torch.get_num_threads() if spread() else 1
    return -(-count // threads) * threads


def alone(function: Callable[[], T]) -> T:
    """What a function gives on a thread that works alone, or here where there is none."""
    return _pool(1, os.getpid()).submit(function).result() if spread() else function()


def each(function: Callable[[int], T], count: int) -> Iterator[T]:
    """``function`` of 0 to ``count`` - 1 in as many threads as torch may use; results in order.

    The threads have the caller's mode of gradients.
    """
    if count <= 1 or not spread():
        yield from map(function, range(count))
        return
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run(i: int) -> Any:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return function(i)

    yield from _pool(torch.get_num_threads(), os.getpid()).map(run, range(count))


def run(function: Callable[[int], object], count: int) -> None:
    """:func:`each` for what has no result."""
    for _ in each(function, count):
        pass

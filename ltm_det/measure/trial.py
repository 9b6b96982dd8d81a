"""Training steps on trial: what a config's own steps take of memory and time, by pictures a step.

The steps are the run's: its detector, its optimiser, its pictures out of its pipeline. They run in
a process of their own, so that one that is killed for want of memory ends nothing else. To be on
the safe side the pictures are those with the most objects, each at the largest of some sizes that
the pipeline draws. Run as a module,

    python -m ltm_det.measure.trial CONFIG MOST BYTES SECONDS

it is that process, and prints a line for 0, 1, 2, 4, ... pictures: pictures, bytes, seconds.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from ltm_det.measure.flops import without_pretraining
from ltm_det.measure.memory import ROOT, MemoryUnknownError, peak_resident_memory

TOO_LITTLE = ("OutOfMemory", "can't allocate memory")  # in errors of torch
DRAWS = 4  # of a picture out of the pipeline, of which the largest is taken
GROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/memory")  # a container's limit, of both versions
LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
MEMINFO = Path("/proc/meminfo")


class TrialError(Exception):
    """The steps failed; the message says why, and ``memory`` whether it was for want of that."""

    def __init__(self, why: str, memory: bool) -> None:
        super().__init__(why)
        self.memory = memory


class Step(NamedTuple):
    """A training step.

    Attributes:
        pictures: That it is of.
        memory: Bytes at its peak, of the whole process; on a GPU what torch holds there.
        seconds: That it took.
    """

    pictures: int
    memory: int
    seconds: float


def free_memory(device: str) -> int:
    """Bytes that a new process can have: of a GPU's memory, or of the machine's and what a
    container leaves of it.

    Raises:
        MemoryUnknownError: The system does not tell.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = MEMINFO.read_text().splitlines()
        (free,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError) as error:
        raise MemoryUnknownError(f"free memory is read from {MEMINFO}: {error}") from error
    for group in GROUPS:
        for limit, used in LIMITS:
            try:
                most = int(Path(group, limit).read_text())
                free = min(free, most - int(Path(group, used).read_text()))
            except (OSError, ValueError):  # there is none, or it is called 'max'
                continue
    return free


def try_steps(cfg: Config, most: int, memory: float, seconds: float) -> list[Step]:
    """Steps of 1, 2, 4, ... pictures, in a process of its own.

    Args:
        cfg: Of a run. Its detector starts from random weights.
        most: Pictures of the largest step.
        memory: Bytes: no step is tried that would take more.
        seconds: After which no further step is begun.

    Returns:
        The steps by their pictures, the first of none, which is the process before, and one more
        at least.

    Raises:
        TrialError: Not even one picture could be tried.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "trial.py")
        cfg.dump(file)
        words = [file, str(most), str(int(memory)), str(seconds)]
        done = subprocess.run(
            [sys.executable, "-m", __name__, *words], env=env, capture_output=True, text=True
        )
    rows = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("step ")]
    last = {int(n): Step(int(n), int(held), float(took)) for n, held, took in rows}
    steps = list(last.values())
    if len(steps) < 2:
        told = [f"exit status {done.returncode}", *done.stderr.splitlines()][-1]
        raise TrialError(told, done.returncode < 0 or any(words in told for words in TOO_LITTLE))
    return steps


def heaviest(dataset: Any, number: int) -> list[int]:
    """Indices of the pictures with the most objects, where the data set tells; else the first."""
    indices = list(range(len(dataset)))
    if hasattr(dataset, "get_data_info"):
        indices.sort(key=lambda i: -len(dataset.get_data_info(i).get("instances", ())))
    return indices[:number]


def drawn(dataset: Any, index: int) -> dict[str, Any]:
    """A picture out of the pipeline, the largest of `DRAWS`."""
    rows = [row for _ in range(DRAWS) if (row := dataset[index]) is not None]
    return max(rows, key=lambda row: row["inputs"].numel())


def run_steps(cfg: Config, most: int, memory: int, seconds: float) -> None:
    """Prints the steps, in this process."""
    end = time.monotonic() + seconds
    init_default_scope(cfg.get("default_scope", "mmdet"))
    torch.manual_seed(0)
    device = get_device()
    cfg.model.setdefault("data_preprocessor", cfg.get("data_preprocessor"))
    model = MODELS.build(without_pretraining(cfg.model)).to(device)
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    alone = dict(num_workers=0, persistent_workers=False)
    loader = Runner.build_dataloader({**cfg.train_dataloader, **alone})
    dataset, collate = loader.dataset, loader.collate_fn
    picks = heaviest(dataset, most)
    before, pictures = peak(device), 1
    print("step", 0, before, 0.0, flush=True)
    while pictures <= most:
        rows = [drawn(dataset, picks[i % len(picks)]) for i in range(pictures)]
        for _ in range(2 if pictures == 1 else 1):  # the first step makes what stays
            start = time.monotonic()
            model.train_step(collate(rows), wrapper)
            if device == "cuda":
                torch.cuda.synchronize()
            print("step", pictures, peak(device), time.monotonic() - start, flush=True)
            if time.monotonic() > end:
                return
        held = peak(device)
        if held + 2 * (held - before) > memory:
            return
        before, pictures = held, 2 * pictures


def peak(device: str) -> int:
    return torch.cuda.max_memory_reserved() if device == "cuda" else peak_resident_memory()


if __name__ == "__main__":
    file, most, memory, seconds = sys.argv[1:]
    run_steps(Config.fromfile(file), int(most), int(memory), float(seconds))

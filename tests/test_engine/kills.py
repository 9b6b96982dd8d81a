"""Runs of `ltm-det train` in forked processes that are killed at a stage of a save, or at a time.

A fork spares the imports; each child is a process of its own, and is killed as one. The parent is
no process of pytest's, where threads and data loaders of other tests are.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import config as config_module
from mmengine.fileio import LocalBackend
from mmengine.runner import runner as runner_module

from ltm_det.basics import files
from ltm_det.cli import train
from ltm_det.engine import safe_checkpoint_hook
from ltm_det.engine.checkpoints import POINTER, check_resumable, read
from ltm_det.engine.work_folder import LOCK
from tests.test_engine.tiny_detector import base_config

INTERVAL, ITERATIONS = 2, 60
LOGS = "*/vis_data/scalars.json"
STAGES = (
    "within the write",
    "before it is verified",
    "before it is synced",
    "before it is renamed",
    "before last_checkpoint is written",
    "within last_checkpoint",
    "before last_checkpoint is renamed",
    "before the old one is deleted",
    "after the old one is deleted",
)


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def countdown(owner: Any, name: str, number: int, end: Callable[..., Any]) -> None:
    """Lets the ``number``-th call of a function from now on be another's, which gets the function
    and its arguments."""
    own, calls = getattr(owner, name), iter(range(1, 10**9))

    def called(*args: Any, **options: Any) -> Any:
        if next(calls) == number:
            return end(own, *args, **options)
        return own(*args, **options)

    setattr(owner, name, called)


def within_write(own: Callable, backend: Any, content: bytes, path: str) -> None:
    Path(path).write_bytes(content[: random.randrange(len(content))])
    die()


def half_text(own: Callable, path: Path, text: str) -> None:
    own(path, text[: len(text) // 2])
    die()


def then_die(own: Callable, *args: Any) -> None:
    own(*args)
    die()


def aim(stage: str, save: int) -> None:
    """Lets this process kill itself at a stage of its ``save``-th save, counted from 1.

    A save renames two files, and syncs each of them and their folder.
    """
    hook = safe_checkpoint_hook
    {
        "within the write": lambda: countdown(LocalBackend, "put", save, within_write),
        "before it is verified": lambda: countdown(hook, "check_whole", save, die),
        "before it is synced": lambda: countdown(files, "sync", 4 * save - 3, die),
        "before it is renamed": lambda: countdown(os, "replace", 2 * save - 1, die),
        "before last_checkpoint is written": lambda: countdown(hook, "write_text", save, die),
        "within last_checkpoint": lambda: countdown(Path, "write_text", save, half_text),
        "before last_checkpoint is renamed": lambda: countdown(os, "replace", 2 * save, die),
        "before the old one is deleted": lambda: countdown(LocalBackend, "remove", save, die),
        "after the old one is deleted": lambda: countdown(LocalBackend, "remove", save, then_die),
    }[stage]()


def write_config(root: Path, file: Path, keep: int) -> Path:
    cfg = base_config(root).copy()
    cfg.default_hooks.checkpoint.interval = INTERVAL
    cfg.default_hooks.checkpoint.max_keep_ckpts = keep
    cfg.train_cfg.max_iters = ITERATIONS
    for part in ("val_dataloader", "val_cfg", "val_evaluator"):
        cfg[part] = None
    file.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(file)
    return file


def fork(work: Callable[[], int | None], log: Path) -> int:
    """The process id of a child that does some work, prints into a file, and ends."""
    child = os.fork()
    if child:
        return child
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = os.fdopen(out, "w", buffering=1)
        random.seed()
        os._exit(work() or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(70)


def start(config: Path, work_dir: Path, log: Path, stage: str | None = None, save: int = 1) -> int:
    def work() -> int:
        # most of such a run's time: the config is set anew for each checkpoint
        config_module.FormatCode = lambda text, **_: (text, True)
        runner_module.collect_env = dict
        if stage is not None:
            aim(stage, save)
        return train.main([str(config), "--work-dir", str(work_dir), "--resume"])

    return fork(work, log)


def ending(child: int) -> int:
    """Its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def runs_still(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def losses(work_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """Iteration and losses of each line of its logs; a kill leaves halves of lines."""
    rows = []
    for log in sorted(work_dir.glob(LOGS)):
        for line in log.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows.append((row["step"], {k: v for k, v in row.items() if "loss" in k}))
    return rows


def progress(work_dir: Path, keep: int) -> int:
    """The iteration that a run would go on from; 0 without a checkpoint.

    Raises:
        AssertionError: A file is not what its name says.
    """
    there = sorted(work_dir.glob("iter_*.pth"))
    for file in there:
        check_resumable(file)
    assert len(there) <= keep + 1, there
    pointer = work_dir / POINTER
    if not pointer.exists():
        assert len(there) <= 1, "the first checkpoint alone may lie there without it"
        return 0
    named = Path(pointer.read_text())
    check_resumable(named)
    return read(named)["meta"]["iter"]


def campaign(root: Path, folder: Path, keep: int, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kills runs until there were so many kills, lets the last end, and compares all with one that
    nobody killed.

    Half of the kills are aimed at stages of a save, half come at random times.

    Raises:
        AssertionError: Something was lost, or differs.
    """
    draw = random.Random(seed)
    stages = itertools.cycle(draw.sample(STAGES, len(STAGES)))
    config = write_config(root, folder / "config.py", keep)
    began = time.monotonic()
    assert ending(start(config, folder / "whole", folder / "whole.log")) == 0
    seconds = time.monotonic() - began
    wanted = dict(losses(folder / "whole"))
    assert sorted(wanted) == list(range(1, ITERATIONS + 1))

    killed: list[str] = []
    resumed, runs, equal, furthest = 0, 0, 0, 0
    while len(killed) < kills or furthest < ITERATIONS:
        if furthest == ITERATIONS or not runs:
            furthest, runs = 0, runs + 1
        work_dir = folder / f"run{runs}"
        before, logged = furthest, len(losses(work_dir))
        stage = next(stages) if len(killed) % 2 and len(killed) < kills else None
        log = folder / f"run{runs}.log"
        child = start(config, work_dir, log, stage, draw.choice((1, 1, 2)))
        if stage is None and len(killed) < kills:
            while len(losses(work_dir)) == logged and runs_still(child):  # it is being built
                time.sleep(0.02)
            time.sleep(draw.uniform(0, 0.3) * seconds)
            os.kill(child, signal.SIGKILL)
        code = ending(child)
        assert code in (0, -signal.SIGKILL), f"exit code {code}, see {log}"
        furthest = progress(work_dir, keep)
        assert furthest >= before, "a checkpoint was lost"
        if code == 0:
            assert furthest == ITERATIONS
        else:
            killed.append(stage or "at a random time")
        rows = losses(work_dir)
        assert all(row == wanted[step] for step, row in rows), "a loss differs"
        equal = len(rows)
        resumed += before > 0
    rows = dict(losses(work_dir))
    assert rows == wanted, "the resumed run is not the uninterrupted one"
    assert [file.name for file in work_dir.glob(".*")] == [LOCK], "parts are left"
    assert len(list(work_dir.glob("iter_*.pth"))) == keep
    return dict(
        max_keep_ckpts=keep,
        kills={name: killed.count(name) for name in sorted(set(killed))},
        total=len(killed),
        runs=runs,
        starts_that_resumed=resumed,
        losses_compared=equal,
    )


if __name__ == "__main__":
    data, out, *numbers = sys.argv[1:]
    print(json.dumps(campaign(Path(data), Path(out), *map(int, numbers))))

"""What `ltm-det train` goes on from, also where a launcher starts it anew after a crash."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ltm_det.basics.errors import InputError
from ltm_det.engine.checkpoints import POINTER, check_resumable, read, to_resume

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def use_safe_checkpoints(cfg: Config) -> None:
    """Puts :class:`SafeCheckpointHook` where a config has mmengine's hook, or leaves it to it."""
    hooks = cfg.get("default_hooks") or {}
    cfg.default_hooks = dict(checkpoint=dict(type="CheckpointHook")) | hooks
    for hook in (cfg.default_hooks.checkpoint, *(cfg.get("custom_hooks") or [])):
        if hook is not None and str(hook.get("type")).rpartition(".")[2] == "CheckpointHook":
            hook["type"] = "mmdet.SafeCheckpointHook"


def resume(cfg: Config, wanted: str | None, say: Callable[[str], Any]) -> None:
    """Writes into the config what the run goes on from.

    Under ``torchrun --max-restarts`` a restart goes on from the work folder's newest checkpoint
    without being told. That this is one of the same run is seen to at the first start.

    Args:
        wanted: None for a new run, 'auto' for the work folder's latest, or a checkpoint.
        say: Is told what is chosen where that is not what was asked for.

    Raises:
        InputError: The checkpoint can't be resumed, or with restarts to come the work folder holds
            checkpoints of another run.
    """
    hook = cfg.default_hooks.get("checkpoint") or {}
    optimizer = hook.get("save_optimizer", True)
    work_dir = Path(cfg.work_dir)
    folders = [Path(hook["out_dir"]) / work_dir.name] if hook.get("out_dir") else []
    restarts = [
        int(os.environ.get(f"TORCHELASTIC_{name}", 0)) if cfg.launcher == "pytorch" else 0
        for name in ("RESTART_COUNT", "MAX_RESTARTS")
    ]
    if restarts[0]:
        file = to_resume(work_dir, folders, optimizer, say)
        if file is not None:
            wanted = file
            say(f"Restart {restarts[0]} of {restarts[1]}: going on from {file}")
    elif restarts[1] and wanted != "auto":
        there = [work_dir / POINTER, *(f for d in (work_dir, *folders) for f in d.glob("*.pth"))]
        if there := [file for file in there if file.exists()]:
            raise InputError(
                f"with --max-restarts a restart goes on from the work folder, and {there[0]} is of "
                "another run\nGo on from it with --resume alone, or name another --work-dir"
            )
    if wanted == "auto":
        wanted = to_resume(work_dir, folders, optimizer, say)
    elif wanted is not None:
        check_resumable(wanted, optimizer)
    if wanted is not None:
        cfg.resume, cfg.load_from = True, wanted
        if done := finished(cfg, wanted):
            say(done)


def finished(cfg: Config, file: str) -> str:
    """What to say of a checkpoint that has trained all that the config asks for; else nothing."""
    if "://" in file:
        return ""
    meta, asked = read(file)["meta"], cfg.get("train_cfg") or {}
    for name, limit in dict(iter="max_iters", epoch="max_epochs").items():
        if limit in asked and meta[name] >= asked[limit]:
            return (
                f"{file} has trained {meta[name]} of train_cfg.{limit}={asked[limit]}: nothing is "
                f"left to train. For more: --cfg-options train_cfg.{limit}=N"
            )
    return ""


@contextmanager
def disk_errors_named(cfg: Config) -> Iterator[None]:
    """Turns the error of a log that finds no room into an :class:`InputError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            f"no room to write {error.filename or 'a file'}, with the work folder {cfg.work_dir}: "
            f"{error.strerror}\nMake room, and go on with --resume"
        ) from error

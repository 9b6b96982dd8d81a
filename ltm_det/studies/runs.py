"""Running commands one after another, and tables of what came out of them."""

import csv
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from mmengine.config import Config

from ltm_det.basics.files import whole
from ltm_det.basics.finite import check_numbers
from ltm_det.basics.words import brief
from ltm_det.engine.preflight import OWN_HOOKS

CHECKOUT = Path(__file__).resolve().parents[2]
# Where commands run and their paths start: a checkout, or without one where one is.
ROOT = CHECKOUT if (CHECKOUT / "tools").is_dir() else Path.cwd()
METRICS = ("bbox_mAP", "bbox_mAP_50", "segm_mAP", "segm_mAP_50")
ONE_THREAD = dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
RECIPE = ("model", "train_cfg", "optim_wrapper", "param_scheduler", "randomness")


def run_tool(command: Sequence[str], log: Path) -> float:
    """Runs a command from `ROOT`, with one thread, and waits for it.

    Args:
        command: Its name, such as 'train', and its options.
        log: File for all that it prints; its folder is made.

    Returns:
        Minutes that it took.

    Raises:
        RuntimeError: It failed; the message has the command and the log's place.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.time()
    with open(log, "w") as file:
        run = [sys.executable, "-m", "ltm_det.cli", *command]
        env = dict(os.environ, **ONE_THREAD)
        done = subprocess.run(run, cwd=ROOT, env=env, stdout=file, stderr=file)
    if done.returncode:
        last = brief("\n".join(log.read_text(errors="replace").splitlines()[-5:]))
        raise RuntimeError(f"{as_typed(command)} failed: see {log}\n{last}")
    return round((time.time() - start) / 60, 2)


def as_typed(command: Sequence[str]) -> str:
    """A command as one types it."""
    return shlex.join(["ltm-det", *command])


def from_root(path: Path) -> str:
    """A path as seen from the repository's root; one outside of it stays absolute."""
    path = ROOT / path
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def last_metrics(work_dir: Path) -> dict[str, float]:
    """The AP values of the newest evaluation logged under a work directory.

    Raises:
        FileNotFoundError: There is none.
        InputError: An AP is NaN.
    """
    # Of a training, and of a test; a run's folder is named by its time.
    logs = [*work_dir.glob("*/vis_data/scalars.json"), *work_dir.glob("*/[0-9]*.json")]
    for log in sorted(logs, key=lambda log: log.relative_to(work_dir).parts[0], reverse=True):
        for line in reversed(log.read_text().splitlines()):
            values = json.loads(line)
            if "coco/bbox_mAP" in values:
                found = {name: values[f"coco/{name}"] for name in METRICS}
                check_numbers(found, f"the evaluation in {log}")
                return found
    raise FileNotFoundError(f"no evaluation is logged under {work_dir}")


def last_checkpoint(work_dir: Path) -> Path | None:
    """A run's last checkpoint, if there is one; its folder may have been moved since."""
    pointer = work_dir / "last_checkpoint"
    if not pointer.exists():
        return None
    checkpoint = work_dir / Path(pointer.read_text().strip()).name
    return checkpoint if checkpoint.exists() else None


def trained(folder: Path, cfg: Config) -> bool:
    """Whether the last run in a folder was a training with this config, up to its evaluation.

    Where its data and its folders lie makes no difference.
    """
    logged = sorted(folder.glob("*/vis_data/config.py"))
    if not logged or last_checkpoint(folder) is None:
        return False
    scalars = logged[-1].with_name("scalars.json")  # of this run, not of one before it
    if not scalars.exists() or '"coco/bbox_mAP"' not in scalars.read_text():
        return False
    return recipe(Config.fromfile(logged[-1], import_custom_modules=False)) == recipe(cfg)


def recipe(cfg: Config) -> dict[str, object]:
    """What makes a training what it is, wherever its data and its folders lie."""
    parts = {key: cfg.get(key) for key in RECIPE}
    hooks = [hook for hook in cfg.get("custom_hooks") or [] if hook["type"] not in OWN_HOOKS]
    start = Path(cfg.get("load_from") or "").parts[-2:]
    return parts | dict(hooks=hooks, start=start, batch=cfg.train_dataloader.batch_size)


def time_left(minutes: Mapping[str, list[float]], modes: Sequence[str], jobs: int) -> str:
    """Estimate from the runs so far; a mode without any takes as long as the others."""
    known = [value for values in minutes.values() for value in values]
    if not known:
        return f"{len(modes)} left"
    total = sum(mean(minutes[mode] or known) for mode in modes) / jobs
    return f"{len(modes)} left, about {total:.0f} min"


def read_rows(path: Path) -> list[dict[str, object]]:
    """The rows of a table, all values as strings; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Writes a table, whole or not at all, so that an interruption loses no rows."""
    with whole(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def commit() -> str:
    """The commit that runs, marked where files differ from it that are no results."""
    head = git("rev-parse", "--short=12", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return f"{head}-dirty" if changed else head


def git(*words: str) -> str:
    """What it prints; nothing where there is no repository."""
    found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip()

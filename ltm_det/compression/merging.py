"""From a choice to a detector: converted, calibrated, fine-tuned; and its files."""

import copy
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from ltm_det.compat.checkpoint import BACKBONE, WHOLE, fitting
from ltm_det.compression.choice import Choice
from ltm_det.compression.given import Given, loaded
from ltm_det.compression.settings import Settings, iterations_of
from ltm_det.conversion.calibration import calibrate_if_better, merger_parameters
from ltm_det.conversion.convert import dense_backbone, save_converted
from ltm_det.conversion.own_schedule import set_schedule
from ltm_det.conversion.unlabelled import unlabelled_batches
from ltm_det.engine.building import building
from ltm_det.engine.preflight import OWN_HOOKS, add_hook
from ltm_det.engine.resuming import disk_errors_named, resume, use_safe_checkpoints
from ltm_det.studies.runs import last_checkpoint

FOLD = 5  # one of so many batches tells whether calibration helps
BATCH = 8
GENTLE = 0.5  # learning rate of a fine-tuning, by that of a training


def converted(choice: Choice, found: Mapping[str, Any], say: Callable[[str], Any]) -> tuple:
    """The detector of a choice, calibrated where that helps.

    Returns:
        The detector on the CPU, and a report: ``calibrated``, and the maps' relative ``error``
        before and after on pictures that were not fitted.
    """
    model, settings = choice.model(found), choice.settings
    number = min(settings.calibration, choice.given.train_pictures)
    size = max(1, min(BATCH, number // FOLD))
    if not found["merger"] or number < 2:
        return model, dict(calibrated=False, why="nothing is merged" if number else "not asked for")
    try:
        merger_parameters(model.backbone)
    except ValueError as error:
        return model, dict(calibrated=False, why=str(error))
    device = get_device()
    model.to(device)
    with redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        batches = unlabelled_batches(choice.given.cfg, number, size)
    held_out = max(1, len(batches) // FOLD)
    teacher = dense_backbone(choice.config(found), model)
    done = calibrate_if_better(
        model.backbone, teacher, batches[held_out:], batches[:held_out], steps=settings.steps
    )
    say(f"error of the maps: {done.before:.4f}, calibrated {done.after:.4f}")
    why = "" if done.kept else "it did not help"
    error = dict(before=done.before, after=done.after) if done.kept else dict(before=done.before)
    return model.cpu(), dict(calibrated=done.kept, why=why, error=error, pictures=number)


def finetuning_config(
    cfg: Config, start: Path, folder: Path, found: Given, settings: Settings, merged: bool
) -> Config:
    """The config of the fine-tuning.

    Args:
        cfg: Of the detector to train.
        start: Its checkpoint.
        folder: For logs and checkpoints.
        merged: Whether its backbone merges; else there is no dense twin to follow.
    """
    cfg = copy.deepcopy(cfg)
    batch = settings.batch or cfg.train_dataloader.batch_size
    cfg.optim_wrapper.optimizer.lr *= GENTLE
    set_schedule(cfg, iterations_of(settings, found.train_pictures, batch), batch)
    for part in ("dataloader", "cfg", "evaluator"):  # AP is computed by steps of their own
        cfg[f"val_{part}"] = cfg[f"test_{part}"] = None
    cfg.train_cfg.pop("val_interval")
    cfg.load_from, cfg.resume, cfg.launcher = str(start.resolve()), False, "none"
    cfg.work_dir, cfg.experiment_name = str(folder), folder.name
    cfg.setdefault("randomness", dict(seed=0))
    if settings.distill and merged:
        hook = dict(type="DistillHook", teacher=str(Path(found.checkpoint).resolve()))
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), hook]
    use_safe_checkpoints(cfg)
    for own in OWN_HOOKS:
        add_hook(cfg, own)
    return cfg


def finetuned(cfg: Config, say: Callable[[str], Any]) -> nn.Module:
    """Trains, or goes on with a training that was interrupted.

    Args:
        cfg: Of :func:`finetuning_config`.

    Returns:
        The detector of the last checkpoint, on the CPU.
    """
    folder = Path(cfg.work_dir)
    for other in folder.parent.glob("finetune-*"):  # of other choices
        if other != folder:
            shutil.rmtree(other)
    if any(folder.glob("*.pth")):
        resume(cfg, "auto", say)
    part = WHOLE if cfg.get("resume") else BACKBONE
    model = cfg.model.copy()
    with fitting(part), disk_errors_named(cfg), building(cfg):
        Runner.from_cfg(cfg).train()
    MMLogger.get_current_instance().setLevel("ERROR")
    last = last_checkpoint(folder)
    assert last is not None
    return loaded(Config(dict(cfg, model=model)), str(last))


def save(cfg: Config, detector: nn.Module, classes: Sequence[str], out: Path) -> None:
    """Writes a detector's checkpoint, and its config beside it."""
    cfg = copy.deepcopy(cfg)
    cfg.pop("work_dir", None)
    detector.dataset_meta = dict(classes=tuple(classes))
    save_converted(cfg, detector, out)

"""The schedule of a run on one's own data: how many steps of how many pictures."""

from collections.abc import Callable
from math import ceil, sqrt
from typing import Any

from mmengine.config import Config

from ltm_det.datasets.own import OwnData

EPOCHS, LEAST = 36, 2000  # mmdet's longest usual schedule; iterations below which little is learned
LOGGED = 50  # iterations between lines of mmengine's log
BASE_BATCH = 16  # pictures a step, that mmdet's learning rates are for


def fit_schedule(
    cfg: Config,
    data: OwnData,
    epochs: int | None,
    batch: int,
    say: Callable[[str], Any] = print,
) -> None:
    """The schedule for so many pictures a step.

    Args:
        epochs: Times through the training pictures; None: `EPOCHS`, or as many as `LEAST`
            iterations take.
        batch: Pictures a step and process.
        say: Is told what comes of it.
    """
    steps = ceil(len(data.train.coco["images"]) / batch)
    epochs = epochs or max(EPOCHS, ceil(LEAST / steps))
    set_schedule(cfg, steps * epochs, batch, steps)
    say(
        f"{batch} pictures a step, --epochs {epochs}: {steps * epochs} steps, learning rate "
        f"{cfg.optim_wrapper.optimizer.lr:.3g}; AP every {cfg.train_cfg.val_interval} steps"
    )


def most_pictures(cfg: Config, pictures: int) -> tuple[int, str]:
    """The most of 2, 4, 8, ... pictures a step that win something, and why more don't.

    Args:
        cfg: Of the run, before its schedule is written.
        pictures: That are trained on.
    """
    limits = {
        max(1, pictures): f"there are {pictures}",
        base_batch(cfg): f"the config's learning rate is for {base_batch(cfg)}",
        max(2, pictures * EPOCHS // LEAST): f"that leaves fewer than {LEAST} in {EPOCHS} epochs",
    }
    most = min(limits)
    return 2 ** (most.bit_length() - 1), limits[most]


def base_batch(cfg: Config) -> int:
    """Pictures a step that the config's learning rate is for."""
    return (cfg.get("auto_scale_lr") or {}).get("base_batch_size", BASE_BATCH)


def set_schedule(cfg: Config, iterations: int, batch: int, least: int = 1) -> None:
    """So many iterations: a warm-up, then a cosine to zero; AP and a checkpoint ten times, but at
    most every ``least`` iterations; the learning rate by the square root of the batch, as Adam's
    scales (arXiv 2205.10287), from the one that the config has for its own batch (`BASE_BATCH`
    where it does not say)."""
    optimizer = cfg.optim_wrapper.optimizer
    optimizer.lr = optimizer.lr * sqrt(batch / base_batch(cfg))
    warm_up, interval = min(500, iterations // 10), max(1, least, iterations // 10)
    if warm_up < 2:  # of one iteration mmengine's would stay at its start
        warm_up = 0
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=interval)
    linear = dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=warm_up)
    cosine = dict(
        type="CosineAnnealingLR",
        by_epoch=False,
        begin=warm_up,
        end=iterations,
        T_max=iterations - warm_up,
        eta_min=0,
    )
    cfg.param_scheduler = [linear, cosine] if warm_up else [cosine]
    cfg.train_dataloader.batch_size = batch
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    cfg.default_hooks.checkpoint = {
        **cfg.default_hooks.checkpoint,
        "by_epoch": False,
        "interval": interval,
        "max_keep_ckpts": 2,
    }
    if iterations < 10 * LOGGED:  # lines of the log
        cfg.default_hooks.logger = dict(type="LoggerHook", interval=max(1, iterations // 10))
    cfg.log_processor = {**(cfg.get("log_processor") or {}), "by_epoch": False}
    scaled = (cfg.get("auto_scale_lr") or {}).get("enable", False)
    cfg.auto_scale_lr = dict(enable=scaled, base_batch_size=batch)

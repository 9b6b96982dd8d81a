"""What ``ltm-det train --data`` chooses for a run by what the machine can do, and what it leaves
behind at the end."""

import argparse
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.runner import Runner

from ltm_det.basics.errors import InputError
from ltm_det.cli.common import CONSOLE
from ltm_det.conversion.own_schedule import fit_schedule, most_pictures
from ltm_det.datasets.own import OwnData
from ltm_det.engine.checkpoints import POINTER
from ltm_det.engine.config_files import override, read_config
from ltm_det.engine.mixed_precision import (
    AUTO,
    BFLOAT16,
    FLOAT32,
    has_bfloat16,
    precision_of,
    set_precision,
)
from ltm_det.measure.batch import largest_batch, memory_at
from ltm_det.measure.memory import MemoryUnknownError
from ltm_det.measure.trial import Step, TrialError, free_memory, try_steps
from ltm_det.pictures.curves import draw_curves, losses_of, metrics_of
from ltm_det.pictures.predictions import contact_sheet

SHARE = dict(cuda=0.9, cpu=0.75)  # of the free memory that a step may take
SECONDS = 60  # after which no further step is tried
FASTER = 0.9  # of float32's time, from which on bfloat16 is worth it
GIB = 2**30
CURVES, PREDICTIONS = "curves.png", "predictions.png"
SHOWN, SCORE = 10, 0.3  # pictures with predictions, and the least score of these
Say = Callable[[str], Any]


def set_up(cfg: Config, args: argparse.Namespace, data: OwnData, say: Say) -> None:
    """Precision, pictures a step and the schedule, after all else in the config is settled.

    Raises:
        InputError: Not even one picture a step fits into the memory, or the model can't be trained.
    """
    former = config_of_former_run(cfg, args)
    precisions, why = precisions_to_try(cfg, args, former)
    batch = given_batch(cfg, args, former, say)
    most, enough = most_pictures(cfg, len(data.train.coco["images"]))
    trials: dict[str, list[Step]] = {}
    memory = math.inf
    if batch is None:
        try:
            memory = free_memory(get_device()) * SHARE.get(get_device(), SHARE["cpu"])
        except MemoryUnknownError as error:
            batch = cfg.train_dataloader.batch_size
            say(f"--batch {batch}, the config's: {error}")
    if batch is None or len(precisions) > 1:
        say("some training steps are tried, to see what they take of memory and time ...")
        for precision in precisions:
            set_precision_if_any(cfg, precision)
            trials[precision] = tried(cfg, batch or most, memory)
    chosen = precisions[0]
    if len(precisions) > 1:
        chosen, why = faster(trials)
    set_precision_if_any(cfg, chosen)
    if why:
        say(f"--precision {chosen}: {why}")
    if batch is None:
        batch = largest_batch(trials[chosen], memory, most)
        if not batch:
            raise too_little(trials[chosen][1].memory, memory)
        steps, limit = trials[chosen], f"{memory / GIB:.1f} GiB that may be used"
        why = f"a step takes about {memory_at(steps, batch) / GIB:.1f} of the {limit}; "
        if batch < most:
            why += f"of {2 * batch} it would take {memory_at(steps, 2 * batch) / GIB:.1f}"
        else:
            why += f"larger ones win nothing: {enough}"
        say(f"--batch {batch}: {why}")
    fit_schedule(cfg, data, args.epochs, batch, say)
    override(cfg, args.cfg_options or {})


def config_of_former_run(cfg: Config, args: argparse.Namespace) -> Config | None:
    """That of the work folder, where its run is to go on: as before, whatever is free now."""
    file = Path(cfg.work_dir) / Path(args.config).name
    return read_config(str(file)) if args.resume is not None and file.is_file() else None


def precisions_to_try(
    cfg: Config, args: argparse.Namespace, former: Config | None
) -> tuple[list[str], str]:
    """Formats of which the faster one is to be found, and why where there is one alone; a format ''
    leaves the config as it is."""
    typed = [key for key in args.cfg_options or {} if key.startswith("optim_wrapper.")]
    if args.amp or any(key.split(".")[1] in ("type", "dtype", "loss_scale") for key in typed):
        return [""], ""
    if args.precision not in (None, AUTO):
        return [args.precision], "as asked for"
    if former is not None:
        return [precision_of(former)], "as the run that goes on"
    device = get_device()
    name = "GPU" if device == "cuda" else "processor"
    if not has_bfloat16(device):
        return [FLOAT32], f"this {name} has no instructions for bfloat16"
    if device == "cuda":
        return [BFLOAT16], f"this {name} has it; never float16, which may overflow in Swin"
    if args.launcher != "none":
        return [FLOAT32], "with --launcher nothing is tried"
    return [FLOAT32, BFLOAT16], ""


def set_precision_if_any(cfg: Config, precision: str) -> None:
    if precision and precision_of(cfg) != precision:
        set_precision(cfg, precision)


def given_batch(
    cfg: Config, args: argparse.Namespace, former: Config | None, say: Say
) -> int | None:
    """Pictures a step, where they are settled without a trial."""
    if args.batch is not None:
        return None if args.batch == AUTO else args.batch
    typed = (args.cfg_options or {}).get("train_dataloader.batch_size")
    if typed is not None:
        return typed
    if former is not None:
        batch = former.train_dataloader.batch_size
        say(f"--batch {batch}: as the run that goes on")
        return batch
    if args.launcher != "none":
        batch = cfg.train_dataloader.batch_size
        say(f"--batch {batch}, the config's: with --launcher nothing is tried")
        return batch
    return None


def tried(cfg: Config, most: int, memory: float) -> list[Step]:
    """Steps of up to so many pictures; beyond what is tried, memory is extrapolated."""
    try:
        return try_steps(cfg, most, memory, SECONDS)
    except TrialError as error:
        if error.memory:
            raise too_little(math.inf, memory) from error
        raise InputError(
            f"a training step, tried to see what fits, failed: {error}\n"
            "The run itself would fail as well; to see where: --batch 1 --precision float32"
        ) from error


def too_little(taken: float, memory: float) -> InputError:
    needs = f", but takes {taken / GIB:.1f}" if taken < math.inf else ""
    return InputError(
        f"not even one picture a step fits into {memory / GIB:.1f} GiB{needs}\n"
        "Give a smaller --family, free some memory, or with --cfg-options "
        "model.backbone.with_cp=True compute activations twice in the place of keeping them"
    )


def faster(trials: Mapping[str, list[Step]]) -> tuple[str, str]:
    """Of float32 and bfloat16 the one that trains faster, by steps of equally many pictures."""
    times = {name: {s.pictures: s.seconds for s in steps} for name, steps in trials.items()}
    shared = max(set(times[FLOAT32]) & set(times[BFLOAT16]))
    ratio = times[BFLOAT16][shared] / times[FLOAT32][shared]
    chosen = BFLOAT16 if ratio < FASTER else FLOAT32
    return chosen, f"a step in bfloat16 took {ratio:.2f} of float32's time"


def finish(cfg: Config, runner: Runner, say: Say) -> None:
    """Writes curves and predictions into the work folder, and says what came out and what is next.

    Pictures that can't be drawn are said to be missing: the run is done.
    """
    folder = Path(cfg.work_dir)
    config = folder / Path(cfg.filename).name  # where mmengine wrote it
    checkpoint = (folder / POINTER).read_text().strip() if (folder / POINTER).exists() else None
    drawn = []
    metrics = metrics_of(runner)
    draws: dict[str, Callable[[Path], Any]] = {
        CURVES: lambda out: draw_curves(losses_of(runner), metrics, out)
    }
    if checkpoint is not None:
        draws[PREDICTIONS] = lambda out: contact_sheet(
            read_config(str(config)), checkpoint, out, SHOWN, SCORE, get_device()
        )
    for name, draw in draws.items():
        try:
            draw(folder / name)
            drawn.append(str(folder / name))
        except Exception as error:  # whatever an unusual config leads to: the training is done
            say(f"{name} could not be drawn: {type(error).__name__}: {error}")
    words = [
        f"{label} {metrics[name][1][-1]:.3f}"
        for name, label in (("bbox_mAP", "box AP"), ("segm_mAP", "mask AP"))
        if name in metrics
    ]
    say(f"{', '.join(words) or 'no AP was measured'}: {', '.join([str(checkpoint), *drawn])}")
    if checkpoint is not None:
        out = folder / "found"
        of = shlex.join([CONSOLE, "predict", str(config), str(checkpoint)])
        say(f"next: {of} --images FOLDER --out {shlex.quote(str(out))}")

"""What a compression would do, and about how long: from a few timed passes of the detector."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from mmengine.device import get_device
from mmengine.runner import Runner
from torch import nn

from ltm_det.compression import costs
from ltm_det.compression.choice import BATCH, TRIES, Choice
from ltm_det.compression.evaluation import some_batches
from ltm_det.compression.exporting import counts_file
from ltm_det.compression.given import Given, compressed_config, loaded, mmdets
from ltm_det.compression.settings import GMACS, LATENCY, MAX_AP_LOSS, Settings, iterations_of
from ltm_det.compression.shared import CHECKED, TIMED
from ltm_det.compression.state import spoken
from ltm_det.conversion.searched_detectors import RUNS, WARM_UP

PASSES = 3  # timed of each kind, after one that is not


class Passes(NamedTuple):
    """Seconds: of a picture through mmdet's detector and through ours, of a picture's maps, of a
    training step, and of a step of calibration."""

    mmdet: float
    ours: float
    maps: float
    train: float
    calibrate: float


def seconds_of(run: Callable[[], Any]) -> float:
    """Of a call, the mean of a few."""
    run()
    start = perf_counter()
    for _ in range(PASSES):
        run()
    return (perf_counter() - start) / PASSES


def timed(found: Given, settings: Settings) -> Passes:
    """Times a few passes."""
    device = get_device()
    cfg = compressed_config(found.cfg, None, {}, found.whole)
    ours = loaded(cfg, found.checkpoint, device)
    _, base = mmdets(found, ours, device)
    batches = some_batches(found.cfg, TIMED)
    images = ours.data_preprocessor(batches[0], False)["inputs"]
    size = max(1, min(BATCH, settings.calibration // 5))
    several = images.expand(size, -1, -1, -1)

    def through(model: nn.Module) -> Callable[[], Any]:
        return lambda: [model.test_step(batch) for batch in batches]

    def fit() -> None:  # what a step of calibration does: maps, maps again, and gradients
        merger = next(iter(ours.backbone.parameters()))
        sum(out.float().mean() for out in ours.backbone(several)).backward()
        merger.grad = None

    with torch.no_grad():
        mmdet, own = (seconds_of(through(model)) / len(batches) for model in (base, ours))
        maps = seconds_of(lambda: ours.backbone(images))
        maps_of_several = seconds_of(lambda: ours.backbone(several))
    step = seconds_of(fit) + maps_of_several if settings.calibration else 0.0
    train = training_step(found, settings, ours) if settings.finetune != 0 else 0.0
    return Passes(mmdet, own, maps, train, step)


def training_step(found: Given, settings: Settings, model: nn.Module) -> float:
    """Seconds of a step on a batch of training pictures, their loading left out."""
    loader = dict(found.cfg.train_dataloader, num_workers=0, persistent_workers=False)
    loader["batch_size"] = settings.batch or loader["batch_size"]
    batch = next(iter(Runner.build_dataloader(loader)))
    model.train()

    def step() -> None:
        data = model.data_preprocessor(batch, True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
        loss.backward()
        model.zero_grad(set_to_none=True)

    try:
        seconds = seconds_of(step)
        if settings.distill:
            with torch.no_grad():
                images = model.data_preprocessor(batch, True)["inputs"]
                seconds += seconds_of(lambda: model.backbone(images))
        return seconds
    finally:
        model.eval()


def plan(found: Given, settings: Settings) -> list[tuple[str, str, float | None]]:
    """Each step: its name, its settings, and its seconds, None where passes tell nothing."""
    passes = timed(found, settings)
    val, budget = found.val_pictures, settings.budget
    images = min(settings.images, found.train_pictures)
    ap = val * passes.ours
    shape = tuple(some_batches(found.cfg, 1)[0]["inputs"][0].shape[1:])
    dense = dict(gmacs=dict(detector=1.0, backbone=1.0), times={})
    choice = Choice(found, settings, shape, dense, True)
    as_files = counts_file(found, settings, get_device())
    unit = choice.units[0]
    choices = sum(len(own) - 1 for own in choice.models(unit).units.values())
    one = passes.ours if found.whole else passes.maps
    clock = choices * (RUNS + WARM_UP) * one if settings.cost == LATENCY else 0.0
    rows = [
        ("dense AP", f"{val} validation pictures", val * passes.mmdet),
        (
            "dense cost",
            f"{TIMED} pictures, mmdet's and ours"
            + (", and its file, which is exported first," if as_files else "")
            + " in turns",
            None if as_files else times_of(passes, 2),
        ),
        (
            f"search: measure {unit or 'blocks'}",
            f"{choices} choices of {'the detector' if found.whole else 'the backbone'} on {images} "
            f"training pictures, {settings.cost}"
            + (f" ({found.why_not})" if found.why_not else ""),
            choices * images * one + clock,
        ),
    ]
    number = min(settings.calibration, found.train_pictures)
    fit = settings.steps * passes.calibrate if number > 1 else 0.0
    fitting = f"{settings.merger['type']}, {settings.steps} steps on {number} pictures"
    if budget.kind == MAX_AP_LOSS:
        rows.append(
            (
                "search: trials",
                f"{settings.trials} candidates at most, each calibrated and evaluated; {budget}",
                settings.trials * (fit + ap),
            )
        )
    else:
        seconds = TRIES * (times_of(passes, 2, 30) if budget.kind != GMACS else one)
        about = f"{budget}" + (f", at most {TRIES} choices as files" if as_files else "")
        rows.append(("search", about, None if as_files else seconds + images * one))
    rows += [
        ("convert and calibrate", fitting if number > 1 else "not calibrated", fit),
        ("AP converted", f"{val} validation pictures", ap),
    ]
    if settings.finetune != 0:
        batch = settings.batch or found.cfg.train_dataloader.batch_size
        steps = iterations_of(settings, found.train_pictures, batch)
        twin = "with" if settings.distill else "without"
        rows += [
            (
                "fine-tune",
                f"{steps} iterations of {batch} pictures, {twin} the dense twin",
                steps * passes.train,
            ),
            ("AP fine-tuned", f"{val} validation pictures", ap),
        ]
    rows.append(("config and checkpoint", "config.py, model.pth", 0.0))
    if settings.export != "none":
        part = "detector" if found.whole else "backbone"
        rows += [
            ("export", f"{part}, {settings.export}; compared on {CHECKED} pictures", None),
            ("AP of the file", f"{val} validation pictures", ap),
        ]
    forms = 3 + (settings.export != "none")
    rows += [
        ("cost", f"{TIMED} pictures, {forms} forms in turns", times_of(passes, forms)),
        ("report", f"{settings.pictures} pictures", 2 * settings.pictures * passes.ours),
    ]
    return rows


def times_of(passes: Passes, forms: int, most: float = costs.SECONDS) -> float:
    """Seconds that a measurement of times takes."""
    a_round = TIMED * (passes.mmdet + (forms - 1) * passes.ours)
    rounds = max(costs.LEAST, min(costs.ROUNDS, int(most / a_round)))
    return (rounds + costs.WARM_UP + 2) * a_round


def dry_run(
    inputs: Callable[[Path], Given],
    settings: Settings,
    folder: Path,
    say: Callable[[str], Any] = print,
) -> None:
    """Says what would be done; nothing is written.

    Args:
        inputs: The detector on the data, whose annotations go to a folder.
    """
    with tempfile.TemporaryDirectory() as where:
        found = inputs(Path(where))
        rows = plan(found, settings)
    width = max(len(name) for name, _, _ in rows)
    say(f"Into {folder}, by passes of the dense detector, timed now on {get_device()}:")
    for name, about, seconds in rows:
        time = "not timed" if seconds is None else f"about {spoken(seconds)}"
        say(f"  {name:{width}}  {time:>12}  {about}")
    whole = sum(seconds for *_, seconds in rows if seconds is not None)
    say(f"In all about {spoken(whole)}, and what is not timed. Nothing was written.")

"""What detectors cost: multiply-accumulates, and milliseconds in turns on validation pictures."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ltm_det.compression.evaluation import Batch
from ltm_det.measure.detectors import parts_timed
from ltm_det.measure.flops import count_backbone, count_macs
from ltm_det.measure.machine import machine
from ltm_det.measure.timing import interleaved, ratios

ROUNDS, LEAST, WARM_UP = 15, 3, 1  # of timing, and how few there may be where pictures take long
SECONDS = 90.0  # that a measurement of times may take
REST = "the rest"


def gmacs(model: nn.Module, batch: Batch) -> dict[str, float]:
    """GMACs of a detector on one picture: ``backbone`` and ``detector``.

    Where mmdet's kind of detector has no counter, everything but the backbone is counted in a real
    pass; sampling, as in deformable attention, counts nothing.
    """
    device = next(model.parameters()).device
    images = model.data_preprocessor(batch, False)["inputs"]
    shape = tuple(images.shape[2:])
    own = count_backbone(model.backbone, shape).macs["backbone"] / 1e9
    try:
        whole = count_macs(model, shape).macs["detector"] / 1e9
    except (TypeError, AttributeError, RuntimeError, NotImplementedError):
        with torch.no_grad():
            maps = model.backbone(images.to(device))
            counter = FlopCounterMode(display=False)
            model.backbone.forward = lambda *args: maps
            try:
                with sdpa_kernel(SDPBackend.MATH), counter:
                    model.test_step(batch)
            finally:
                del model.backbone.forward
        whole = own + counter.get_total_flops() / 2 / 1e9
    return dict(backbone=own, detector=whole)


@torch.no_grad()
def times(
    models: Mapping[str, nn.Module], batches: Sequence[Batch], seconds: float = SECONDS
) -> dict[str, Any]:
    """Times of detectors on the same pictures, in turns, from a picture of the test pipeline to
    objects.

    Args:
        models: By name, in evaluation mode; the first is what ratios are to.
        batches: Of a picture each.
        seconds: That it may take, roughly.

    Returns:
        ``machine``; ``pictures`` and ``rounds``, how many; and ``models`` by name: ``ms``, the
        median of a picture, ``ratio`` with ``lower`` and ``upper`` quartile, and the ``parts`` of
        a picture in ms.
    """
    waits = {name: waiter(model) for name, model in models.items()}

    def run(name: str) -> None:
        for batch in batches:
            models[name].test_step(batch)
        waits[name]()

    runs = {name: partial(run, name) for name in models}
    first = interleaved(runs, 1, WARM_UP)
    rounds = int(seconds / max(1e-6, sum(own[0] for own in first.values())))
    rounds = max(LEAST, min(ROUNDS, rounds))
    measured = interleaved(runs, rounds, 0)
    against = ratios(measured, next(iter(models)))
    each = len(batches)
    device = next((p.device.type for m in models.values() for p in m.parameters()), "cpu")
    return dict(
        machine=machine(device),
        pictures=each,
        rounds=rounds,
        models={
            name: dict(
                ms=1e3 * median(own) / each,
                ratio=against[name].median,
                lower=against[name].lower,
                upper=against[name].upper,
                parts=parts_of(models[name], runs[name], waits[name], each),
            )
            for name, own in measured.items()
        },
    )


def waiter(model: nn.Module) -> Callable[[], object]:
    """What waits for all that a detector has started."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def parts_of(
    model: nn.Module, run: Callable[[], None], wait: Callable[[], object], pictures: int
) -> dict[str, float]:
    """Milliseconds of each part of a picture; none where the detector is one file."""
    if not hasattr(model, "backbone"):
        return {}
    with parts_timed(model, wait) as spent:
        start = interleaved(dict(all=run), 1, 0)["all"][0]
    parts = {part: 1e3 * sum(own) / pictures for part, own in spent.items() if own}
    return parts | {REST: max(0.0, 1e3 * start / pictures - sum(parts.values()))}

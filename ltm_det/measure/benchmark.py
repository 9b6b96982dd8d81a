"""What models cost on the clock: interleaved times of passes, in several formats and forms.

A pass is one of a backbone on a batch of noise: forward, or for training forward and backward, with
the mean square of the maps as its loss. All that are to be compared take turns in one run.
"""

import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ltm_det import deploy
from ltm_det.measure.flops import aligned
from ltm_det.measure.precision import cast, image_dtype, one_pass
from ltm_det.measure.timing import cuda_seconds, interleaved, ratios, wall_seconds

MODES = ("inference", "training")
Run = Callable[[Tensor], Sequence[Tensor]]


class Entry(NamedTuple):
    """One of those that take turns: a model's name, a key of `RUNNERS`, one of ``DTYPES``."""

    model: str
    how: str
    dtype: str


def eager(model: nn.Module, images: Tensor) -> Run:
    return model


def compiled(model: nn.Module, images: Tensor) -> Run:
    return torch.compile(model, dynamic=False)


def frozen(model: nn.Module, images: Tensor) -> Run:
    """Compiled with the weights as constants, packed for the machine's matrix products."""
    return torch.compile(model, dynamic=False, options={"freezing": True})


def exported(model: nn.Module, images: Tensor) -> Run:
    """The operators that torch.export finds, one after the other."""
    return torch.export.export(model, (images,)).module()


def as_file(model: nn.Module, images: Tensor, ending: str, dtype: str = "float32") -> Run:
    """What ``tools/export.py`` writes for images of one shape, run by its runtime on the CPU."""
    if images.dtype != torch.float32 or images.device.type != "cpu":
        raise ValueError("files take float32 images on the CPU: give --dtype float32 --device cpu")
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / f"model{ending}"
    deploy.save(model, images[:1], file, dtype=dtype)
    run = deploy.load(file, torch.get_num_threads())
    run.folder = folder  # lives as long as the function, which maps its weights from there
    return run


# How a model in its mode and on its device is run, by name: given the images to come, a function
# from them to the maps.
RUNNERS: dict[str, Callable[[nn.Module, Tensor], Run]] = dict(
    eager=eager,
    compiled=compiled,
    frozen=frozen,
    exported=exported,
    onnxruntime=partial(as_file, ending=".onnx"),
    openvino=partial(as_file, ending=".xml"),
    openvino_bfloat16=partial(as_file, ending=".xml", dtype="bfloat16"),
)
TRAINABLE = ("eager", "compiled")


def time_entries(
    models: Mapping[str, nn.Module],
    entries: Iterable[Entry],
    shape: tuple[int, int],
    batch: int,
    mode: str,
    rounds: int,
    warm_up: int,
    device: str = "cpu",
) -> tuple[dict[Entry, list[float]], dict[Entry, str]]:
    """Seconds of each entry's passes, in turns.

    Args:
        models: By name, on the device. They are put into the mode.
        entries: What to time.
        shape: Height and width of the images, in pixels.
        batch: Number of images.
        mode: One of `MODES`.
        rounds: That are measured.
        warm_up: Rounds that come before, after one pass of each alone, which compiles it.
        device: 'cpu', timed by the clock, or a CUDA device, timed by its events.

    Returns:
        Seconds of each round; and instead of them, for an entry that does not run, the reason.
    """
    steps, failures, casts = {}, {}, {}
    for model in models.values():
        model.train(mode == "training")
    clock = cuda_seconds if torch.device(device).type == "cuda" else wall_seconds
    with many_compiled():
        for entry in entries:
            key = entry.model, entry.dtype
            if key not in casts:
                casts[key] = cast(models[entry.model], entry.dtype)
            images = torch.rand(batch, 3, *shape, device=device, dtype=image_dtype(entry.dtype))
            try:
                steps[entry] = step(entry, casts[key], images, mode, device)
                steps[entry]()
            except Exception as error:  # whatever a peer, a compiler or a format may raise
                steps.pop(entry, None)
                failures[entry] = f"{type(error).__name__}: {error}".splitlines()[0]
        times = interleaved(steps, rounds, warm_up, clock) if steps else {}
    return times, failures


def step(
    entry: Entry, model: nn.Module, images: Tensor, mode: str, device: str
) -> Callable[[], None]:
    """A pass of a model, which leaves no gradients behind."""
    train = mode == "training"
    with torch.set_grad_enabled(train):
        run = RUNNERS[entry.how](model, images)

    def once() -> None:
        one_pass(run, images, train, entry.dtype, device)
        model.zero_grad(set_to_none=True)

    return once


@contextmanager
def many_compiled():
    """Room for many compiled models of one class, which dynamo takes for one that is recompiled
    again and again; past its limit it would go on in eager form, and say so in its log alone."""
    with torch._dynamo.config.patch(cache_size_limit=512, accumulated_cache_size_limit=512):
        try:
            yield
        finally:
            torch._dynamo.reset()


def exponent(pixels: Sequence[float], seconds: Sequence[float]) -> float:
    """b of seconds = a * pixels ** b, by least squares of logarithms: 1 where cost is linear.

    Raises:
        ValueError: There are not two different numbers of pixels.
    """
    if len(set(pixels)) < 2:
        raise ValueError(f"an exponent takes two sizes or more, not {sorted(set(pixels))} pixels")
    return float(np.polyfit(np.log(pixels), np.log(seconds), 1)[0])


def rows_of(
    entries: Iterable[Entry],
    times: Mapping[Entry, Sequence[float]],
    failures: Mapping[Entry, str],
    macs: Mapping[str, int],
    base: Entry,
) -> list[dict[str, Any]]:
    """What `time_entries` found at one size, batch and mode, a row for each entry.

    ``ratio`` is that of medians to the base entry, ``same_way`` that to the base's model in the
    same form and format; None where there is none.

    Raises:
        ValueError: The base does not run.
    """
    if base in failures:
        raise ValueError(
            f"{' '.join(base)}, the base of all ratios, does not run: {failures[base]}\n"
            "Choose another one with --base, or put another --how or --dtype first"
        )
    found, rows = ratios(times, base), []
    for entry in entries:
        row = dict(entry._asdict(), gmacs=macs[entry.model] / 1e9)
        row["gmacs_ratio"] = macs[entry.model] / macs[base.model]
        if entry in failures:
            row["failure"] = failures[entry]
        else:
            beside = times.get(entry._replace(model=base.model))
            row |= dict(seconds=times[entry], median_ms=1e3 * median(times[entry]))
            row |= dict(ratio=found[entry].median, quartiles=found[entry][1:])
            row["same_way"] = median(times[entry]) / median(beside) if beside else None
        rows.append(row)
    return rows


def exponents(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How times grow with pixels, for each entry, batch and mode that has two sizes or more."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    keys = (*Entry._fields, "batch", "mode")
    for row in rows:
        if "seconds" in row:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for group, own in groups.items():
        pixels = [math.prod(row["shape"]) for row in own]
        if len(set(pixels)) > 1:
            value = exponent(pixels, [row["median_ms"] for row in own])
            found.append(dict(zip(keys, group), pixels=pixels, exponent=value))
    return found


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """An aligned table of rows of one size, batch and mode; '-' where nothing was measured."""
    timed = any("seconds" in row or "failure" in row for row in rows)
    ways = len({(row["how"], row["dtype"]) for row in rows}) > 1
    weighed = any("peak_bytes" in row for row in rows)
    header = ["model", "how", "dtype", "GMACs", "of base"]
    header += ["median ms", "of base", "quartiles"] * timed + ["same way"] * (timed and ways)
    table = [header + ["peak MiB", "of base"] * weighed]
    for row in rows:
        cells = [row["model"], row["how"], row["dtype"]]
        cells += [f"{row['gmacs']:.2f}", f"{row['gmacs_ratio']:.3f}"]
        if timed and "seconds" in row:
            cells += [f"{row['median_ms']:.1f}", f"{row['ratio']:.3f}"]
            cells.append("{:.3f} to {:.3f}".format(*row["quartiles"]))
            cells += [f"{row['same_way']:.3f}" if row["same_way"] else "-"] * ways
        elif timed:
            cells += ["-"] * (4 if ways else 3)
        if weighed and "peak_bytes" in row:
            cells += [f"{row['peak_bytes'] / 2**20:.1f}", f"{row['peak_ratio']:.3f}"]
        elif weighed:
            cells += ["-"] * 2
        table.append(cells)
    notes = [
        f"{row['model']} {row['how']} {row['dtype']} does not run: {row[key]}"
        for row in rows
        for key in ("failure", "peak_failure")
        if key in row
    ]
    return "\n".join([aligned(table), *notes])


def machine(device: str) -> dict[str, Any]:
    """What a table has to say of where it was measured."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
        cpu = names[0] if names else cpu
    found = dict(cpu=cpu, cores=os.cpu_count(), threads=torch.get_num_threads())
    on_gpu = torch.device(device).type == "cuda"
    found["device"] = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    return found | dict(torch=torch.__version__, system=platform.platform(terse=True))


def name_of(entry: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    """A row's name, with its form and format only where the rows differ in them."""
    ways = [key for key in ("how", "dtype") if len({row[key] for row in rows}) > 1]
    return " ".join([entry["model"], *(entry[key] for key in ways)])

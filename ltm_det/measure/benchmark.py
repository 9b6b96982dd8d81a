"""What models cost on the clock: interleaved times of passes, in several formats and forms.

A pass is one of a backbone on a batch of noise: forward, or for training forward and backward, with
the mean square of the maps as its loss. All that are to be compared take turns in one run.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltm_det import deploy
from ltm_det.measure.load import busy
from ltm_det.measure.precision import cast, image_dtype, one_pass
from ltm_det.measure.timing import cuda_seconds, interleaved, wall_seconds

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
    """What ``ltm-det export`` writes for images of one shape, run by its runtime on the CPU."""
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
    loads: Iterable[int] = (0,),
) -> tuple[dict[int, dict[Entry, list[float]]], dict[Entry, str]]:
    """Seconds of each entry's passes, in turns inside each load.

    Args:
        models: By name, on the device. They are put into the mode.
        entries: What to time.
        shape: Height and width of the images, in pixels.
        batch: Number of images.
        mode: One of `MODES`.
        rounds: That are measured.
        warm_up: Rounds that come before, after one pass of each alone, which compiles it.
        device: 'cpu', timed by the clock, or a CUDA device, timed by its events.
        loads: Numbers of busy processes beside it. Nothing is compiled under load.

    Returns:
        By load, seconds of each round; and instead of them, for an entry that does not run, the
        reason.
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
        times: dict[int, dict[Entry, list[float]]] = {}
        for load in loads:
            with busy(load):
                times[load] = interleaved(steps, rounds, warm_up, clock) if steps else {}
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

"""Run an exported file on the CPU: ONNX Runtime for .onnx, OpenVINO for .xml.

Either package is imported where it is needed alone. Shapes: B images, C channels, H x W pixels.
"""

import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ltm_det.basics.arguments import check, flag, many, number, optional, text, whole
from ltm_det.basics.errors import InputError
from ltm_det.deploy.seal import check_seal

DTYPE = ["ltm_det", "dtype"]  # where a file for OpenVINO names what to compute in
HINTS = dict(float32="f32", bfloat16="bf16", int8="f32")  # of what is not int8 already

DETECTOR = "detector"  # where a file describes the detector in it, as JSON

# What is known of a detector, see ltm_det.deploy.detector.described.
ABOUT = dict(
    mean=many(number()),
    std=many(number(above=0)),
    rgb=flag,
    pad_value=number(),
    mask_threshold=number(),
    classes=optional(many(text)),
    scale=optional(many(whole(1), least=2)),
    divisor=whole(1),
)

Runner = Callable[[Tensor], list[Tensor]]


class Loaded(NamedTuple):
    """A file in its runtime."""

    run: Callable  # from arrays to arrays
    shape: Sequence[int | None]  # of images, None where it is free
    names: Sequence[str]  # of what comes out
    about: dict[str, Any] | None  # a detector, see ltm_det.deploy.detector.described


def load_runner(file: str | Path, threads: int | None = None) -> tuple[Runner, Loaded]:
    """A function from images (B, 3, H, W) to the list of float32 maps that the exported model gave,
    or to a detector's objects, and what is known of the file.

    A backbone's file for one image, as those for one size are, gets a batch's images one by one. A
    detector's takes one image.

    Args:
        file: Written by ``ltm-det export``, .onnx or .xml.
        threads: That the runtime may use; None: as many as it chooses.

    Raises:
        FileNotFoundError, ValueError: There is no such file, it is of another kind, or damaged.
        ImportError: The file's runtime is not installed.
    """
    file = Path(file)
    runtimes = {".onnx": _onnx_runtime, ".xml": _openvino}
    if file.suffix not in runtimes:
        raise ValueError(f"{file} ends in none of {sorted(runtimes)}")
    if not file.is_file():
        raise FileNotFoundError(
            f"no file at {file}: make it with ltm-det export CONFIG CHECKPOINT --out {file}"
        )
    if file.suffix == ".xml" and not file.with_suffix(".bin").is_file():
        raise FileNotFoundError(f"no {file.with_suffix('.bin')} beside {file}: both are one model")
    check_seal(file)
    try:
        loaded = runtimes[file.suffix](file, threads)
    except ImportError:
        raise
    except Exception as error:  # whatever a runtime has to say of a broken file
        lines = str(error).strip().splitlines() or [repr(error)]  # the first may be a place alone
        told = "; ".join(dict.fromkeys([lines[0], lines[-1]]))
        beside = f", or {file.with_suffix('.bin')}," if file.suffix == ".xml" else ""
        raise ValueError(f"{file}{beside} cannot be loaded: {told}") from error
    run, shape, names, _ = loaded

    def checked(images: Tensor) -> list[Tensor]:
        one_by_one = shape[0] == 1 and images.ndim == 4 and "boxes" not in names
        taken = [None if one_by_one else shape[0], *shape[1:]]
        fits = len(taken) == images.ndim
        if not fits or any(own not in (None, n) for own, n in zip(taken, images.shape)):
            raise ValueError(
                f"{file} takes images of shape {shape}, got {list(images.shape)}: export it with "
                "--shape H W for this size, or with --dynamic for any"
            )
        array = images.detach().float().cpu().contiguous().numpy()
        parts = [run(array[i : i + 1]) for i in range(len(array))] if one_by_one else [run(array)]
        return [
            torch.cat([torch.from_numpy(part) for part in maps]).to(images.device)
            for maps in zip(*parts, strict=True)
        ]

    return checked, loaded


def package(name: str) -> ModuleType:
    """The package, or an error that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"{name} is not installed: pip install 'ltm_det[deploy]'") from error


def _onnx_runtime(file: Path, threads: int | None) -> Loaded:
    onnxruntime = package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    shape = [n if isinstance(n, int) else None for n in entry.shape]
    names = [output.name for output in session.get_outputs()]
    about = session.get_modelmeta().custom_metadata_map.get(DETECTOR)
    return Loaded(lambda x: session.run(None, {entry.name: x}), shape, names, described(about))


@cache
def openvino_core() -> Any:
    """OpenVINO, the one of this process, for as long as it lives.

    Each core gives signals a stack of its own and hands the former one back at its end: of two that
    end in the order in which they began, the second hands back memory that is gone, and the next
    signal, such as a child's end or Ctrl-C, is a segmentation fault (OpenVINO 2026.4).
    """
    return package("openvino").Core()


def _openvino(file: Path, threads: int | None) -> Loaded:
    core = openvino_core()
    model = core.read_model(file)
    options = dict(PERFORMANCE_HINT="LATENCY")
    options["INFERENCE_PRECISION_HINT"] = HINTS[model.get_rt_info(DTYPE).astype(str)]
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", options)
    shape = [n.get_length() if n.is_static else None for n in model.input().partial_shape]
    names = [output.get_any_name() for output in compiled.outputs if output.names]
    place = ["ltm_det", DETECTOR]
    about = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else None
    return Loaded(lambda x: compiled(x).to_tuple(), shape, names, described(about))


def described(given: str | None) -> dict[str, Any] | None:
    """What a file says of its detector.

    Raises:
        InputError: It is not what an export writes.
    """
    if given is None:
        return None
    about = json.loads(given)
    if not isinstance(about, dict) or (missing := ABOUT.keys() - about.keys()):
        lacks = sorted(missing) if isinstance(about, dict) else "all"
        raise InputError(f"what it says of its detector lacks {lacks}: export it again")
    check("what it says of its detector", about, ABOUT)
    return about

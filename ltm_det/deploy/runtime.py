"""Run an exported file on the CPU: ONNX Runtime for .onnx, OpenVINO for .xml.

Either package is imported where it is needed alone. Shapes: B images, C channels, H x W pixels.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

DTYPE = ["ltm_det", "dtype"]  # where a file for OpenVINO names what to compute in
HINTS = dict(float32="f32", bfloat16="bf16")

Runner = Callable[[Tensor], list[Tensor]]
# from arrays to arrays; the shape of images, None where it is free; names of what comes out
Loaded = tuple[Callable, Sequence[int | None], Sequence[str]]


def load(file: str | Path, threads: int | None = None) -> Runner:
    """A function from images (B, 3, H, W) to the list of float32 maps that the exported model gave.

    A backbone's file for one image, as those for one size are, gets a batch's images one by one. A
    detector's, from :func:`ltm_det.deploy.save_detector`, takes one image and gives its objects.

    Args:
        file: Written by ``tools/export.py``, .onnx or .xml.
        threads: That the runtime may use; None: as many as it chooses.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or it is of another kind.
        ImportError: The file's runtime is not installed.
    """
    file = Path(file)
    runtimes = {".onnx": _onnx_runtime, ".xml": _openvino}
    if file.suffix not in runtimes:
        raise ValueError(f"{file} ends in none of {sorted(runtimes)}")
    if not file.is_file():
        raise FileNotFoundError(
            f"no file at {file}: make it with tools/export.py CONFIG CHECKPOINT --out {file}"
        )
    run, shape, names = runtimes[file.suffix](file, threads)

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

    return checked


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
    return lambda images: session.run(None, {entry.name: images}), shape, names


def _openvino(file: Path, threads: int | None) -> Loaded:
    openvino = package("openvino")
    model = openvino.Core().read_model(file)
    options = dict(PERFORMANCE_HINT="LATENCY")
    options["INFERENCE_PRECISION_HINT"] = HINTS[model.get_rt_info(DTYPE).astype(str)]
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    compiled = openvino.compile_model(model, "CPU", options)
    shape = [n.get_length() if n.is_static else None for n in model.input().partial_shape]
    return lambda images: compiled(images).to_tuple(), shape, ()

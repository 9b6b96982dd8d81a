"""Peak memory of a backbone, measured while it runs.

What is measured is what one pass over one image, or one batch, adds on top of the loaded model: a
forward pass for inference, or forward and backward pass of a training step, gradients included,
with the mean square of the maps as its loss. Weights and the images themselves are not in it.

Every measurement has a fresh process, which first runs a tiny image, so that libraries have set up
what they keep. On a GPU the number is that of torch's own allocator. On the CPU it is the rise of
the process's resident memory, which Linux tells; there, glibc is told to hand every block of
64 KiB or more back as soon as it is freed, and one thread computes; the kernel's own count may be
off by a few hundred KiB, so that numbers below some MiB mean little. Run as a module,

    python -m ltm_det.measure.memory CONFIG HEIGHT WIDTH {eval,train} DEVICE BATCH DTYPE

it is that process, and prints bytes.
"""

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from ltm_det.measure.flops import build_backbone
from ltm_det.measure.precision import cast, image_dtype, one_pass

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = (32, 32)  # pixels
CHILD = dict(
    MALLOC_MMAP_THRESHOLD_="65536",  # bytes
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)
PROC = Path("/proc/self")


class MemoryUnknownError(Exception):
    """Peak memory could not be measured; the message says why."""


def peak_memory(
    cfg: Config,
    shape: tuple[int, int],
    train: bool,
    device: str = "cpu",
    batch: int = 1,
    dtype: str = "float32",
) -> int:
    """Bytes that one pass of a config's backbone adds at its peak, measured in a fresh process.

    Args:
        cfg: Of the detector. Only its backbone is built, without pretrained weights.
        shape: Height and width of the image, in pixels.
        train: A training step's forward and backward pass, or else a forward pass alone.
        device: 'cpu' or a CUDA device.
        batch: Number of images.
        dtype: One of `ltm_det.measure.precision.DTYPES`.

    Raises:
        MemoryUnknownError: The system does not tell, or the process failed, out of memory say.
    """
    needed = {key: cfg[key] for key in ("default_scope", "custom_imports") if key in cfg}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "backbone.py")
        Config(dict(needed, model=dict(backbone=cfg.model.backbone))).dump(path)
        mode = "train" if train else "eval"
        words = [path, *shape, mode, device, batch, dtype]
        printed = in_fresh_process(__name__, words, f"at {shape[0]} x {shape[1]}")
    return int(printed[-1])


def in_fresh_process(module: str, words: Sequence[object], what: str) -> list[str]:
    """The words that a module prints, run with these arguments as memory is measured.

    Raises:
        MemoryUnknownError: It failed; the message says of ``what``.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    env = {**os.environ, **CHILD, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", module, *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        reason = [f"exit status {done.returncode}, out of memory?", *done.stderr.splitlines()][-1]
        raise MemoryUnknownError(f"no measurement {what}: {reason}")
    return done.stdout.split()


def measure(
    backbone: nn.Module,
    shape: tuple[int, int],
    train: bool,
    device: str,
    batch: int = 1,
    dtype: str = "float32",
) -> int:
    """What :func:`peak_memory` returns, measured in this process."""
    backbone = cast(backbone.to(device), dtype)
    backbone.train(train)
    options = dict(device=device, dtype=image_dtype(dtype))
    args = train, dtype, device
    one_pass(backbone, torch.rand(1, 3, *WARM_UP, **options), *args)
    backbone.zero_grad(set_to_none=True)
    gc.collect()
    images = torch.rand(batch, 3, *shape, **options)
    return rise_of_memory(device, one_pass, backbone, images, *args)


def rise_of_memory(device: str, function: Callable, *args: object) -> int:
    """Bytes by which memory at its peak during ``function(*args)`` exceeds that before: a GPU's by
    torch's own allocator, on the CPU the process's."""
    if torch.device(device).type != "cuda":
        return rise_of_resident_memory(function, *args)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function(*args)
    return torch.cuda.max_memory_allocated(device) - before


def rise_of_resident_memory(function: Callable, *args: object) -> int:
    """Bytes by which resident memory at its peak during ``function(*args)`` exceeds that before."""
    try:
        (PROC / "clear_refs").write_text("5")  # the peak is the present value from here on
    except OSError as error:
        raise MemoryUnknownError(
            f"peak memory on the CPU is read from Linux's /proc; this is {sys.platform}: {error}"
        ) from error
    before = peak_resident_memory()
    function(*args)
    return peak_resident_memory() - before


def peak_resident_memory() -> int:
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise MemoryUnknownError(f"no VmHWM in {PROC / 'status'}; this is {sys.platform}")


def main(
    config: str, height: str, width: str, mode: str, device: str, batch: str, dtype: str
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(Config.fromfile(config))
    try:
        shape = int(height), int(width)
        print(measure(backbone, shape, mode == "train", device, int(batch), dtype))
    except MemoryUnknownError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What a table of times has to say of where they were measured."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from ltm_det.cpu import products

# The instructions that the speed of matrix products hangs on.
FLAGS = ("avx2", "avx512f", "amx_tile")
CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def machine(device: str) -> dict[str, Any]:
    """The machine, of which None is what it does not tell.

    Args:
        device: What the models run on, 'cpu' or a CUDA device.

    Returns:
        ``cpu``, its model; ``flags``, which of `FLAGS` it has; ``l2_kib``, the size of a core's
        second cache; ``cores``; ``threads``, of torch; ``product``, the library of the fast way's
        linear layers in float32; ``device``, the GPU's name or 'cpu'; ``torch``; ``system``.
    """
    said = cpuinfo()
    flags = said.get("flags", "").split()
    found = dict(
        cpu=said.get("model name") or platform.processor() or platform.machine(),
        flags=[flag for flag in FLAGS if flag in flags] if flags else None,
        l2_kib=l2_kib(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        product=products.way(torch.float32) if products.HAS_ONEDNN else None,
    )
    on_gpu = torch.device(device).type == "cuda"
    found["device"] = torch.cuda.get_device_name(device) if on_gpu else "cpu"
    return found | dict(torch=torch.__version__, system=platform.platform(terse=True))


def cpuinfo() -> dict[str, str]:
    """What Linux says of the first CPU; empty elsewhere."""
    if not CPUINFO.exists():
        return {}
    first = CPUINFO.read_text().strip().partition("\n\n")[0]
    parts = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in parts}


def l2_kib() -> int | None:
    """The size of the first core's second cache, which Linux writes as '512K'."""
    for folder in CACHES.glob("index*"):
        try:
            level, size = ((folder / name).read_text().strip() for name in ("level", "size"))
        except OSError:  # a virtual machine may hide it
            continue
        if level == "2" and size.endswith("K"):
            return int(size[:-1])
    return None

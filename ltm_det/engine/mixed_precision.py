"""In which number format a run trains. float16 is never chosen: it overflows in Swin."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from ltm_det.basics.errors import InputError

FLOAT32, BFLOAT16, AUTO = "float32", "bfloat16", "auto"
PRECISIONS = (AUTO, FLOAT32, BFLOAT16)
AMP, CPU_AMP, FULL = "AmpOptimWrapper", "CPUBfloat16OptimWrapper", "OptimWrapper"
# What CPUs that compute bfloat16 faster than float32 call it, in Linux's list; the last is ARM's.
CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
CPUINFO = Path("/proc/cpuinfo")


@OPTIM_WRAPPERS.register_module()
class CPUBfloat16OptimWrapper(OptimWrapper):
    """An optimiser whose forward passes are under autocast to bfloat16, on the CPU.

    mmengine's AmpOptimWrapper needs a GPU. Weights, gradients and the optimiser stay in float32;
    bfloat16 has float32's range, so that losses need no scale.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast("cpu", torch.bfloat16):
            yield


def has_bfloat16(device: str) -> bool:
    """Whether a device has instructions for bfloat16, and does not only emulate it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if torch.device(device).type != "cpu" or not CPUINFO.exists():
        return False
    for line in CPUINFO.read_text().splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return bool(CPU_FLAGS & set(words.split()))
    return False


def set_precision(cfg: Config, precision: str) -> None:
    """Writes a format into a config's optimiser.

    Args:
        cfg: Of a run; accumulation, clipping and the optimiser of its wrapper stay.
        precision: 'float32' or 'bfloat16'.

    Raises:
        InputError: bfloat16 on what is neither a CPU nor a GPU that has it.
    """
    wrapper = cfg.optim_wrapper
    kept = {k: v for k, v in wrapper.items() if k not in ("type", "dtype", "loss_scale")}
    kind = torch.device(get_device()).type
    if precision == FLOAT32:
        new = dict(type=FULL)
    elif kind == "cpu":
        new = dict(type=CPU_AMP)
    elif kind == "cuda" and has_bfloat16("cuda"):
        new = dict(type=AMP, dtype=BFLOAT16)
    else:
        raise InputError(f"bfloat16 is not there on this {kind} device: give --precision {FLOAT32}")
    cfg.optim_wrapper = ConfigDict(kept, **new)


def precision_of(cfg: Config) -> str:
    """'float32', 'bfloat16' or 'float16', in which a config trains."""
    wrapper: Any = cfg.get("optim_wrapper") or {}
    kind = str(wrapper.get("type")).rpartition(".")[2]
    if kind == CPU_AMP:
        return BFLOAT16
    if kind != AMP:
        return FLOAT32
    return str(wrapper.get("dtype") or "float16").rpartition(".")[2]


def float16_advice(cfg: Config) -> str | None:
    """What there is to say of a config that trains a Swin in float16; None where there is not."""
    if "swin" not in str((cfg.model.get("backbone") or {}).get("type")).lower():
        return None
    if precision_of(cfg) != "float16":
        return None
    instead = BFLOAT16 if has_bfloat16(get_device()) else FLOAT32
    return (
        "this config trains in float16, in whose range late blocks of a Swin may overflow, so that "
        f"losses become NaN: give --precision {instead}"
    )

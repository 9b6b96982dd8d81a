"""Number formats that models are measured in."""

import copy
from contextlib import AbstractContextManager

import torch
from torch import nn

DTYPES = ("float32", "bfloat16", "amp")


def cast(model: nn.Module, dtype: str) -> nn.Module:
    """The model itself, or for 'bfloat16' a copy of it in that format."""
    return copy.deepcopy(model).to(torch.bfloat16) if dtype == "bfloat16" else model


def image_dtype(dtype: str) -> torch.dtype:
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def autocast(dtype: str, device: str) -> AbstractContextManager:
    """What 'amp' runs under: autocast, to float16 on a GPU and to bfloat16 on the CPU."""
    kind = torch.device(device).type
    low = torch.float16 if kind == "cuda" else torch.bfloat16
    return torch.autocast(kind, low, enabled=dtype == "amp")

"""Number formats that models are measured in, and a pass of a model in one of them."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

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


def one_pass(
    run: Callable[[Tensor], Sequence[Tensor]],
    images: Tensor,
    train: bool,
    dtype: str,
    device: str,
) -> None:
    """A forward pass, or in training also the backward pass of the maps' mean squares."""
    with torch.set_grad_enabled(train), autocast(dtype, device):
        maps = run(images)
        loss = sum(x.float().square().mean() for x in maps) if train else None
    if train:
        loss.backward()

"""Linear layers on the CPU: through oneDNN or through torch's BLAS library, whichever is faster.

Which one that is depends on the make: on some CPUs the BLAS that torch has runs at half of
oneDNN's speed, on others oneDNN's GELU costs as much as its product. In training the fast way
computes every piece twice (:mod:`.pieces`), so that it pays on the former alone.

Shapes: T tokens, C and D channels.
"""

import math
import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ltm_det.cpu import threads

# By oneDNN; by oneDNN, but in training as torch does it; by BLAS, and the same.
ONEDNN, INFERENCE, BLAS = WAYS = ("onednn", "onednn-inference", "blas")
# Names the way to go instead of trying: numbers, to the last digit, are those of the way taken.
VARIABLE = "LTM_DET_CPU_PRODUCT"
# How much faster BLAS has to be: where they are about equal, every process goes the same way.
MARGIN = 0.93
# How many times as fast oneDNN has to be for the fast way to pay in training.
TRAINING_MARGIN = 1.5

_settled: str | None = None

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

HAS_BFLOAT16 = HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()

if HAS_ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def linear_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
        """For torch's counter, which takes shapes, at two flops a multiply-accumulate."""
        return 2 * math.prod(x) * weight[0]


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(
        x, weight, bias, "gelu" if gelu else "none", [], "none"
    )


def blas(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    x = F.linear(x, weight, bias)
    return F.gelu(x) if gelu else x


def way(dtype: torch.dtype) -> str:
    """The faster way for a dtype on this machine: an MLP is tried at first use.

    Raises:
        ValueError: The environment names another one.
    """
    named = os.environ.get(VARIABLE)
    if named is None:
        # in other dtypes torch's own is oneDNN's
        return _settled or _faster() if dtype == torch.float32 else INFERENCE
    if named not in WAYS:
        raise ValueError(f"{VARIABLE}={named}: set it to one of {WAYS}, or not at all")
    return named


def settle(name: str | None) -> None:
    """Lets this process go one way, where the environment names none: that of the run it goes on
    with, or that of another process. None leaves it to :func:`way` again."""
    global _settled
    if name not in (None, *WAYS):
        raise ValueError(f"{name!r} is no way to go: {WAYS}")
    _settled = name


@cache
def _faster() -> str:
    """Of an MLP of 512 tokens of 384 channels, the best of some turns, on one thread."""
    x, up, down = torch.ones(512, 384), torch.ones(1536, 384), torch.ones(384, 1536)
    best = {onednn: math.inf, blas: math.inf}

    @torch.no_grad()
    def measure() -> None:
        for _ in range(5):
            for run in best:
                start = time.perf_counter()
                run(run(x, up, up[:, 0], True), down, down[:, 0], False)
                best[run] = min(best[run], time.perf_counter() - start)

    threads.alone(measure)
    if best[blas] < MARGIN * best[onednn]:
        return BLAS
    return ONEDNN if best[blas] > TRAINING_MARGIN * best[onednn] else INFERENCE


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """A linear layer, and its GELU: (T, C) to (T, D). Without gradients."""
    run = blas if way(x.dtype) == BLAS else onednn
    return run(x, weight, bias, gelu)


class Linear(torch.autograd.Function):
    """:func:`linear` with gradients: (T, C), (D, C) and (D,) or None to (T, D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        # a graph of the gradients needs operators that have some
        run = F.linear if torch.is_grad_enabled() else linear
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = run(gradient, weight.t())
        if ctx.needs_input_grad[1]:
            if len(weight) > x.shape[1]:  # fast where what is the product's weight is the larger
                of_weight = run(x.t(), gradient.t()).t()
            else:
                of_weight = run(gradient.t(), x.t())
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        return of_x, of_weight, of_bias


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer, (*, C) to (*, D)."""
    run: Callable[..., Tensor] = linear
    if torch.is_grad_enabled():
        run = F.linear if way(x.dtype) == BLAS else Linear.apply
    return run(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)

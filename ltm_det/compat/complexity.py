"""What mmengine's complexity counter, which mmdet's ``get_flops.py`` runs, leaves out of attention.

It counts the operators of a trace that it knows, a multiply-add as one. Fused attention and
``baddbmm`` it does not know, and of ``A @ x`` with one matrix for a whole batch it sees one product
instead of one a window.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS
from mmengine.analysis.jit_handles import get_shape

Handle = Callable[[list[Any], list[Any]], int]  # (inputs, outputs) of an operator, torch._C.Value


def attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Of queries (*, N, D), keys (*, M, D) and values (*, M, E): two products, as if not fused."""
    query, key = (get_shape(value) for value in inputs[:2])
    *_, e = get_shape(outputs[0])
    *leading, n, d = query
    return prod(leading) * n * key[-2] * (d + e)


def matmul_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Each number of the product is a sum of as many as the first factor has columns."""
    return prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def baddbmm_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """As of a product; what it is added to counts nothing, as elsewhere."""
    return matmul_macs(inputs[1:], outputs)


HANDLES: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": attention_macs,
    "aten::matmul": matmul_macs,
    "aten::baddbmm": baddbmm_macs,
}


def count_fused_attention() -> None:
    """Make mmengine's counter count as many matrix products whether they are fused or not.

    All models are counted so, also others than ours.
    """
    _DEFAULT_SUPPORTED_FLOP_OPS.update(HANDLES)

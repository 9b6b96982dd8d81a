"""NaN and infinity are found, named, and never lost."""

import itertools
import math

import pytest
import torch

from ltm_det.basics.errors import InputError
from ltm_det.basics.finite import (
    check_finite,
    check_numbers,
    check_outputs,
    is_finite,
    not_finite,
    tensors_in,
    worst,
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_number_is_enough(value: float, dtype: torch.dtype) -> None:
    state = {name: torch.zeros(3, 4, dtype=dtype) for name in "abc"}
    state["count"] = torch.tensor(2**40)
    check_finite(state, "x.pth")
    state["b"][2, 1] = value
    assert not_finite(state) == ["b"]
    with pytest.raises(InputError, match=r"^x.pth: .* in 1 of 4 tensors: b\n.*earlier checkpoint"):
        check_finite(state, "x.pth")


def test_many_names_are_cut_short() -> None:
    state = {str(i): torch.tensor(math.nan) for i in range(9)}
    with pytest.raises(InputError, match="9 of 9 tensors: 0, 1, 2, 3, 4 and 4 more"):
        check_finite(state, "x.pth")


@pytest.mark.parametrize("values", [*itertools.permutations([1.0, math.nan, 3.0])])
def test_the_worst_of_some_with_nan_is_nan(values: tuple) -> None:
    """Python's max depends on their order."""
    assert math.isnan(worst(values)) and worst([1.0, 3.0, 2.0]) == 3.0 and worst([]) == 0.0


def test_outputs_and_tensors_in_any_nesting() -> None:
    inner = [torch.ones(2), (torch.zeros(1), {"x": torch.tensor([1, 2])})]
    assert len(list(tensors_in(inner))) == 3
    check_outputs(inner, "y")
    inner[1][0][0] = math.inf
    with pytest.raises(InputError, match="^y: .* output 1,"):
        check_outputs(inner, "y")


def test_numbers_are_named_by_the_keys_that_lead_to_them() -> None:
    check_numbers(dict(a=[1, 2.0, None, "nan"], b=dict(c=0.0)), "z")
    with pytest.raises(InputError, match=r"^z: .* at a\[1\], b.c\n"):
        check_numbers(dict(a=[1, math.inf], b=dict(c=math.nan, d=1.0)), "z")


def test_a_sum_that_overflows_is_no_infinite_number() -> None:
    large = torch.full((8,), 1e38, dtype=torch.float32)
    assert not large.sum().isfinite() and is_finite(large)
    assert not is_finite(torch.tensor([float("inf"), float("-inf"), 0.0]))
    assert is_finite(torch.zeros(0))

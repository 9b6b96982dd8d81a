"""Ratios and dense blocks: every accepted form, every error."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from ltm_det.merging import check_ratio, kept_side, kept_tokens, ratio_schedule

DEPTHS = (2, 2, 6, 2)


@pytest.mark.parametrize(
    "ratio, tokens, kept",
    [
        (0.51, 49, 25),  # ceil(24.99)
        (25 / 49, 49, 25),
        (0.5, 49, 25),  # ceil(24.5)
        (0.52, 49, 26),  # ceil(25.48)
        (1.0, 49, 49),
        (1e-9, 49, 1),
        (0.07, 100, 7),  # 7.000000000000001 in floats
        (0.29, 100, 29),  # 28.999999999999996
        (1 / 3, 9, 3),
    ],
)
def test_kept_tokens(ratio, tokens, kept):
    assert kept_tokens(ratio, tokens) == kept


def test_kept_tokens_at_every_exact_ratio():
    for tokens in (9, 49, 144):
        assert [kept_tokens(p / tokens, tokens) for p in range(1, tokens + 1)] == list(
            range(1, tokens + 1)
        )


@pytest.mark.parametrize(
    "ratio, window, side",
    [
        (1.0, 7, 7),
        (0.95, 7, 7),  # 6.82
        (0.51, 7, 5),  # 4.9990
        (0.42, 7, 5),  # 4.54
        (0.33, 7, 4),  # 4.02
        (16 / 49, 7, 4),
        (0.125, 2, 1),  # 0.71
        (1e-6, 7, 1),
        (0.5, 12, 8),  # 8.49
        (0.25, 5, 3),  # 2.5, a half goes up
    ],
)
def test_kept_side(ratio, window, side):
    assert kept_side(ratio, window) == side


@pytest.mark.parametrize(
    "ratio, dense, expected",
    [
        (0.5, 0, [[0.5] * 2, [0.5] * 2, [0.5] * 6, [0.5] * 2]),
        (0.5, None, [[1, 0.5], [1, 0.5], [1, 1, 0.5, 0.5, 0.5, 0.5], [1, 0.5]]),
        (1, 0, [[1] * 2, [1] * 2, [1] * 6, [1] * 2]),
        ((0.9, 0.8, 0.7, 0.6), 1, [[1, 0.9], [1, 0.8], [1] + [0.7] * 5, [1, 0.6]]),
        (
            (1.0, [0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 0.5),
            0,
            [[1, 1], [0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.5, 0.5]],
        ),
        (0.5, (2, 0, [0, 3], []), [[1, 1], [0.5, 0.5], [1, 0.5, 0.5, 1, 0.5, 0.5], [0.5, 0.5]]),
        (0.5, 99, [[1] * 2, [1] * 2, [1] * 6, [1] * 2]),
    ],
)
def test_schedule(ratio, dense, expected):
    assert ratio_schedule(ratio, DEPTHS, dense) == expected


def test_schedule_leaves_its_arguments_alone():
    ratio, dense = [0.5, [0.5, 0.5], 0.5, 0.5], [[1], 1, 1, 1]
    ratio_schedule(ratio, DEPTHS, dense)
    assert ratio == [0.5, [0.5, 0.5], 0.5, 0.5] and dense == [[1], 1, 1, 1]


BAD_RATIOS = [0, 0.0, -0.5, 1.5, 2, math.nan, math.inf, False, True, None, "0.5"]


@pytest.mark.parametrize("ratio", [1, 1.0, 0.51, 1e-9, np.float32(0.5), Fraction(1, 3)])
def test_ratio_in_its_range(ratio):
    assert check_ratio(ratio) is ratio


@pytest.mark.parametrize("bad", BAD_RATIOS)
def test_check_of_a_ratio(bad):
    message = re.escape(f"in (0, 1] (it is the kept fraction), got {bad!r} in block 3")
    with pytest.raises(ValueError, match=f"{message}$"):
        check_ratio(bad, " in block 3")


@pytest.mark.parametrize("bad", BAD_RATIOS)
@pytest.mark.parametrize(
    "form", [lambda r: r, lambda r: (0.5, r, 0.5, 0.5), lambda r: (0.5, [0.5, r], 0.5, 0.5)]
)
def test_ratio_outside_its_range(bad, form):
    with pytest.raises(ValueError, match=rf"\(0, 1\].*got {bad!r}"):
        ratio_schedule(form(bad), DEPTHS)


def test_ratio_that_is_no_number():
    with pytest.raises(ValueError, match="got 'half' in stage 1"):
        ratio_schedule((0.5, [0.5, "half"], 0.5, 0.5), DEPTHS)


@pytest.mark.parametrize(
    "ratio, dense, message",
    [
        ((0.5, 0.6), None, r"compression_ratio=\(0.5, 0.6\) has 2 entries for 4 stages"),
        ([], None, r"compression_ratio=\[\] has 0 entries for 4 stages"),
        ((0.5, [0.5], 0.5, 0.5), None, "stage 1 has 1 entries for 2 blocks"),
        ((0.5, 0.5, 0.5, [0.5] * 3), None, "stage 3 has 3 entries for 2 blocks"),
        (0.5, (1, 1, 1), r"dense_blocks=\(1, 1, 1\) has 3 entries for 4 stages"),
        (0.5, -1, "dense_blocks must be 0 or more, got -1"),
        (0.5, True, "dense_blocks must be 0 or more, got True"),
        (0.5, 2.0, "dense_blocks must be 0 or more, got 2.0"),
        (0.5, (1, 1, -3, 1), "got -3 for stage 2"),
        (0.5, (1, 1, [0, 6], 1), "block 6 of stage 2, which has blocks 0 to 5"),
        (0.5, (1, 1, [-1], 1), "block -1 of stage 2"),
        (0.5, (1, 1, [1.5], 1), "block 1.5 of stage 2"),
    ],
)
def test_schedule_that_does_not_fit(ratio, dense, message):
    with pytest.raises(ValueError, match=message):
        ratio_schedule(ratio, DEPTHS, dense)

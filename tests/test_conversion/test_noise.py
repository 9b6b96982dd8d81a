"""Times of choices, of which some look dearer than milder ones."""

import pytest

from ltm_det.conversion.noise import without_noise


def test_what_keeps_less_is_never_dearer() -> None:
    labels = [("a", "0.75"), ("a", "0.33"), ("a", "0.5"), ("b", "0.75"), ("b", "0.5")]
    found = without_noise(labels, [10.0, 6.0, 12.0, 3.0, 2.0])
    assert found == [11.0, 6.0, 11.0, 3.0, 2.0]  # 0.75 and 0.5 of a: their mean


def test_names_are_ordered_as_they_are_listed_and_places_keep_apart() -> None:
    labels = [
        ("rpn", "half"),
        ("rpn", "none"),
        ("x", "0.5 from block 3"),
        ("x", "0.5 from block 6"),
    ]
    times = [1.0, 2.0, 3.0, 4.0]
    assert without_noise(labels, times) == [1.5, 1.5, 3.0, 4.0]


def test_sound_times_stay() -> None:
    labels = [("a", "0.75"), ("a", "0.5"), ("a", "0.25")]
    assert without_noise(labels, [3.0, 2.5, 1.0]) == pytest.approx([3.0, 2.5, 1.0])
    assert without_noise([], []) == []

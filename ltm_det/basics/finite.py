"""Numbers that are none: NaN and infinity are found and named, and never lost in a comparison."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ltm_det.basics.errors import InputError

SHOWN = 5  # names in a message


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in it; integers have neither.

    A sum, which is ten times as fast, says so where it does not overflow.
    """
    if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
        return True
    return bool(torch.isfinite(tensor).all())


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """Names of the tensors with NaN or infinity in them, in the order of the mapping."""
    return [name for name, t in state.items() if isinstance(t, Tensor) and not is_finite(t)]


def named(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def check_finite(state: Mapping[str, Any], what: str) -> None:
    """Checks weights before anything is reckoned with them.

    Args:
        state: A state dict.
        what: Where it comes from, such as the checkpoint's file.

    Raises:
        InputError: There is NaN or infinity in a tensor.
    """
    bad = not_finite(state)
    if bad:
        raise InputError(
            f"{what}: NaN or infinite weights in {len(bad)} of {len(state)} tensors: {named(bad)}\n"
            "Whatever is reckoned with them is wrong: take an earlier checkpoint of that training, "
            "or train again with a lower learning rate"
        )


def check_outputs(outputs: Any, what: str) -> None:
    """Checks what a model or an exported file gave.

    Raises:
        InputError: There is NaN or infinity in it.
    """
    bad = [i for i, tensor in enumerate(tensors_in(outputs)) if not is_finite(tensor)]
    if bad:
        raise InputError(
            f"{what}: NaN or infinite numbers in output {', '.join(map(str, bad))}, though the "
            "weights are finite\nThey overflow on the way: compute in float32, give another "
            "picture, or take another checkpoint"
        )


def check_numbers(result: Any, what: str) -> None:
    """Checks the numbers of a report, in any nesting of mappings and sequences.

    Raises:
        InputError: One is NaN or infinite; it is named by the keys that lead to it.
    """
    bad = [place for place, value in numbers_in(result) if not math.isfinite(value)]
    if bad:
        raise InputError(
            f"{what}: no number but NaN or infinity came out at {named(bad)}\n"
            "Nothing is reported: look for overflow in the model, and for broken pictures"
        )


def worst(values: Iterable[float]) -> float:
    """The largest, or NaN where there is one, which Python's ``max`` may drop; 0 of none."""
    values = list(values)
    return math.nan if any(map(math.isnan, values)) else max(values, default=0.0)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in any nesting of mappings and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def numbers_in(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Fractions in any nesting of mappings and sequences, with the keys that lead to them."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from numbers_in(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from numbers_in(part, f"{place}[{i}]")

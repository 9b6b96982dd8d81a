"""JSON in which each key stands once: of two, Python keeps the last one without a word."""

import json
from typing import Any


class TwiceError(ValueError):
    """An object has a key twice."""


def parse(text: str) -> Any:
    """What a text says.

    Raises:
        ValueError: It is no JSON.
        TwiceError: One of its objects has a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("its lists lie too deep in each other") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise TwiceError(f"the key {twice!r} stands twice in one object")
    return whole

"""Words for messages."""

from collections.abc import Iterable
from typing import Any


def some(keys: Iterable[object], limit: int = 10) -> str:
    """The first few keys, for a message."""
    keys = list(map(str, keys))
    return ", ".join(keys[:limit]) + (f", ... ({len(keys)} in all)" if len(keys) > limit else "")


def brief(text: str, lines: int = 12, width: int = 400) -> str:
    """A text's first lines and their first letters; empty lines left out."""
    full = [line.rstrip() for line in text.splitlines() if line.strip()]
    cut = [line if len(line) <= width else f"{line[:width]} ..." for line in full[:lines]]
    return "\n".join(cut + [f"... ({len(full)} lines)"] * (len(full) > lines))


def is_name(value: Any) -> bool:
    """Whether something is a text of one line that can be written."""
    return isinstance(value, str) and value.isprintable() and bool(value.strip())

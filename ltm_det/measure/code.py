"""A hash of the code that a measured number depends on, so that one sees when it is stale."""

import ast
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_of(rooms: Sequence[str]) -> dict[str, Any]:
    """What a result file keeps of the code: its ``rooms``, and a ``sha256`` of what they do.

    Comments, docstrings and layout are not in it.
    """
    total = hashlib.sha256()
    for room in rooms:
        for file in sorted((PACKAGE / room).rglob("*.py")):
            total.update(file.relative_to(PACKAGE).as_posix().encode())
            total.update(meaning(file.read_text()).encode())
    return dict(rooms=[*rooms], sha256=total.hexdigest())


def meaning(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)

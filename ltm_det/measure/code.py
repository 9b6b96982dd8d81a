"""A hash of the code that a measured number depends on, so that one sees when it is stale."""

import ast
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
RUN = ("backbones", "cpu", "detectors", "merging", "necks")  # rooms that a pass of a detector runs
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_of(files: Sequence[str]) -> dict[str, Any]:
    """What a result file keeps of the code: its ``files``, and a ``sha256`` of what they do.

    Comments, docstrings and layout are not in it.

    Args:
        files: By their paths in the package, see :func:`files_run`.
    """
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(file.encode())
        total.update(meaning((PACKAGE / file).read_text()).encode())
    return dict(files=sorted(files), sha256=total.hexdigest())


def is_as_it_was(kept: dict[str, Any]) -> bool:
    """Whether the code is still that of which `code_of` kept this."""
    there = all((PACKAGE / file).is_file() for file in kept["files"])
    return there and code_of(kept["files"]) == kept


def files_run(folders: Sequence[str]) -> list[str]:
    """All files of some folders of the package, and those of `RUN` that they import, and so on: not
    what other families of backbones have for themselves."""
    found: set[Path] = set()
    left = [file for folder in folders for file in (PACKAGE / folder).rglob("*.py")]
    while left:
        if (file := left.pop()) not in found:
            found.add(file)
            left += imported(file)
    return sorted(file.relative_to(PACKAGE).as_posix() for file in found)


def imported(file: Path) -> Iterator[Path]:
    """The files of `RUN` that a file imports."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
            package, *parts = name.split(".")
            if package != PACKAGE.name or not parts or parts[0] not in RUN:
                continue
            path = PACKAGE.joinpath(*parts)
            yield from filter(Path.is_file, (path.with_suffix(".py"), path / "__init__.py"))


@cache
def meaning(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)

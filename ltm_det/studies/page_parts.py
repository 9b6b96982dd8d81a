"""What all tables of pages are made with."""

import json
from typing import Any

from ltm_det.measure.code import is_as_it_was
from ltm_det.studies.runs import ROOT

RESULTS = ROOT / "results"
GIGA, MIB = 1e9, 2**20


def table(head: list[str], rows: list[list[str]]) -> str:
    """Of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text())


def pair(dense: float, merged: float, digits: int = 1) -> str:
    return f"{dense:.{digits}f} to {merged:.{digits}f} ({merged / dense:.2f})"


def aged(timed: dict[str, Any]) -> str:
    """What a row's label ends with where the code that its file timed has changed since, or was not
    kept yet."""
    same = "code" in timed and is_as_it_was(timed["code"])
    return "" if same else f" (`{timed['commit'][:7]}`)"

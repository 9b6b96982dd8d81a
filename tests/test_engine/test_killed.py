"""Runs that are killed at any place go on from whole checkpoints, and end with the same losses."""

import json
import os
from pathlib import Path

import pytest

from tests.test_engine.kills import campaign

KILLS = int(os.environ.get("KILLS", 6))  # of each; the whole table has 40


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_killed_runs_lose_nothing(root: Path, tmp_path: Path, keep: int) -> None:
    """All is asserted within; the figures are printed, for `pytest -s`."""
    found = campaign(root, tmp_path, keep, KILLS, seed=keep)
    print(json.dumps(found))
    assert found["total"] >= KILLS

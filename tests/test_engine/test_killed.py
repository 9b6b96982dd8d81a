"""Runs that are killed at any place go on from whole checkpoints, and end with the same losses."""

import json
import os
from pathlib import Path

import pytest

from ltm_det.cpu import products
from tests.test_engine.kills import campaign

KILLS = int(os.environ.get("KILLS", 6))  # of each; the whole table has 40


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_killed_runs_lose_nothing(root: Path, tmp_path: Path, monkeypatch, keep: int) -> None:
    """All is asserted within; the figures are printed, for `pytest -s`."""
    # Runs that know nothing of each other may take different ways through linear layers.
    monkeypatch.setenv(products.VARIABLE, products.ONEDNN)
    found = campaign(root, tmp_path, keep, KILLS, seed=keep)
    print(json.dumps(found))
    assert found["total"] >= KILLS

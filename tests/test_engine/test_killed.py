"""Runs that are killed at any place go on from whole checkpoints, and end with the same losses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltm_det.cpu import products

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("KILLS", 6))  # of each; the whole table has 40


@pytest.mark.slow
@pytest.mark.parametrize("keep", [1, 2])
def test_killed_runs_lose_nothing(root: Path, tmp_path: Path, keep: int) -> None:
    """All is asserted within; the figures are printed, for `pytest -s`."""
    words = ["-m", "tests.test_engine.kills", root, tmp_path, keep, KILLS, keep]
    # Runs that know nothing of each other may take different ways through linear layers.
    own = {products.VARIABLE: products.ONEDNN, "PYTHONPATH": os.pathsep.join(paths())}
    run = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    print(json.dumps(found))
    assert found["total"] >= KILLS


def paths() -> list[str]:
    return [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]

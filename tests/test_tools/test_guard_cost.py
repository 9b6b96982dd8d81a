"""tools/analysis/guard_cost.py: what the guard against explosions takes of a step."""

import json
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_tells_the_guards_part_of_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, out = ROOT / "tools/analysis/guard_cost.py", tmp_path / "guard.json"
    config = ROOT / "configs/demo_ltm_swin_maskrcnn.py"
    words = ["--size", "64", "64", "--steps", "4", "--clip", "5", "--json", out]
    monkeypatch.setattr(sys, "argv", [str(tool), str(config), *map(str, words)])
    runpy.run_path(str(tool), run_name="__main__")
    found = json.loads(out.read_text())
    assert 0 < found["guard_ms"] < found["step_ms"] and 0 < found["share"] < 1
    assert found["guard_ms_of_a_step_that_looks_at_features"] < found["step_ms"]
    assert found["steps"] == 4 and found["parameters"] > 0

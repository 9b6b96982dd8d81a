"""tools/gpu.py with small models on the CPU: what it would do on a GPU."""

import json
import runpy
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/gpu.py"


@pytest.fixture
def tool(monkeypatch):
    loaded = runpy.run_path(str(TOOL), run_name="tool")

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, words)])
        return loaded["main"]()

    run.loaded = loaded
    return run


@pytest.mark.slow
def test_figures_and_table(tool, tmp_path: Path) -> None:
    runs = ["swin_s_detector", "swin_s_training", "vit_b_detector"]
    assert tool("--tiny", "--device", "cpu", "--out", tmp_path, "--only", *runs) == 0
    written = (tmp_path / "README.md").read_text()
    for name in runs:
        assert (
            json.loads((tmp_path / f"{name}.json").read_text())["rows"] and f"## {name}" in written
        )
    assert "| 1 | training | merged | eager | amp |" in written


def test_one_that_fails_is_told_and_the_others_go_on(tool, tmp_path: Path, monkeypatch) -> None:
    runs = tool.loaded["RUNS"]
    monkeypatch.setitem(runs, "tests", (9, ["-c", "raise SystemExit(3)"]))
    monkeypatch.setitem(runs, "swin_s_backbone", (9, ["-c", "print('here')"]))
    monkeypatch.setitem(runs, "swin_s_detector", (0.1, ["-c", "import time; time.sleep(9)"]))
    (tmp_path / "swin_s_detector.json").write_text("of an earlier run")
    only = ["tests", "swin_s_detector", "swin_s_backbone"]
    assert tool("--out", tmp_path, "--only", *only) == 1
    written = (tmp_path / "README.md").read_text()
    assert "failed with status 3" in written and "stopped at its limit" in written
    assert "done, " in written


def test_every_command_is_the_benchmarks(tool, tmp_path: Path) -> None:
    """With its configs there, at full size and small."""
    for name, (_, words) in tool.loaded["RUNS"].items():
        if name != "tests":
            assert (TOOL.parents[1] / words[1]).exists()
            small = tool.loaded["words_of"](name, "cpu", True, tmp_path)
            assert (TOOL.parents[1] / small[1]).exists() and small.count("--shape") == 1

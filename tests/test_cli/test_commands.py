"""The command ltm-det: what all of its commands have in common, and running other scripts."""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ltm_det import cli
from ltm_det.cli.common import typed
from ltm_det.measure.flops import build_detector

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs/demo_ltm_swin_maskrcnn.py"
LINES = 55  # of a screen


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Exit code, output and errors of the console's command."""

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["/some/where/bin/ltm-det", *map(str, words)])
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return command


def test_the_list_of_commands(run: Callable) -> None:
    code, printed, _ = run("--help")
    assert code == 0 and all(f"  {name} " in printed for name in cli.COMMANDS)
    assert run()[0] == 2
    code, _, errors = run("fly")
    assert code == 2 and "ltm-det: no command 'fly'" in errors and "  train " in errors
    others = {"common", "names", "own_data", "own_run"}
    files = {file.stem for file in (ROOT / "ltm_det/cli").glob("[a-z]*.py")} - others
    assert files == {name.replace("-", "_") for name in cli.COMMANDS}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_fits_on_a_screen_and_has_an_example(name: str, run: Callable) -> None:
    code, printed, _ = run(name, "--help")
    assert code == 0 and len(printed.splitlines()) <= LINES
    assert f"usage: ltm-det {name} " in printed and f"example: ltm-det {name} " in printed


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_example_is_one(name: str, run: Callable, capsys, monkeypatch) -> None:
    """Its words are parsed."""
    module = import_module(f"ltm_det.cli.{name.replace('-', '_')}")
    assert module.parse(module.EXAMPLE.split())


def test_errors_name_the_command(run: Callable) -> None:
    code, _, errors = run("flops", "no.py")
    assert code == 2 and errors.startswith("ltm-det flops: ") and "no.py" in errors
    code, _, errors = run("flops", DEMO, "--shape", "wide")
    assert code == 2 and "ltm-det flops: error: argument --shape" in errors


def test_results_hold_the_command_as_typed(run: Callable, tmp_path: Path) -> None:
    run("flops", DEMO, "--json", tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    assert '"command": "ltm-det flops ' in text and "/some/where" not in text
    assert typed().startswith("ltm-det flops ")


@pytest.mark.parametrize(
    "door",
    [
        file
        for file in sorted((ROOT / "tools").rglob("*.py"))
        if "from ltm_det.cli." in file.read_text()
    ],
    ids=lambda file: file.stem,
)
def test_tools_are_doors_to_the_same_functions(door: Path) -> None:
    lines = [line for line in door.read_text().splitlines() if line.strip()]
    assert len(lines) <= 7
    (name,) = (line.split(".")[2].split()[0] for line in lines if "ltm_det.cli." in line)
    assert callable(import_module(f"ltm_det.cli.{name}").main)


def test_a_script_finds_ltm_det_there(run: Callable, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    (tmp_path / "beside.py").write_text("HERE = 1\n")
    script.write_text(
        "import sys, beside\nfrom mmcv.ops import nms\n"
        "print(sys.argv[1:], 'ltm_det' in sys.modules, beside.HERE)\n"
    )
    code, printed, _ = run("run", script, "--a", "b")
    assert code == 0 and "['--a', 'b'] True 1" in printed
    code, _, errors = run("run", "nothing")
    assert code == 2 and "no script nothing" in errors and "analysis_tools/get_flops" in errors


@pytest.mark.slow
def test_mmdets_own_tools(run: Callable, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict=build_detector(Config.fromfile(DEMO)).state_dict()), "own.pth")
    assert run("demo-data", "--out", "data/demo", "--train", 4, "--val", 4)[0] == 0
    monkeypatch.setenv("LOCAL_RANK", "0")

    def tool(name: str, *words: object) -> str:
        code, printed, errors = run("run", name, DEMO, *words)
        assert code in (0, None), errors
        return printed

    tool("analysis_tools/browse_dataset", "--output-dir", "seen", "--not-show")
    assert len(list(Path("seen").rglob("*.*g"))) == 4
    assert "Flops" in tool("analysis_tools/get_flops")
    options = ["--cfg-options", "model.test_cfg.rcnn.score_thr=0"]
    tool("test", "own.pth", "--work-dir", "work", "--out", "found.pkl", *options)
    tool("analysis_tools/confusion_matrix", "found.pkl", "matrix")
    assert list(Path("matrix").glob("*.png"))
    tool("analysis_tools/analyze_results", "found.pkl", "best", "--topk", 1)
    assert list(Path("best").rglob("*.*g"))

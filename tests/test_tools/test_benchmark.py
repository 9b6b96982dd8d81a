"""tools/analysis/benchmark.py on tiny backbones, in this process."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ltm_det.cli import benchmark as benchmark_command
from ltm_det.measure.memory import MemoryUnknownError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
default_scope = "mmdet"
model = dict(backbone=dict(
    type="LTMSwin", embed_dims=8, depths=(1, 3), num_heads=(1, 2), window_size=4,
    out_indices=(0, 1), merger=dict(type="Pool", compression_ratio=0.5)))
"""
MIB = 2**20


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "tiny.py").write_text(CONFIG)
    return tmp_path / "tiny.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """The tool's main function, to be called with the command line's words."""
    main = runpy.run_path(str(ROOT / "tools/analysis/benchmark.py"), run_name="tool")["main"]

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, words)])
        return main()

    run.globals = vars(benchmark_command)
    return run


def test_table_json_and_plot_have_what_was_measured(
    tool: Callable, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out, plot = tmp_path / "new/bench.json", tmp_path / "new/bench.png"
    words = [config, "--shape", 32, 32, "--shape", 64, 48, "--batch", 1, 2, "--rounds", 2]
    words += ["--mode", "training", "inference", "--dtype", "float32", "amp", "--device", "cpu"]
    words += ["--models", "mmdet", "dense", "merged", "--warm-up", 0, "--json", out, "--plot", plot]
    assert tool(*words) == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    rows, models = result["rows"], ["mmdet", "dense", "merged"]
    places = [
        (shape, batch, mode)
        for shape in ([32, 32], [64, 48])
        for batch in (1, 2)
        for mode in ("inference", "training")
    ]
    assert [(row["shape"], row["batch"], row["mode"]) for row in rows[::6]] == places
    for start in range(0, 48, 6):
        group = rows[start : start + 6]
        assert [(row["model"], row["dtype"]) for row in group] == [
            (name, dtype) for name in models for dtype in ("float32", "amp")
        ]
        assert group[0]["ratio"] == 1 and group[0]["quartiles"] == [1, 1]
    assert all(len(row["seconds"]) == 2 and row["how"] == "eager" for row in rows)
    assert rows[4]["gmacs"] < rows[2]["gmacs"] == rows[0]["gmacs"]
    assert len(result["exponents"]) == 6 * 4
    assert result["base"] == "mmdet" and result["rounds"] == 2 and result["config"] == str(config)
    assert result["command"].startswith("python benchmark.py") and result["commit"]
    assert result["machine"]["device"] == "cpu"
    assert {"cpu", "flags", "l2_kib", "product"} <= set(result["machine"])
    assert all(row["load"] == 0 for row in rows)
    assert "32 x 32, batch 2, training, load 0\n" in printed
    assert printed.count("Cost against pixels") == 24
    assert plot.stat().st_size > 0


def test_rows_of_each_load_are_kept_apart(
    tool: Callable, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    calls = []

    def peak_memory(cfg, shape, train, device, batch, dtype) -> int:
        calls.append(shape)
        return MIB

    monkeypatch.setitem(tool.globals, "peak_memory", peak_memory)
    out = tmp_path / "bench.json"
    words = [config, "--shape", 32, 32, "--shape", 64, 32, "--models", "mmdet", "merged"]
    words += ["--mode", "inference", "memory", "--load", 0, 1, "--device", "cpu"]
    assert tool(*words, "--rounds", 2, "--warm-up", 0, "--json", out) == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert [(row["shape"][0], row["load"], row["model"]) for row in result["rows"]] == [
        (side, load, name) for side in (32, 64) for load in (0, 1) for name in ("mmdet", "merged")
    ]
    assert all(row["peak_bytes"] == MIB and len(row["seconds"]) == 2 for row in result["rows"])
    assert calls == [(32, 32)] * 2 + [(64, 32)] * 2  # memory knows no load
    assert [(fit["model"], fit["load"]) for fit in result["exponents"]] == [
        (name, load) for load in (0, 1) for name in ("mmdet", "merged")
    ]
    assert "\n64 x 32, batch 1, inference, load 1\n" in printed
    assert printed.count(", inference, load 0: exponent") == 2


def test_memory_is_that_of_the_modes_beside_it(
    tool: Callable, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    calls = []

    def peak_memory(cfg, shape, train, device, batch, dtype) -> int:
        calls.append((cfg.model.backbone.type, train, batch, dtype))
        return len(calls) * MIB

    monkeypatch.setitem(tool.globals, "peak_memory", peak_memory)
    words = [config, "--models", "mmdet", "merged", "--shape", 32, 32, "--device", "cpu"]
    out = tmp_path / "memory.json"
    threads = torch.get_num_threads()
    assert tool(*words, "--mode", "memory", "--batch", 4, "--threads", 2, "--json", out) == 0
    assert torch.get_num_threads() == threads
    assert json.loads(out.read_text())["machine"]["threads"] == 2
    kinds = ["SwinTransformer", "LTMSwin"]
    assert calls == [(kind, False, 4, "float32") for kind in kinds]  # each once
    rows = json.loads(out.read_text())["rows"]
    assert [(row["peak_bytes"], row["peak_ratio"]) for row in rows] == [(MIB, 1), (2 * MIB, 2)]
    assert not any("seconds" in row for row in rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines if line.startswith("merged")] == [["2.0", "2.000"]]

    calls.clear()
    words += ["--mode", "training", "memory", "--rounds", 1, "--base", "merged"]
    assert tool(*words, "--json", out) == 0
    assert calls == [(kind, True, 1, "float32") for kind in kinds[::-1]]  # the base first
    rows = json.loads(out.read_text())["rows"]
    assert [row["peak_ratio"] for row in rows] == [2, 1] and rows[1]["ratio"] == 1


def test_a_model_without_a_peak_is_named(
    tool: Callable, config: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    def peak_memory(cfg, shape, train, device, batch, dtype) -> int:
        if dtype == "bfloat16" and cfg.model.backbone.type == "SwinTransformer":
            raise MemoryUnknownError("it is another format")
        return MIB

    monkeypatch.setitem(tool.globals, "peak_memory", peak_memory)
    words = [config, "--models", "mmdet", "dense", "--shape", 32, 32, "--device", "cpu"]
    assert tool(*words, "--mode", "memory", "--dtype", "float32", "bfloat16") == 0
    printed = capsys.readouterr().out
    assert "mmdet eager bfloat16 does not run: it is another format" in printed
    cells = [line.split()[-2:] for line in printed.splitlines() if " eager " in line][:4]
    assert cells == [["1.0", "1.000"], ["-", "-"], ["1.0", "1.000"], ["1.0", "1.000"]]


@pytest.mark.slow
def test_memory_of_a_peer_is_really_measured(tool: Callable, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    words = [config, "--models", "timm", "--base", "timm", "--shape", 512, 512]
    assert tool(*words, "--mode", "memory", "--device", "cpu", "--json", out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["peak_bytes"] > 512 * 512 / 16 * 8 * 4  # its first map alone


@pytest.mark.parametrize(
    "words, message",
    [
        (["--rounds", 0], "--rounds must be at least 1"),
        (["--shape", 0, 32], "--batch, --shape and --threads must be at least 1"),
        (["--batch", 1, 1], "--batch names something twice: [1, 1]"),
        (["--mode", "training", "--how", "frozen"], "--how ['frozen'] cannot be trained"),
        (["--device", "tpu9"], "'tpu9' is no device: give cpu"),
        (["--mode", "memory", "--plot", "x.png"], "--plot draws times"),
        (["--load", 0, -1], "--load must be at least 0"),
        (["--load", 2, 2], "--load names something twice: [2, 2]"),
        (["--mode", "memory", "--load", 2], "--load is for times"),
        (["--dtype", "float64"], "invalid choice: 'float64'"),
    ],
)
def test_bad_words_are_refused(
    tool: Callable, config: Path, words: list, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stop:
        tool(config, *words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--models", "dense", "Swine"], "benchmark.py: unknown model 'Swine': choose from"),
        (["--models", "dense", "--base", "timm"], "the base 'timm' is not measured"),
        (
            ["--models", "mmdet", "dense", "--dtype", "bfloat16", "--rounds", 1, "--shape", 32, 32],
            "mmdet eager bfloat16, the base of all ratios, does not run",
        ),
    ],
)
def test_what_cannot_be_measured_is_named(
    tool: Callable, config: Path, words: list, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert tool(config, *words, "--device", "cpu") == 2
    assert message in capsys.readouterr().err


def test_a_missing_config_and_a_failed_measurement_are_named(
    tool: Callable, config: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    assert tool("no.py") == 2
    assert "benchmark.py: no config file at no.py" in capsys.readouterr().err

    def fails(*args: object, **options: object) -> int:
        raise MemoryUnknownError("no measurement: of course")

    monkeypatch.setitem(tool.globals, "peak_memory", fails)
    words = [config, "--models", "dense", "--shape", 32, 32, "--mode", "memory"]
    assert tool(*words, "--device", "cpu") == 2
    assert "benchmark.py: no measurement: of course" in capsys.readouterr().err

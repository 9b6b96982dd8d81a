"""Peak memory is noisy and differs by machine: only lower bounds that always hold are asserted."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ltm_det.cli import memory as memory_command
from ltm_det.measure import memory

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs/demo_ltm_swin_maskrcnn.py"
MIB = 2**20
STAND_IN = """
import torch
from mmdet.registry import MODELS
from torch import nn

@MODELS.register_module()
class StandIn(nn.Module):
    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        big = torch.ones(self.numbers) + x.mean()  # freed at the end, in the warm-up as well
        return [x * self.weight * big[:1]]
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Config of a backbone that needs 200 MiB and more for any image, given back at the end."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    backbone = dict(type="StandIn", numbers=50 * MIB)
    return Config(dict(custom_imports=dict(imports=["stand_in"]), model=dict(backbone=backbone)))


@pytest.mark.parametrize("train", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_big_tensor_is_seen_though_the_warm_up_had_it_too(stand_in: Config, train: bool) -> None:
    assert memory.peak_memory(stand_in, (8, 12), train) >= 200 * MIB


def test_memory_is_seen_after_it_was_freed() -> None:
    rise = memory.rise_of_resident_memory(torch.ones, 50 * MIB)
    assert rise >= 190 * MIB  # of 200: the kernel's count is not exact


@pytest.mark.slow
def test_a_failure_tells_its_reason(stand_in: Config) -> None:
    stand_in.model.backbone.numbers = -1
    with pytest.raises(memory.MemoryUnknownError, match="8 x 12: RuntimeError: .*negative"):
        memory.peak_memory(stand_in, (8, 12), train=False)


def test_elsewhere_than_on_linux_the_platform_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path / "none")
    with pytest.raises(memory.MemoryUnknownError, match=f"this is {sys.platform}"):
        memory.rise_of_resident_memory(torch.ones, 1)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """The tool's main function, to be called with the command line's words."""
    main = runpy.run_path(str(ROOT / "tools/analysis/memory.py"), run_name="tool")["main"]

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["memory.py", *map(str, words)])
        return main()

    run.globals = vars(memory_command)
    return run


@pytest.mark.slow
def test_tool_measures(tool: Callable, tmp_path: Path) -> None:
    out = tmp_path / "memory.json"
    options = ["--repeats", 1, "--device", "cpu", "--json", out]
    assert tool(DEMO, "--sides", 112, 160, *options) == 0
    result = json.loads(out.read_text())
    assert set(result["sides"]) == {"112", "160"}
    for found in result["sides"].values():
        assert 0 < found["merged"]["backbone_macs"] < found["dense"]["backbone_macs"]
        assert 0 < found["merged"]["attention_macs"] < found["dense"]["attention_macs"]
        for one in found.values():
            assert one["peak_bytes"]["inference"][0] > 0


@pytest.mark.slow
def test_a_whole_detector_on_a_large_picture(tool: Callable, tmp_path: Path, capsys) -> None:
    """Run lengths do without maps of the picture's size, which mmdet's heads make."""
    out, picture = tmp_path / "memory.json", (2000, 3000)
    options = ["--repeats", 1, "--device", "cpu", "--json", out, "--objects", 20]
    assert tool(DEMO, "--picture", *picture, *options) == 0
    found = json.loads(out.read_text())["detectors"]
    assert list(found) == ["mmdet", "dense", "merged", "dense+mmdet", "merged+mmdet"]
    assert all(one["objects"] == 20 for name, one in found.items() if "merged" not in name)
    maps = 20 * picture[0] * picture[1]
    assert found["mmdet"]["median_bytes"] > maps
    assert 0 < found["dense"]["median_bytes"] < found["dense+mmdet"]["median_bytes"]
    assert tool(DEMO, "--picture", 64, 64, "--cfg-options", "model.type=SparseRCNN") == 2
    assert "the detector is a SparseRCNN" in capsys.readouterr().err


def test_tool_prints_and_writes_medians_of_interleaved_runs(
    tool: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    calls = []

    def peak_memory(cfg: Config, shape: tuple[int, int], train: bool, device: str) -> int:
        assert shape == (64, 64) and device == "cpu"
        calls.append((cfg.model.backbone.merger is not None, train))
        return len(calls) ** 2 * MIB

    monkeypatch.setitem(tool.globals, "peak_memory", peak_memory)
    out = tmp_path / "new" / "memory.json"
    options = ["--sides", 64, "--train", "--repeats", 3, "--device", "cpu", "--json", out]
    assert tool(DEMO, *options) == 0
    assert calls == [(False, False), (True, False), (False, True), (True, True)] * 3
    header, *lines = capsys.readouterr().out.splitlines()[1:]
    assert header.split() == ["side", "dense", "merged", "ratio"]
    assert len({len(line) for line in [header, *lines]}) == 1
    assert lines[0].startswith("  64  backbone GMACs") and lines[1].startswith("  64  attention")
    assert lines[2].split()[1:] == ["inference", "MiB", "25.0", "36.0", "1.440"]
    assert lines[3].split()[1:] == ["training", "MiB", "49.0", "64.0", "1.306"]
    result = json.loads(out.read_text())
    assert result["command"].startswith("python memory.py") and result["config"] == str(DEMO)
    assert result["torch"] == torch.__version__ and result["device"] == "cpu"
    dense = result["sides"]["64"]["dense"]
    assert dense["peak_bytes"]["inference"] == [n**2 * MIB for n in (1, 5, 9)]
    assert dense["median_bytes"] == dict(inference=25 * MIB, training=49 * MIB)

    assert tool(DEMO, *options, "--cfg-options", "model.backbone.merger=None") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["side", "dense"]


def test_tool_names_what_is_wrong(
    tool: Callable, capsys: pytest.CaptureFixture, monkeypatch
) -> None:
    assert tool("no.py") == 2
    assert "memory.py: no config file at no.py" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool(DEMO, "--repeats", 0)

    def fails(*args: object) -> int:
        raise memory.MemoryUnknownError("no measurement: of course")

    monkeypatch.setitem(tool.globals, "peak_memory", fails)
    assert tool(DEMO, "--sides", 64) == 2
    assert "memory.py: no measurement: of course" in capsys.readouterr().err

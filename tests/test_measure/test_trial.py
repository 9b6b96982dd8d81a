"""Training steps on trial: what fits is told from what was measured, and what fails is named."""

import random
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ltm_det.measure import trial
from ltm_det.measure.batch import largest_batch, memory_at
from ltm_det.measure.memory import MemoryUnknownError
from ltm_det.measure.trial import Step, TrialError, free_memory, heaviest, run_steps, try_steps
from tests.test_engine.tiny_detector import CONFIG, write_data


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = write_data(tmp_path_factory.mktemp("trial") / "data")
    return Config.fromstring(CONFIG.replace("{root}", str(root)), ".py")


def test_memory_is_measured_or_on_the_last_line() -> None:
    steps = [Step(0, 100, 0.0), Step(1, 160, 1.0), Step(2, 200, 2.0)]
    assert [memory_at(steps, n) for n in (1, 2, 3, 4, 8)] == [160, 200, 240, 280, 440]
    assert memory_at(steps[:2], 4) == 340
    assert memory_at([Step(0, 100, 0), Step(1, 200, 1), Step(2, 190, 2)], 4) == 190  # never less


def test_the_largest_that_fits() -> None:
    """Against each power of two in turn."""
    rng = random.Random(0)
    for _ in range(200):
        base, slope = rng.randint(1, 50), rng.randint(1, 20)
        steps = [Step(n, base + slope * n, 1.0) for n in (0, 1, 2)[: rng.randint(2, 3)]]
        memory, most = rng.randint(1, 300), rng.randint(1, 40)
        fits = [n for n in (1, 2, 4, 8, 16, 32) if n <= most and base + slope * n <= memory]
        assert largest_batch(steps, memory, most) == max(fits, default=0)


def test_free_memory_is_the_machine_s_or_the_container_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo, group = tmp_path / "meminfo", tmp_path / "cgroup"
    group.mkdir()
    monkeypatch.setattr(trial, "MEMINFO", meminfo)
    monkeypatch.setattr(trial, "GROUPS", (group, tmp_path / "gone"))
    with pytest.raises(MemoryUnknownError, match="meminfo"):
        free_memory("cpu")
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    6000 kB\n")
    assert free_memory("cpu") == 6000 * 1024
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000\n")
    assert free_memory("cpu") == 6000 * 1024
    (group / "memory.max").write_text("51000\n")
    assert free_memory("cpu") == 50000


def test_the_heaviest_pictures_come_first() -> None:
    class Objects:
        counts = (2, 0, 7, 3)

        def __len__(self) -> int:
            return len(self.counts)

        def get_data_info(self, index: int) -> dict:
            return dict(instances=[{}] * self.counts[index])

    assert heaviest(Objects(), 3) == [2, 3, 0]
    assert heaviest(["a", "b", "c"], 2) == [0, 1]


def printed(cfg: Config, capsys: pytest.CaptureFixture, *limits: float) -> list[int]:
    run_steps(cfg, *limits)
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line[:4] == "step"]
    assert all(int(memory) > 0 and float(took) >= 0 for _, _, memory, took in lines)
    return [int(line[1]) for line in lines]


def test_steps_end_where_a_limit_says_so(cfg: Config, capsys: pytest.CaptureFixture) -> None:
    before = torch.random.get_rng_state()
    assert printed(cfg, capsys, 5, 1e15, 1e6) == [0, 1, 1, 2, 4]
    assert printed(cfg, capsys, 8, 1, 1e6) == [0, 1, 1]  # of bytes
    assert printed(cfg, capsys, 8, 1e15, 0) == [0, 1]  # of seconds
    torch.random.set_rng_state(before)


@pytest.mark.slow
def test_in_a_process_of_its_own(cfg: Config) -> None:
    steps = try_steps(cfg, 2, 1e15, 1e6)
    assert [step.pictures for step in steps] == [0, 1, 2]
    assert steps[0].memory <= steps[1].memory <= steps[2].memory and steps[2].seconds > 0
    broken = Config(cfg.to_dict())
    broken.optim_wrapper.type = "AmpOptimWrapper"
    with pytest.raises(TrialError, match="only available training on gpu") as error:
        try_steps(broken, 1, 1e15, 1e6)
    assert not error.value.memory

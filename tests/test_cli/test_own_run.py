"""What a run on one's own data chooses by the machine: pictures a step, and their precision."""

import copy
from pathlib import Path

import pytest
from mmengine.config import Config

from ltm_det.basics.errors import InputError
from ltm_det.cli import own_data, own_run, train
from ltm_det.cli.own_run import GIB
from ltm_det.engine import mixed_precision, preflight
from ltm_det.measure.memory import MemoryUnknownError
from ltm_det.measure.trial import Step, TrialError
from tests.test_datasets.test_own import coco_folder

DEMO = str(Path(__file__).parents[2] / "configs/demo_ltm_swin_maskrcnn.py")


class Machine:
    """One whose steps take a GiB and half a GiB a picture, and a second a picture."""

    def __init__(self, free: float, bfloat16: bool = False) -> None:
        self.free, self.bfloat16 = free * GIB, bfloat16
        self.speed = dict(float32=1.0, bfloat16=1.0)
        self.tried: list[tuple[str, int]] = []
        self.fails: TrialError | None = None

    def free_memory(self, device: str) -> float:
        if self.free < 0:
            raise MemoryUnknownError("this system does not tell")
        return self.free

    def try_steps(self, cfg: Config, most: int, memory: float, seconds: float) -> list[Step]:
        precision = mixed_precision.precision_of(cfg)
        self.tried.append((precision, most))
        if self.fails is not None:
            raise self.fails
        share = 0.5 if precision == "float32" else 0.25
        return [
            Step(n, int((1 + share * n) * GIB), n * self.speed[precision])
            for n in (0, 1, 2)
            if n <= max(1, most)
        ]


@pytest.fixture(scope="module")
def base() -> Config:
    return preflight.load_config(DEMO)


@pytest.fixture
def setting(base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From a machine and words to the config that comes out, and what was said."""
    coco_folder(tmp_path / "cats")

    def run(machine: Machine, *words: str, pictures: int = 3) -> tuple[Config, str]:
        monkeypatch.setattr(own_run, "free_memory", machine.free_memory)
        monkeypatch.setattr(own_run, "try_steps", machine.try_steps)
        monkeypatch.setattr(own_run, "has_bfloat16", lambda device: machine.bfloat16)
        work = str(tmp_path / "work")
        args = train.parse([DEMO, "--data", str(tmp_path / "cats"), "--work-dir", work, *words])
        cfg = copy.deepcopy(base)
        cfg.work_dir = work
        data = own_data.use_own_data(cfg, args, lambda words: None)
        rows = data.train.coco["images"]
        rows += [rows[0]] * (pictures - len(rows))
        said: list[str] = []
        own_run.set_up(cfg, args, data, said.append)
        return cfg, "\n".join(said)

    return run


@pytest.mark.parametrize(
    ("free", "pictures", "batch", "why"),
    [
        (100, 3, 2, "larger ones win nothing: that leaves fewer than 2000 in 36 epochs"),
        (100, 500, 8, "larger ones win nothing: that leaves fewer than 2000 in 36 epochs"),
        (100, 5000, 16, "larger ones win nothing: the config's learning rate is for 16"),
        (8, 5000, 8, "about 5.0 of the 6.0 GiB that may be used; of 16 it would take 9.0"),
        (2, 5000, 1, "about 1.5 of the 1.5 GiB that may be used; of 2 it would take 2.0"),
    ],
)
def test_as_many_as_fit_and_win(free: float, pictures: int, batch: int, why: str, setting) -> None:
    machine = Machine(free)
    cfg, said = setting(machine, pictures=pictures)
    assert cfg.train_dataloader.batch_size == batch
    assert f"--batch {batch}: a step takes about" in said and why in said
    assert "--precision float32: this processor has no instructions for bfloat16" in said
    assert len(machine.tried) == 1 and f"{batch} pictures a step" in said
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-3 * (batch / 16) ** 0.5)


def test_nothing_is_tried_where_all_is_given(setting) -> None:
    machine = Machine(100, bfloat16=True)
    cfg, said = setting(machine, "--batch", "3", "--precision", "bfloat16")
    assert cfg.train_dataloader.batch_size == 3 and not machine.tried
    assert mixed_precision.precision_of(cfg) == "bfloat16" and "bfloat16: as asked for" in said


@pytest.mark.parametrize(("speed", "precision"), [(0.5, "bfloat16"), (0.97, "float32")])
def test_the_faster_precision(speed: float, precision: str, setting) -> None:
    machine = Machine(6, bfloat16=True)
    machine.speed["bfloat16"] = speed
    cfg, said = setting(machine, pictures=5000)
    assert mixed_precision.precision_of(cfg) == precision
    assert f"--precision {precision}: a step in bfloat16 took {speed:.2f} of float32's time" in said
    # 4.5 GiB may be used, and a picture takes half of float32's
    assert cfg.train_dataloader.batch_size == (8 if precision == "bfloat16" else 4)
    assert [name for name, _ in machine.tried] == ["float32", "bfloat16"]


def test_a_run_that_goes_on_keeps_its_batch(setting, tmp_path: Path) -> None:
    cfg, _ = setting(Machine(4), pictures=5000)
    batch = cfg.train_dataloader.batch_size
    (tmp_path / "work").mkdir(exist_ok=True)
    cfg.dump(str(tmp_path / "work" / Path(DEMO).name))
    machine = Machine(100)
    cfg, said = setting(machine, "--resume", pictures=5000)
    assert cfg.train_dataloader.batch_size == batch and not machine.tried
    assert f"--batch {batch}: as the run that goes on" in said
    cfg, _ = setting(machine, pictures=5000)  # a new run
    assert cfg.train_dataloader.batch_size > batch


def test_where_nothing_can_be_known_the_config_decides(setting) -> None:
    machine = Machine(-1)
    cfg, said = setting(machine)
    assert cfg.train_dataloader.batch_size == 8 and not machine.tried
    assert "--batch 8, the config's: this system does not tell" in said


def test_what_does_not_fit_or_run_is_named(setting) -> None:
    with pytest.raises(InputError, match="not even one picture a step fits into 0.8 GiB"):
        setting(Machine(1))
    machine = Machine(100)
    machine.fails = TrialError("exit status -9", memory=True)
    with pytest.raises(InputError, match="(?s)not even one picture .*smaller --family"):
        setting(machine)
    machine.fails = TrialError("KeyError: 'masks'", memory=False)
    with pytest.raises(InputError, match="tried to see what fits, failed: KeyError: 'masks'"):
        setting(machine)

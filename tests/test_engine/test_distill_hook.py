"""DistillHook in runs of a tiny detector: what it adds, when, and what it leaves alone."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ltm_det.basics.errors import InputError
from ltm_det.engine.distill_hook import DistillHook, map_errors
from tests.test_engine.tiny_detector import build

LEVELS = [f"loss_distill_{i}" for i in range(4)]


@HOOKS.register_module(force=True)
class RecordDistilled(Hook):
    """Keeps all losses, the backbone's images and maps, and what the losses send back."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.losses, self.seen = [], []

    def before_train(self, runner) -> None:
        runner.model.backbone.register_forward_hook(self.see)

    def see(self, backbone, args, maps) -> None:
        if backbone.training:
            self.seen.append((args[0], [x.detach() for x in maps]))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append({k: v.item() for k, v in outputs.items() if "loss" in k})

    def __deepcopy__(self, memo):
        return self


@pytest.fixture(scope="module")
def teacher(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense detector's checkpoint, of other weights than those of the student's start."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(7)
    runner = build(root, folder, [], model__backbone__merger=None)
    file = folder / "dense.pth"
    torch.save(dict(state_dict=runner.model.state_dict()), file)
    return file


@pytest.fixture
def run(root: Path, tmp_path: Path, teacher: Path):
    def run(**options):
        hook = dict(type="DistillHook", **{"teacher": str(teacher), **options})
        extra = dict(train_cfg__max_iters=4, model__backbone__drop_path_rate=0.0)
        runner = build(root, tmp_path, [hook, dict(type="RecordDistilled")], **extra)
        runner.train()
        (record,) = (hook for hook in runner.hooks if isinstance(hook, RecordDistilled))
        (hook,) = (hook for hook in runner.hooks if isinstance(hook, DistillHook))
        return runner, hook, record

    return run


def test_losses_are_the_maps_errors(run, teacher: Path) -> None:
    runner, _, record = run(weight=[0.5, 0, 2, 1])
    dense = MODELS.build({**runner.cfg.model.backbone, "merger": None})
    state = torch.load(teacher)["state_dict"]
    prefix = "backbone."
    dense.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    dense.train(False)
    assert len(record.losses) == len(record.seen) == 4
    for losses, (images, maps) in zip(record.losses, record.seen, strict=True):
        with torch.no_grad():
            expected = map_errors(maps, dense(images)) * torch.tensor([0.5, 0, 2, 1])
        own = {name: value for name, value in losses.items() if "distill" in name}
        assert set(own) == {LEVELS[0], LEVELS[2], LEVELS[3]}
        for i in (0, 2, 3):
            assert own[LEVELS[i]] == pytest.approx(expected[i].item(), rel=1e-4)
        parts = sum(value for name, value in losses.items() if name != "loss")
        assert losses["loss"] == pytest.approx(parts, rel=1e-5)


def test_the_teacher_stays_and_is_not_saved(run, teacher: Path) -> None:
    runner, hook, _ = run()
    state = torch.load(teacher)["state_dict"]
    for name, value in hook.teacher.state_dict().items():
        assert torch.equal(value, state[f"backbone.{name}"]), name
    assert not any("teacher" in name for name in runner.model.state_dict())
    assert not runner.model.backbone._forward_hooks.get(hook.handles[0].id)


def test_it_ends(run) -> None:
    _, _, record = run(end=0.5)
    assert [LEVELS[1] in losses for losses in record.losses] == [True, True, False, False]


def test_the_merged_maps_come_nearer() -> None:
    """The loss's gradient leads there: maps are fitted by it alone."""
    torch.manual_seed(0)
    wanted = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)]
    maps = [torch.nn.Parameter(torch.randn_like(x)) for x in wanted]
    optimizer = torch.optim.SGD(maps, lr=20.0)
    first = map_errors(maps, wanted)
    for _ in range(20):
        optimizer.zero_grad()
        map_errors(maps, wanted).sum().backward()
        optimizer.step()
    assert (map_errors(maps, wanted) < 0.1 * first).all()


def test_errors_are_relative_and_finite() -> None:
    wanted = torch.randn(2, 3, 8, 8)
    means = wanted.mean((0, 2, 3), keepdim=True).expand_as(wanted)
    assert map_errors([wanted, means], [wanted, wanted]).tolist() == pytest.approx([0, 1])
    assert map_errors([3e3 * wanted.half()], [2.9e3 * wanted.half()]).isfinite().all()
    assert map_errors([torch.ones(1, 1, 2, 2)], [torch.ones(1, 1, 2, 2)]).tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(teacher=""), "teacher=''"),
        (dict(teacher=None), "teacher=None"),
        (dict(weight=-1.0), "weight=-1.0"),
        (dict(weight=[0, 0]), "one above 0"),
        (dict(weight="much"), "weight='much'"),
        (dict(weight=float("nan")), "weight=nan"),
        (dict(end=0), "end=0"),
        (dict(end=1.5), "end=1.5"),
    ],
)
def test_wrong_values_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match="DistillHook") as error:
        DistillHook(**{"teacher": "dense.pth", **options})
    assert message in str(error.value)


def test_what_does_not_fit_is_named(run, root: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give one, or 4 for 4 maps"):
        run(weight=[1, 2])
    with pytest.raises(InputError, match=r"teacher=.*gone\.pth"):
        run(teacher=str(tmp_path / "gone.pth"))
    hook = dict(type="DistillHook", teacher=str(teacher))
    with pytest.raises(InputError, match="merges nowhere"):
        build(root, tmp_path, [hook], model__backbone__merger=None).train()

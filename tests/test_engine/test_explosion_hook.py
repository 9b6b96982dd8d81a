"""ExplosionGuardHook: which steps are bad, what they leave behind, and when a run ends."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ltm_det.basics.errors import InputError
from ltm_det.engine import ExplosionError, ExplosionGuardHook
from ltm_det.engine.explosion_hook import OVERFLOWS
from ltm_det.merging import MERGERS
from tests.test_engine.tiny_detector import build

GUARD = dict(type="ExplosionGuardHook")
ADAM = dict(optim_wrapper__optimizer=dict(_delete_=True, type="AdamW", lr=1e-3))
WEIGHT = "neck.fpn_convs.0.conv.weight"


class Recorder(Hook):
    """What is left after each iteration, and faults on the way: a function of an iteration that
    gives what a weight's gradient, or a loss, is multiplied by."""

    priority = "VERY_LOW"  # after the guard

    def __init__(self, gradient: Callable[[int], float] | None = None) -> None:
        self.gradient = gradient
        self.weights: list[dict[str, Tensor]] = []
        self.moments: list[Any] = []
        self.bad: list[bool] = []

    def before_train(self, runner: Runner) -> None:
        (self.guard,) = (h for h in runner.hooks if isinstance(h, ExplosionGuardHook))
        if self.gradient is not None:
            weight = runner.model.get_parameter(WEIGHT)
            weight.register_hook(lambda grad: grad * self.gradient(runner.iter))

    def after_train_iter(self, runner: Runner, *args: Any, **more: Any) -> None:
        self.weights.append(copy.deepcopy(runner.model.state_dict()))
        self.moments.append(copy.deepcopy(runner.optim_wrapper.optimizer.state_dict()["state"]))
        self.bad.append(self.guard.bad_now)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Callable[..., Runner]:
    """A run that is not over yet, with the guard and a recorder."""

    def built(recorder: Recorder, guard: dict | None = None, **options: Any) -> Runner:
        runner = build(root, tmp_path, [guard or GUARD], **options)
        runner.register_hook(recorder)
        return runner

    return built


def nan_at(*iterations: int) -> Callable[[int], float]:
    return lambda iteration: torch.nan if iteration in iterations else 1.0


@pytest.mark.parametrize("clip", [None, dict(max_norm=1.0), dict(type="value", clip_value=1.0)])
def test_a_bad_step_leaves_weights_and_moments_as_they_were(clip: dict | None, run) -> None:
    seen = Recorder(nan_at(2))
    run(seen, optim_wrapper__clip_grad=clip, **ADAM).train()
    assert seen.bad == [False, False, True, False, False, False]
    changed = [not equal(*pair) for pair in zip(seen.weights, seen.weights[1:])]
    assert changed == [True, False, True, True, True]
    assert equal(seen.moments[2], seen.moments[1]) and not equal(seen.moments[3], seen.moments[2])


def test_accumulated_gradients_are_left_out_together(run) -> None:
    """A bad batch spoils those it is added to; the next ones start anew."""
    seen = Recorder(nan_at(2))
    run(seen, optim_wrapper__accumulative_counts=2, **ADAM).train()
    assert seen.bad == [False, False, False, True, False, False]
    updated = [not equal(*pair) for pair in zip(seen.moments, seen.moments[1:])]
    assert updated == [True, False, False, False, True]


def test_bad_steps_are_counted_in_updates(run) -> None:
    """With gradients accumulated over 4 batches, two bad updates of three are 8 batches apart."""
    seen = Recorder(nan_at(*range(4, 8), *range(12, 16)))
    options = dict(optim_wrapper__accumulative_counts=4, train_cfg__max_iters=20)
    runner = run(seen, dict(GUARD, limit=2, window=3), **options)
    with pytest.raises(ExplosionError, match=r"at iteration 16(?s:.*)iteration 8: gradients"):
        runner.train()


@pytest.mark.parametrize("clip", [None, dict(max_norm=0.1), dict(max_norm=0.1, norm_type=1)])
def test_the_hook_changes_nothing_in_a_sound_run(
    clip: dict | None, run, root: Path, tmp_path: Path
) -> None:
    seen, options = Recorder(), dict(optim_wrapper__clip_grad=clip, **ADAM)
    run(seen, dict(GUARD, interval=1), **options).train()
    plain = build(root, tmp_path / "plain", **options)
    plain.train()
    assert not any(seen.bad) and equal(seen.weights[-1], plain.model.state_dict())


@pytest.mark.parametrize("pattern", ["every second", "in a row"])
def test_a_run_ends_at_the_limit_within_the_window(pattern: str, run) -> None:
    bad = range(1, 30, 2) if pattern == "every second" else range(3, 30)
    runner = run(Recorder(nan_at(*bad)), train_cfg__max_iters=30)
    with pytest.raises(ExplosionError) as caught:
        runner.train()
    assert runner.iter + 1 == [*bad][4] + 1
    said = str(caught.value)
    assert said.count(f"not finite, nearest to the losses that of {WEIGHT}") == 5
    assert "pictures of the last step:" in said and "/train/" in said and "now 0.01" in said


def test_bad_steps_far_apart_are_no_explosion(run) -> None:
    seen = Recorder(nan_at(*range(0, 21, 4)))
    run(seen, train_cfg__max_iters=21).train()
    assert sum(seen.bad) == 6


def test_a_step_whose_update_was_left_out_is_saved(run, tmp_path: Path) -> None:
    seen = Recorder(nan_at(3, 5))
    run(seen, default_hooks__checkpoint__interval=2).train()
    assert sum(seen.bad) == 2
    names = {path.name for path in tmp_path.glob("*.pth")}
    assert names == {"iter_2.pth", "iter_4.pth", "iter_6.pth"}


def test_another_bad_step_is_not_saved(run, tmp_path: Path) -> None:
    runner = run(
        Recorder(), default_hooks__checkpoint__interval=2, optim_wrapper__optimizer__lr=0.0
    )
    runner.register_hook(Louder(1e5, 3))
    runner.train()
    assert {path.name for path in tmp_path.glob("*.pth")} == {"iter_2.pth", "iter_6.pth"}


def test_averages_that_are_nan_are_not_saved(run, tmp_path: Path) -> None:
    class Poison(Hook):
        def after_train_iter(self, runner: Runner, *args: Any, **more: Any) -> None:
            if runner.iter == 2:
                (own,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
                own.ema_model.module.get_parameter(WEIGHT).data[0] = torch.nan

    runner = run(Recorder(), default_hooks__checkpoint__interval=2)
    runner.register_hook(EMAHook())
    runner.register_hook(Poison())
    with pytest.raises(ExplosionError, match=f"weights are not finite: module.{WEIGHT}"):
        runner.train()
    assert [path.name for path in tmp_path.glob("*.pth")] == ["iter_2.pth"]


class Louder(Hook):
    """Multiplies a loss in some iterations."""

    def __init__(self, times: float, *at: int) -> None:
        self.times, self.at = times, at

    def before_train_iter(self, runner: Runner, *args: Any, **more: Any) -> None:
        loss = runner.model.roi_head.bbox_head.loss_cls
        loss.loss_weight = self.times if runner.iter in self.at else 1.0


@pytest.mark.parametrize("times, bad", [(300.0, False), (1e5, True)])
def test_a_loss_a_thousand_times_as_large_is_bad(times: float, bad: bool, run) -> None:
    seen = Recorder()
    runner = run(seen, optim_wrapper__optimizer__lr=0.0)
    runner.register_hook(Louder(times, 2, 4))
    runner.train()
    assert seen.bad == [False, False, bad, False, bad, False]


def test_statistics_that_are_nan_end_a_run_before_they_are_saved(run, tmp_path: Path) -> None:
    """Training goes on with those of each batch, a test would not."""

    class Poison(Hook):
        def after_train_iter(self, runner: Runner, *args: Any, **more: Any) -> None:
            if runner.iter == 2:
                runner.model.norm.running_var[0] = torch.inf

    runner = run(Recorder(), default_hooks__checkpoint__interval=2)
    runner.model.norm = nn.BatchNorm1d(3)
    runner.register_hook(Poison())
    with pytest.raises(ExplosionError, match=r"iteration 4: weights .*: norm.running_var"):
        runner.train()
    assert [path.name for path in tmp_path.glob("*.pth")] == ["iter_2.pth"]


@pytest.mark.parametrize("merger", sorted(MERGERS))
def test_no_merger_is_taken_for_an_explosion(merger: str, run) -> None:
    seen = Recorder()
    options = dict(type=merger, compression_ratio=[0.5, 0.5, 1.0, 1.0], dense_blocks=1)
    if not MERGERS[merger].keeps_grid:
        options["scope"] = "block"
    options = dict(model__backbone__merger=dict(options, _delete_=True), train_cfg__max_iters=2)
    run(seen, dict(GUARD, interval=1), **options).train()
    assert seen.bad == [False, False]


def test_mask_logits_are_looked_at_though_no_loss_shows_them(run) -> None:
    """Those of a chain's end are nobody's input."""
    seen = Recorder()
    runner = run(seen, dict(GUARD, interval=3))
    last = [*runner.model.backbone.mergers_by_point().values()][-1]

    def poison(module: nn.Module, args: tuple, output: tuple) -> tuple:
        return output[0], output[1] * torch.nan

    last.register_forward_hook(poison)
    runner.train()
    # every third step is looked at, and the one after a bad one
    assert seen.bad == [False, False, True, True, True, True]


@pytest.fixture
def amp_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's AmpOptimWrapper, whose scaler, torch's own, works on a CPU as well."""
    place = "mmengine.optim.optimizer.amp_optimizer_wrapper"
    monkeypatch.setattr(f"{place}.is_cuda_available", lambda: True)
    monkeypatch.setattr(f"{place}.GradScaler", lambda **kw: torch.amp.GradScaler("cpu", **kw))


@pytest.mark.parametrize("fused", [False, True])
def test_overflows_in_mixed_precision_are_not_counted(fused: bool, run, amp_on_a_cpu) -> None:
    seen = Recorder(lambda iteration: torch.inf if iteration in range(1, 9) else 1.0)
    options = dict(optim_wrapper__type="AmpOptimWrapper", optim_wrapper__dtype="bfloat16")
    runner = run(seen, train_cfg__max_iters=12, optim_wrapper__optimizer__fused=fused, **options)
    runner.train()
    assert isinstance(runner.optim_wrapper, AmpOptimWrapper)
    assert seen.bad == [False] * 12
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0 ** (16 - 8)
    updated = [not equal(*pair) for pair in zip(seen.weights, seen.weights[1:])]
    assert updated == [False] * 8 + [True] * 3


@pytest.mark.parametrize("fused", [False, True])
def test_overflows_without_end_are(fused: bool, run, amp_on_a_cpu) -> None:
    options = dict(optim_wrapper__type="AmpOptimWrapper", optim_wrapper__dtype="bfloat16")
    options |= dict(optim_wrapper__optimizer__fused=fused, train_cfg__max_iters=60)
    runner = run(Recorder(lambda iteration: torch.inf), **options)
    with pytest.raises(ExplosionError, match=f"{OVERFLOWS} updates in a row left out by the loss"):
        runner.train()
    assert runner.iter + 1 == OVERFLOWS + 4


def test_a_nan_loss_in_mixed_precision_is_counted(run, amp_on_a_cpu) -> None:
    options = dict(optim_wrapper__type="AmpOptimWrapper", optim_wrapper__dtype="bfloat16")
    runner = run(Recorder(), **options)
    runner.model.roi_head.bbox_head.loss_cls.loss_weight = torch.nan
    with pytest.raises(ExplosionError, match="loss_cls is nan") as caught:
        runner.train()
    assert runner.iter + 1 == 5
    assert "not finite: roi_head.bbox_head.loss_cls (CrossEntropyLoss)" in str(caught.value)


def test_after_a_run_nothing_of_the_hook_is_left(run) -> None:
    runner = run(Recorder())
    runner.train()
    assert "step" not in vars(runner.optim_wrapper)
    assert all("_save_checkpoint" not in vars(hook) for hook in runner.hooks)


@pytest.mark.parametrize(
    "options, told",
    [(dict(limit=0), "limit"), (dict(window=2.5), "window"), (dict(limit=6, window=5), "exceed")],
)
def test_settings_out_of_range(options: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        ExplosionGuardHook(**options)

"""Calibration of small backbones of random weights, Swin and ViT."""

import copy
import math

import pytest
import torch
from torch import nn

from ltm_det.conversion.calibration import (
    calibrate,
    calibrate_if_better,
    map_error,
    merger_parameters,
    relative_error,
)
from tests.test_backbones import swin_cases, vit_cases

LTM = dict(type="LTM")
CASES = {
    "swin-stage": lambda merger, **o: swin_cases.build(merger, drop_path_rate=0.5, **o),
    "swin-block": lambda merger, **o: swin_cases.build(merger, "block", drop_path_rate=0.5, **o),
    "vit": lambda merger, **o: vit_cases.build(merger, drop_path_rate=0.5, **o),
}


def twin_of(student: nn.Module, case: str) -> nn.Module:
    twin, weights = CASES[case](None), student.state_dict()
    twin.load_state_dict({key: weights[key] for key in twin.state_dict()})
    return twin


def pair(case: str, merger: dict = LTM, **options) -> tuple[nn.Module, nn.Module]:
    """A merged backbone and its dense twin, both of random weights in evaluation mode."""
    student = CASES[case](merger, **options)
    return student, twin_of(student, case)


def images(number: int, seed: int = 0) -> list[torch.Tensor]:
    """Batches of two smooth images each, high and wide in turn."""
    torch.manual_seed(seed)
    sizes = [(40, 52), (52, 36)]
    return [
        nn.functional.interpolate(torch.randn(2, 3, 9, 11), sizes[i % 2], mode="bilinear")
        for i in range(number)
    ]


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


def test_the_error_is_that_of_plain_loops() -> None:
    teacher = [3 + torch.randn(2, 3, 4, 5), torch.randn(2, 2, 1, 2)]
    student = [t + 0.5 * torch.randn_like(t) for t in teacher]
    expected = 0.0
    for s, t in zip(student, teacher):
        wrong = spread = 0.0
        for channel in range(t.shape[1]):
            values = t[:, channel].flatten().tolist()
            mean = sum(values) / len(values)
            spread += sum((value - mean) ** 2 for value in values)
            found = s[:, channel].flatten().tolist()
            wrong += sum((a - b) ** 2 for a, b in zip(found, values))
        expected += wrong / spread / len(teacher)
    assert map_error(student, teacher).item() == pytest.approx(expected, rel=1e-5)
    assert map_error(teacher, teacher) == 0
    means = [t.mean((0, 2, 3), keepdim=True).expand_as(t) for t in teacher]
    assert map_error(means, teacher).item() == pytest.approx(1)
    constant = [torch.ones(1, 2, 3, 3)]
    assert map_error(constant, constant) == 0  # and not 0 / 0


def test_the_error_of_batches_is_a_mean_over_images() -> None:
    student, teacher = pair("vit")
    one, two = images(2)
    one = one[:1]
    with torch.no_grad():
        errors = [map_error(student(x), teacher(x)).item() for x in (one, two)]
    expected = (errors[0] + 2 * errors[1]) / 3
    assert relative_error(student, teacher, [one, two]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mask", ["soft", "hard", "hard_soft"])
def test_nothing_but_the_mergers_changes(case: str, mask: str) -> None:
    student, teacher = pair(case, dict(type="LTM", mask=mask))
    student.train()
    next(student.parameters()).requires_grad_(False)
    own = merger_parameters(student)[0].requires_grad_(False)
    next(student.children()).eval()
    flags = [p.requires_grad for p in student.parameters()]
    modes = [m.training for m in student.modules()]
    weights, twin = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    batches, random_state = images(3), torch.get_rng_state()
    assert len(calibrate(student, teacher, batches, steps=3)) == 3
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [p.requires_grad for p in student.parameters()] == flags and not own.requires_grad
    assert [m.training for m in student.modules()] == modes
    assert all(p.grad is None for p in student.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, twin[name]), name
    fitted = {id(p) for p in merger_parameters(student)}
    inside = {name for name, p in student.named_parameters() if id(p) in fitted}
    for name, value in student.state_dict().items():
        assert torch.equal(value, weights[name]) == (name not in inside), name


def test_stochastic_depth_is_off_and_every_round_takes_every_batch(case: str) -> None:
    student, teacher = pair(case)
    batches = images(4)
    each = sorted(relative_error(student, teacher, [batch]) for batch in batches)
    student.train()
    losses = calibrate(student, teacher, batches, steps=8, lr=1e-9)
    for found in (losses[:4], losses[4:]):
        assert sorted(found) == pytest.approx(each, rel=1e-4)


@pytest.mark.parametrize("mask", ["soft", "hard"])
def test_equal_seeds_give_equal_mergers(mask: str) -> None:
    def fitted(seed: int) -> list[torch.Tensor]:
        student, teacher = pair("vit", dict(type="LTM", mask=mask))
        torch.manual_seed(len(results))  # of no influence
        calibrate(student, teacher, images(4), steps=6, seed=seed)
        return merger_parameters(student)

    results = []
    for seed in (0, 0, 1):
        results.append(fitted(seed))
    first, again, other = results
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_progress_sees_every_step() -> None:
    student, teacher = pair("vit")
    seen = []

    def watch(steps):
        for step in steps:
            seen.append(step)
            yield step

    calibrate(student, teacher, images(1), steps=3, progress=watch)
    assert seen == [0, 1, 2]


def test_flags_come_back_after_an_interruption() -> None:
    student, teacher = pair("vit")
    student.train()

    def stop(steps):
        yield next(iter(steps))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(student, teacher, images(1), progress=stop)
    assert all(m.training for m in student.modules())
    assert all(p.requires_grad and p.grad is None for p in student.parameters())


def test_it_lowers_the_error_on_other_images_and_is_kept(case: str) -> None:
    student, teacher = pair(case)
    fit, others = images(6), images(3, seed=1)
    before = relative_error(student, teacher, others)
    done = calibrate_if_better(student, teacher, fit, others, steps=30, lr=0.05)
    assert done.kept and done.before == before and len(done.losses) == 30
    assert done.after < 0.9 * before
    assert done.after == relative_error(student, teacher, others)


@pytest.mark.parametrize("lr", [pytest.param(1e3, marks=pytest.mark.slow), 1e30])
def test_what_does_not_help_is_taken_back(lr: float) -> None:
    student, teacher = pair("vit")
    fit, others = images(4), images(2, seed=1)
    calibrate(student, teacher, fit, steps=60, lr=0.05)  # a good start
    start = [p.detach().clone() for p in merger_parameters(student)]
    done = calibrate_if_better(student, teacher, fit, others, steps=3, lr=lr)
    assert not done.kept and not done.after < done.before
    assert all(map(torch.equal, merger_parameters(student), start))
    assert relative_error(student, teacher, others) == done.before


def test_it_stops_where_the_error_is_not_finite() -> None:
    student, teacher = pair("vit")
    start = copy.deepcopy(student.state_dict())
    (loss,) = calibrate(student, teacher, [images(1)[0] * math.nan], steps=5)
    assert math.isnan(loss)
    assert all(torch.equal(value, start[key]) for key, value in student.state_dict().items())


def test_steps_without_a_finite_gradient_change_nothing() -> None:
    student, teacher = pair("vit")
    start, bad = copy.deepcopy(student.state_dict()), [True, True, False]
    merger_parameters(student)[0].register_hook(lambda g: g * (math.nan if bad.pop() else 1))
    losses = calibrate(student, teacher, images(1), steps=3)
    assert not bad and losses[0] != losses[1] == losses[2]
    assert all(value.isfinite().all() for value in student.state_dict().values())
    assert not all(torch.equal(value, start[key]) for key, value in student.state_dict().items())


def test_all_parameters_below_a_merger_are_fitted_each_once() -> None:
    student, _ = pair("swin-stage")
    expected = []
    for merger in student.mergers_by_point().values():
        merger.extra = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1, bias=False))
        merger.again = merger.extra[0]
        expected += merger.parameters()
    found = merger_parameters(student)
    assert len(found) == len(expected) and set(map(id, found)) == set(map(id, expected))


def test_what_cannot_be_calibrated_is_named() -> None:
    student, teacher = pair("vit", dict(type="Pool"))
    with pytest.raises(ValueError, match="nothing to calibrate: Pool has no parameters"):
        calibrate(student, teacher, images(1))
    student, teacher = pair("swin-stage", ratio=1.0)
    with pytest.raises(ValueError, match="nothing to calibrate: the backbone merges nowhere"):
        calibrate_if_better(student, teacher, images(1), images(1))
    student, teacher = pair("vit")
    with pytest.raises(ValueError, match="0 batches"):
        calibrate(student, teacher, [])
    with pytest.raises(ValueError, match="0 steps"):
        calibrate(student, teacher, images(1), steps=0)

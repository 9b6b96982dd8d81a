"""Samples, clusters, Q and the bound of the bottleneck, on one rank and on two."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, distributed, multiprocessing

from ltm_det.engine.bottleneck import Bottleneck, fit_centroids
from ltm_det.ib import IBStatistics, assign, bound, class_cost

CLASSES, CLUSTERS, BETA = 4, 5, 6.0
WIDTHS = dict(one=7, two=3)


def draw(number: int, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Labels, inputs and features of samples in clusters that tell of their class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (number,), generator=generator)

    def features(channels: int) -> Tensor:
        centres = torch.randn(CLASSES, channels, generator=torch.Generator().manual_seed(channels))
        return centres[labels] + 0.7 * torch.randn(number, channels, generator=generator)

    inputs = features(11)
    return labels, inputs, {name: features(channels) for name, channels in WIDTHS.items()}


def new(capacity: int = 1000, **options) -> Bottleneck:
    given = dict(points=WIDTHS, classes=CLASSES, clusters=CLUSTERS, beta=BETA, capacity=capacity)
    return Bottleneck(**given | options)


def filled(*numbers: int, **options) -> Bottleneck:
    bottleneck = new(**options)
    for seed, number in enumerate(numbers):
        bottleneck.add(*draw(number, seed))
    return bottleneck


def assert_equal(one, other, near: float = 0.0) -> None:
    """Of dicts, tensors and numbers."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key], near)
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.numel() == 0 or (one - other).abs().max() <= near
    else:
        assert one == other or abs(one - other) <= near


@pytest.mark.parametrize("clusters", [1, 3, 20])
def test_centroids_have_unit_length_and_repeat(clusters):
    features = 100 * torch.randn(20, 6)
    centroids = fit_centroids(features, clusters)
    assert centroids.shape == (clusters, 6) and centroids.dtype == torch.float32
    assert (centroids.norm(dim=1) - 1).abs().max() < 1e-6
    torch.manual_seed(5)
    assert torch.equal(fit_centroids(features, clusters), centroids)
    assert fit_centroids(features.double(), clusters).dtype == torch.float32


def test_centroids_are_those_of_directions():
    """Four of them, of whatever length."""
    angles = torch.arange(4) * math.pi / 2 + 0.3
    directions = torch.stack([angles.cos(), angles.sin()], 1)
    lengths = torch.logspace(-3, 3, 100)
    features = (lengths[:, None, None] * directions).flatten(0, 1)
    centroids = fit_centroids(features, 4)
    assert ((centroids @ directions.T).amax(0) > 1 - 1e-5).all()


def test_equal_samples_leave_no_warning(recwarn):
    centroids = fit_centroids(torch.ones(10, 3), 4)
    assert centroids.isfinite().all() and not recwarn.list


def test_the_random_numbers_of_training_are_left_alone():
    import random

    import numpy as np

    def states() -> tuple:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[2]  # noqa: NPY002

    before = states()
    filled(60).refresh()
    assert states() == before


def test_too_few_samples_for_centroids():
    with pytest.raises(ValueError, match="5 clusters need as many samples, but there are 4: .*low"):
        fit_centroids(torch.randn(4, 3), 5)


def test_samples_add_up():
    bottleneck = filled(4, 0, 3)
    parts = [draw(4, 0), draw(3, 2)]
    assert torch.equal(bottleneck.labels, torch.cat([p[0] for p in parts]))
    assert torch.equal(bottleneck.inputs, torch.cat([p[1] for p in parts]))
    assert list(bottleneck.features) == list(WIDTHS)
    for name in WIDTHS:
        assert torch.equal(bottleneck.features[name], torch.cat([p[2][name] for p in parts]))


@pytest.mark.parametrize("numbers", [(12,), (4, 12), (4, 3), (4, 3, 2, 1, 5), (3, 0, 9)])
def test_the_oldest_samples_go(numbers):
    """Also those of a first batch that is larger than what is kept."""
    everything, kept = filled(*numbers), filled(*numbers, capacity=6)
    assert len(kept.labels) == min(6, sum(numbers))
    assert torch.equal(kept.labels, everything.labels[-6:])
    assert torch.equal(kept.inputs, everything.inputs[-6:])
    for name in WIDTHS:
        assert torch.equal(kept.features[name], everything.features[name][-6:])


def test_samples_are_kept_in_float32_and_without_gradient():
    labels, inputs, features = draw(6)
    bottleneck = new()
    for x in features.values():
        x.requires_grad_()
    half = {name: (2 * x).to(torch.bfloat16) for name, x in features.items()}
    bottleneck.add(labels, inputs.half(), half)
    for kept in (bottleneck.inputs, *bottleneck.features.values()):
        assert kept.dtype == torch.float32 and not kept.requires_grad


def by_hand(
    features: Tensor, inputs: Tensor, labels: Tensor, centroids: Tensor
) -> tuple[IBStatistics, Tensor, Tensor]:
    statistics = IBStatistics(CLUSTERS, CLUSTERS, CLASSES)
    phi_in = assign(inputs, fit_centroids(inputs, CLUSTERS), BETA)
    statistics.update(assign(features, centroids, BETA), phi_in, labels)
    return statistics, statistics.class_conditional(), statistics.prior()


def test_refresh_takes_all_from_one_assignment():
    """Q belongs to the centroids that come with it, at the first refresh and at later ones."""
    bottleneck = new()
    for seed in (0, 1):
        labels, inputs, features = draw(80, seed)
        bottleneck.add(labels, inputs, features)
        assert bottleneck.ready == (seed > 0)
        before = dict(bottleneck.centroids)
        summaries = bottleneck.refresh()
        assert bottleneck.ready and list(summaries) == list(WIDTHS)
        for name, x in features.items():
            centroids = fit_centroids(x, CLUSTERS)
            assert torch.equal(bottleneck.centroids[name], centroids)
            statistics, q, prior = by_hand(x, inputs, labels, centroids)
            assert_equal(summaries[name], statistics.summary())
            assert summaries[name]["samples"] == 80
            assert_equal(bottleneck.q[name], q)
            assert_equal(bottleneck.prior, prior, 1e-7)  # from any point, up to rounding
            if before:  # the ids of clusters have changed
                _, other, _ = by_hand(x, inputs, labels, before[name])
                assert (bottleneck.q[name] - other).abs().max() > 0.01
        assert len(bottleneck.labels) == 0 and bottleneck.inputs is None
        assert bottleneck.features == {}


def test_the_prior_is_the_share_of_each_class():
    bottleneck = filled(90)
    shares = torch.bincount(bottleneck.labels, minlength=CLASSES) / 90
    assert (bottleneck.prior - 1 / CLASSES).abs().max() < 1e-7
    bottleneck.refresh()
    assert (bottleneck.prior - shares).abs().max() < 1e-6


def test_the_loss_is_the_bound_by_hand():
    bottleneck = filled(70)
    bottleneck.refresh()
    labels, _, features = draw(9, seed=5)
    for name, x in features.items():
        x.requires_grad_()
        loss = bottleneck.loss(name, x, labels)
        phi = assign(x, bottleneck.centroids[name], BETA)
        log_q = bottleneck.q[name].log().float()
        assert loss.item() == pytest.approx(bound(phi, class_cost(log_q, labels)).item())
        slow = 0.0
        for feature, label in zip(x.tolist(), labels.tolist()):
            length = math.sqrt(sum(v * v for v in feature))
            far = [
                sum((v / length - c) ** 2 for v, c in zip(feature, centroid))
                for centroid in bottleneck.centroids[name].tolist()
            ]
            e = [math.exp(-BETA * d) for d in far]
            q = bottleneck.q[name][label].tolist()
            slow -= sum(e[a] / sum(e) * math.log(q[a]) for a in range(CLUSTERS)) / len(labels)
        assert loss.item() == pytest.approx(slow, rel=1e-5)
        loss.backward()
        assert x.grad.abs().max() > 0
    assert len(bottleneck.labels) == 0  # it gathers nothing


def test_the_loss_goes_down_along_its_gradient():
    bottleneck = filled(70)
    bottleneck.refresh()
    labels, _, features = draw(30, seed=5)
    x = features["one"].requires_grad_()
    first = bottleneck.loss("one", x, labels)
    (gradient,) = torch.autograd.grad(first, x)
    assert bottleneck.loss("one", x - 5 * gradient, labels) < first - 0.01


def test_the_loss_without_samples_is_zero():
    bottleneck = filled(70)
    bottleneck.refresh()
    x = torch.zeros(0, 7, requires_grad=True)
    loss = bottleneck.loss("one", x, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0 and x.grad.shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_is_in_float32(dtype):
    bottleneck = filled(70)
    bottleneck.refresh()
    labels, _, features = draw(9, seed=5)
    x = features["one"].to(dtype)
    exact = bottleneck.loss("one", x.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = bottleneck.loss("one", x, labels)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_class_that_was_never_seen_has_a_finite_loss():
    labels, inputs, features = draw(50)
    bottleneck = new(classes=CLASSES + 1)
    bottleneck.add(labels, inputs, features)
    bottleneck.refresh()
    unseen = torch.full((50,), CLASSES)
    loss = bottleneck.loss("one", features["one"], unseen)
    assert loss.item() == pytest.approx(math.log(CLUSTERS), rel=1e-4)


@pytest.mark.parametrize("numbers", [(), (0,), (2, 2)])
def test_too_few_samples_change_nothing(numbers):
    bottleneck = filled(40)
    bottleneck.refresh()
    for seed, number in enumerate(numbers):
        bottleneck.add(*draw(number, seed))
    before = copy.deepcopy(bottleneck.state_dict())
    assert bottleneck.refresh() == {}
    assert_equal(bottleneck.state_dict(), before)
    assert len(bottleneck.labels) == sum(numbers)
    bottleneck.add(*draw(10, 7))  # they count with those that follow
    assert bottleneck.refresh()["one"]["samples"] == sum(numbers) + 10


def test_before_the_first_refresh_too_few_samples_leave_it_unready():
    bottleneck = filled(2)
    assert bottleneck.refresh() == {} and not bottleneck.ready


@pytest.mark.parametrize("refreshed", [False, True])
@pytest.mark.parametrize("more", [(), (3,), (20, 4)])
def test_state_goes_through_a_file(tmp_path, refreshed, more):
    bottleneck = filled(40)
    bottleneck.refresh() if refreshed else bottleneck.clear()
    for seed, number in enumerate(more):
        bottleneck.add(*draw(number, seed))
    torch.save(bottleneck.state_dict(), tmp_path / "state.pth")
    loaded = new()
    loaded.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert_equal(loaded.state_dict(), bottleneck.state_dict())
    assert loaded.ready == refreshed
    for one in (bottleneck, loaded):
        one.add(*draw(30, 9))
    assert_equal(loaded.refresh(), bottleneck.refresh())
    assert_equal(loaded.q, bottleneck.q)


def test_what_is_loaded_belongs_to_it_alone():
    bottleneck, other = filled(40, 3), new()
    bottleneck.refresh()
    bottleneck.add(*draw(3))
    other.load_state_dict(bottleneck.state_dict())
    centroids = dict(other.centroids)
    bottleneck.add(*draw(50, 4))
    bottleneck.refresh()
    assert len(other.labels) == len(other.features["one"]) == 3
    assert_equal(other.centroids, centroids)


class Elsewhere(Tensor):
    """A tensor that stands for one on a GPU: what is not moved stays one."""

    def cpu(self) -> Tensor:
        return self.as_subclass(Tensor)


def test_a_state_that_was_loaded_onto_a_gpu_is_kept_on_the_cpu():
    """mmengine resumes onto the model's device."""
    bottleneck = filled(40)
    bottleneck.refresh()
    bottleneck.add(*draw(3))

    def move(state):
        if isinstance(state, dict):
            return {key: move(value) for key, value in state.items()}
        return state.as_subclass(Elsewhere)

    loaded = new()
    loaded.load_state_dict(move(bottleneck.state_dict()))
    for kept in loaded.state_dict().values():
        for tensor in kept.values() if isinstance(kept, dict) else [kept]:
            assert type(tensor) is Tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_resuming_onto_a_gpu():
    bottleneck, loaded = filled(40), new()
    bottleneck.refresh()
    bottleneck.add(*draw(30))

    def move(state):
        if isinstance(state, dict):
            return {key: move(value) for key, value in state.items()}
        return state.cuda()

    loaded.load_state_dict(move(bottleneck.state_dict()))
    labels, inputs, features = draw(9, 5)
    on_gpu = {name: x.cuda() for name, x in features.items()}
    loss = loaded.loss("one", on_gpu["one"], labels.cuda())
    assert loss.item() == pytest.approx(bottleneck.loss("one", features["one"], labels).item())
    bottleneck.add(labels, inputs, features)
    loaded.add(labels.cuda(), inputs.cuda(), on_gpu)
    assert_equal(loaded.refresh(), bottleneck.refresh(), 1e-6)


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(classes=9), ["4 classes", "hook has 9"]),
        (dict(clusters=3), ["5 clusters", "3 and"]),
        (dict(points=["one"]), ["['one', 'two']", "and ['one']:"]),
        (dict(points=["one", "two", "three"]), ["['one', 'three', 'two']:"]),
    ],
)
def test_a_state_of_other_settings(options, told):
    bottleneck = filled(40)
    bottleneck.refresh()
    other = new(**options)
    with pytest.raises(ValueError, match="resume with the settings of the run") as error:
        other.load_state_dict(bottleneck.state_dict())
    assert all(part in str(error.value) for part in told)
    assert not other.ready and "{" not in str(error.value)


def test_other_points_are_found_before_there_are_centroids():
    with pytest.raises(ValueError, match="merge points"):
        new(points=["one"]).load_state_dict(filled(3).state_dict())


def all_of(bottleneck: Bottleneck) -> dict:
    """What a refresh tells and leaves."""
    told = bottleneck.refresh()
    return dict(told=told, centroids=bottleneck.centroids, q=bottleneck.q, prior=bottleneck.prior)


def half_of_the_samples(rank: int, number: int) -> dict:
    labels, inputs, features = draw(number)
    part = slice(0, number // 2) if rank == 0 else slice(number // 2, None)
    bottleneck = new()
    bottleneck.add(labels[part], inputs[part], {name: x[part] for name, x in features.items()})
    return all_of(bottleneck)


def one_rank_without_samples(rank: int, number: int) -> dict:
    bottleneck = filled(number) if rank else new()
    return all_of(bottleneck)


def run_rank(rank: int, work: Callable, number: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2
    )
    with threadpool_limits(1):  # threads do not survive a fork
        torch.save(work(rank, number), folder / f"{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


def on_two_ranks(work: Callable, number: int, folder: Path) -> list[dict]:
    """What ``work(rank, number)`` gives on each; forked, which spares the imports."""
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=run_rank, args=(rank, work, number, folder)) for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
        assert process.exitcode == 0
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.parametrize("work", [half_of_the_samples, one_rank_without_samples])
def test_two_ranks_are_as_one_with_all_samples(tmp_path, work):
    """Also where neither half is enough, and where all samples are on the second rank."""
    for number in (60, 6):
        folder = tmp_path / str(number)
        folder.mkdir()
        first, second = on_two_ranks(work, number, folder)
        assert_equal(first, second)
        assert_equal(first, all_of(filled(number)), 1e-6)
        assert first["told"]["one"]["samples"] == number


def test_two_ranks_with_too_few_samples(tmp_path):
    first, second = on_two_ranks(half_of_the_samples, CLUSTERS - 1, tmp_path)
    assert first["told"] == second["told"] == {}

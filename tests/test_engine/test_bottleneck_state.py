"""The state of the bottleneck, kept in a file and shared by two ranks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, distributed, multiprocessing

from ltm_det.engine.bottleneck import Bottleneck
from tests.test_engine.bottleneck_samples import CLUSTERS, assert_equal, draw, filled, new


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
    torch.set_num_threads(1)  # threads do not survive a fork, and are waited for
    with threadpool_limits(1):
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

"""A resumed run repeats the uninterrupted one, whatever the loop, the sampler and the workers.

The model is a dropout layer and a weight: its loss tells every random number it was given.
"""

import copy
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, MODELS
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, Dataset

from ltm_det.cpu import products
from ltm_det.engine.resume_hook import (
    ExactResumeHook,
    NumberedBatches,
    seed_everything,
)

LENGTH = 12


class NoisyItems(Dataset):
    """Item i: its index with noise of python, numpy and torch, as augmentations would add it."""

    loaded = 0

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        NoisyItems.loaded += 1
        noise = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
        return torch.tensor([index + noise / 10], dtype=torch.float64)


class NoisyModel(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, *inputs: torch.Tensor, mode: str) -> dict[str, torch.Tensor]:
        items = torch.stack(inputs) * self.weight
        return dict(loss=torch.nn.functional.dropout(items, 0.5).mean())


class KeepLosses(Hook):
    """Keeps the loss of every iteration in ``losses``, and may stop the run."""

    losses: dict[int, float] = {}

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        KeepLosses.losses[runner.iter] = outputs["loss"].item()
        if runner.iter + 1 == self.stop:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def registered():
    classes = ((DATASETS, NoisyItems), (MODELS, NoisyModel), (HOOKS, KeepLosses))
    for registry, cls in classes:
        registry.register_module(module=cls, force=True)
    yield
    for registry, cls in classes:
        registry.module_dict.pop(cls.__name__)


ITERS = dict(type="IterBasedTrainLoop", max_iters=20)
EPOCHS = dict(type="EpochBasedTrainLoop", max_epochs=5)


def run(
    work_dir: Path,
    train_cfg: dict,
    sampler: str = "InfiniteSampler",
    workers: int = 0,
    hook: bool = True,
    stop: int | None = None,
    resume: bool = False,
    seed: int | None = None,
) -> dict[int, float]:
    """Losses of a run by iteration; it saves every 5 iterations or every epoch of 3."""
    hooks = [dict(type="KeepLosses", stop=stop)]
    by_epoch = train_cfg["type"].startswith("Epoch")
    checkpoint = dict(type="CheckpointHook", by_epoch=by_epoch, interval=1 if by_epoch else 5)
    cfg = Config(
        dict(
            model=dict(type="NoisyModel"),
            work_dir=str(work_dir),
            train_dataloader=dict(
                dataset=dict(type="NoisyItems"),
                sampler=dict(type=sampler, shuffle=True),
                batch_size=4,
                num_workers=workers,
                persistent_workers=workers > 0,
            ),
            train_cfg=train_cfg,
            optim_wrapper=dict(optimizer=dict(type="Adam", lr=0.01)),
            default_hooks=dict(checkpoint=checkpoint),
            custom_hooks=hooks + [dict(type="mmdet.ExactResumeHook")] * hook,
            experiment_name=f"{work_dir.name}_{resume}",
            resume=resume,
            randomness=dict(seed=seed),
            log_level="ERROR",
            default_scope="mmengine",
        )
    )
    KeepLosses.losses, NoisyItems.loaded = {}, 0
    runner = Runner.from_cfg(cfg)
    try:
        runner.train()
    except KeyboardInterrupt:
        assert stop is not None
    # Left to the garbage collector, each worker would be waited for five seconds.
    runner.train_loop.dataloader._iterator = runner.train_loop.dataloader_iterator = None
    return KeepLosses.losses


@pytest.mark.parametrize(
    ("loop", "sampler", "workers", "seed"),
    [
        (ITERS, "InfiniteSampler", 0, None),
        (ITERS, "InfiniteSampler", 2, 3),
        (EPOCHS, "DefaultSampler", 0, 3),
        (EPOCHS, "DefaultSampler", 2, None),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else str(value),
)
def test_resumed_losses_are_those_of_the_run_before(tmp_path, loop, sampler, workers, seed) -> None:
    whole = run(tmp_path, loop, sampler, workers, seed=seed)
    last = tmp_path / ("epoch_2.pth" if loop is EPOCHS else "iter_10.pth")
    (tmp_path / "last_checkpoint").write_text(str(last))
    resumed = run(tmp_path, loop, sampler, workers, resume=True, seed=seed)
    start = 6 if loop is EPOCHS else 10
    assert resumed == {step: whole[step] for step in range(start, len(whole))}
    assert len(set(whole.values())) == len(whole)


def test_without_the_hook_they_are_not(tmp_path) -> None:
    whole = run(tmp_path, ITERS, hook=False, seed=3)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_10.pth"))
    resumed = run(tmp_path, ITERS, hook=False, resume=True, seed=3)
    assert resumed[10] != whole[10]


def test_an_iteration_loop_over_epochs_of_a_finite_sampler(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("mmengine.runner.loops.time.sleep", lambda seconds: None)
    whole = run(tmp_path, ITERS, "DefaultSampler", seed=3)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_10.pth"))
    resumed = run(tmp_path, ITERS, "DefaultSampler", resume=True, seed=3)
    assert resumed == {step: whole[step] for step in range(10, 20)}


def test_workers_do_not_change_the_losses(tmp_path) -> None:
    alone = run(tmp_path / "a", ITERS, seed=3)
    assert run(tmp_path / "b", ITERS, workers=2, seed=3) == alone
    assert run(tmp_path / "c", ITERS, seed=4) != alone


def test_a_stopped_run_resumes_without_loading_what_it_has_seen(tmp_path) -> None:
    whole = run(tmp_path / "whole", ITERS, seed=3)
    stopped = run(tmp_path / "part", ITERS, stop=17, seed=3)
    assert len(stopped) == 17
    resumed = run(tmp_path / "part", ITERS, resume=True, seed=3)
    assert NoisyItems.loaded == 5 * 4
    assert stopped | resumed == whole
    assert sorted(resumed) == list(range(15, 20))


def test_ranks_and_iterations_differ_and_keys_repeat() -> None:
    def draw(*key: int) -> tuple[float, float, float]:
        seed_everything(*key)
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    keys = [
        (stream, seed, rank, step)
        for stream in (0, 1)
        for seed in (0, 1)
        for rank in (0, 1)
        for step in (0, 1, 2)
    ]
    draws = [draw(*key) for key in keys]
    assert len(set(draws)) == len(keys)
    assert all(len(set(column)) == len(keys) for column in zip(*draws))
    assert [draw(*key) for key in keys] == draws


def test_numbered_batches_pass_over_the_first_ones_once() -> None:
    batches = NumberedBatches(BatchSampler(range(6), 2, drop_last=False), start=1)
    assert list(batches) == [(1, [2, 3]), (2, [4, 5])]
    assert list(batches) == [(3, [0, 1]), (4, [2, 3]), (5, [4, 5])]
    assert len(batches) == 3


def test_it_is_a_hook_of_mmdet() -> None:
    from mmdet.registry import HOOKS as MMDET_HOOKS

    assert MMDET_HOOKS.get("ExactResumeHook") is ExactResumeHook


def test_moments_of_numbers_that_had_no_dimension():
    """A checkpoint of release 0.1.0: what an optimizer kept of them fits the parameters of now."""
    old = [torch.nn.Parameter(torch.ones(shape)) for shape in ((), (2, 3), ())]
    new = [torch.nn.Parameter(torch.ones(shape)) for shape in ((1,), (2, 3), ())]
    before, after = (torch.optim.AdamW(parameters, lr=0.1) for parameters in (old, new))
    sum(p.square().sum() for p in old).backward()
    before.step()
    checkpoint = dict(optimizer=copy.deepcopy(before.state_dict()))
    runner = SimpleNamespace(optim_wrapper=SimpleNamespace(optimizer=after))
    ExactResumeHook().after_load_checkpoint(runner, checkpoint)
    after.load_state_dict(checkpoint["optimizer"])
    for one, other in zip(old, new):
        other.data.copy_(one.data.reshape(other.shape))
        other.grad = torch.ones_like(other)
        one.grad = torch.ones_like(one)
    before.step()
    after.step()
    for one, other in zip(old, new):
        assert torch.equal(one.data.reshape(other.shape), other.data)
        assert after.state[other]["exp_avg"].shape == other.shape
        assert after.state[other]["step"].ndim == 0


def test_a_resumed_run_takes_the_way_through_linear_layers_that_it_took(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv(products.VARIABLE, raising=False)
    ways = []
    for resume, faster in ((False, products.BLAS), (True, products.ONEDNN)):
        products.settle(None)
        monkeypatch.setattr(products, "_faster", lambda faster=faster: faster)
        run(tmp_path, ITERS | dict(max_iters=30 if resume else 20), resume=resume)
        ways.append(products.way(torch.float32))
    products.settle(None)
    assert ways == [products.BLAS, products.BLAS]


def test_no_way_but_those_that_there_are(monkeypatch) -> None:
    with pytest.raises(ValueError, match="'cublas'"):
        products.settle("cublas")

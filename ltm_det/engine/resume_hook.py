"""Randomness as a function of (seed, rank, iteration), so that a resumed run repeats the first."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATA_SAMPLERS, HOOKS
from mmengine.dataset import InfiniteSampler
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader, Dataset

from ltm_det.cpu import products
from ltm_det.engine.resumed_state import check_moments, check_optimizer, check_schedules

STEP, DATA = 0, 1  # two streams of randomness: the training step and the loading of its batch
KEPT = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn")
PRODUCT = "ltm_det_cpu_product"  # of a checkpoint's meta: the way that linear layers took
KEPT += ("multiprocessing_context", "generator", "prefetch_factor", "persistent_workers")


def seed_everything(*key: int) -> None:
    """Seeds python, numpy and torch (every device) from non-negative integers."""
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002  mmdet's transforms draw from the global one
    torch.manual_seed(int(words[2]))


class NumberedBatches:
    """A batch sampler whose batches come as (number, indices).

    Args:
        batches: The batch sampler behind it.
        start: Number of the first batch to come; those before it are passed over.
    """

    def __init__(self, batches: BatchSampler, start: int = 0) -> None:
        self.batches = batches
        self.skip = self.next_number = start

    @property
    def sampler(self) -> Any:
        return self.batches.sampler

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        skip, self.skip = self.skip, 0
        for indices in islice(self.batches, skip, None):
            self.next_number += 1
            yield self.next_number - 1, indices


class SeededFetch:
    """Loads one numbered batch; stands as ``__getitems__`` on a dataset, where torch asks for it.

    The random numbers of a batch's pipelines depend on its number alone, so neither on the worker
    that loads it nor on what that worker did before.
    """

    def __init__(self, dataset: Dataset, seed: int, rank: int) -> None:
        self.dataset, self.seed, self.rank = dataset, seed, rank

    def __call__(self, numbered: tuple[int, Sequence[int]]) -> list:
        number, indices = numbered
        seed_everything(DATA, self.seed, self.rank, number)
        return [self.dataset[index] for index in indices]


class FastForward:
    """An iterator that gives None for its first ``skip`` items without asking for them."""

    def __init__(self, items: Iterator, skip: int) -> None:
        self.items, self.skip = items, skip

    def __next__(self) -> Any:
        if self.skip:
            self.skip -= 1
            return None
        return next(self.items)


def fresh_batches(cfg: dict, dataset: Dataset, seed: int) -> BatchSampler:
    """The batch sampler that mmengine builds from a dataloader's config, with this seed.

    The one it built may have been drawn from, and with the seed of a run that is not resumed.
    """
    sampler = DATA_SAMPLERS.build(cfg["sampler"], default_args=dict(dataset=dataset, seed=seed))
    if cfg.get("batch_sampler") is None:
        return BatchSampler(sampler, cfg["batch_size"], cfg.get("drop_last", False))
    defaults = dict(sampler=sampler, batch_size=cfg["batch_size"])
    return DATA_SAMPLERS.build(cfg["batch_sampler"], default_args=defaults)


@HOOKS.register_module()
class ExactResumeHook(Hook):
    """Makes a run that is killed and resumed log the losses of the run that was not.

    mmengine saves no random state, and on resume starts its samplers and workers from a seed of
    their own. This hook saves none either: it reseeds python, numpy and torch before each step
    from (seed, rank, iteration), and each batch's loading from (seed, rank, batch number), and
    gives the sampler the seed of the checkpoint. Ranks differ in their random numbers, as they
    should.

    Exact under these conditions: the same config, number of processes and library versions; a
    checkpoint of any iteration of an ``IterBasedTrainLoop`` or of an epoch's end in an
    ``EpochBasedTrainLoop`` (mmengine restarts an epoch that was cut); modules and transforms
    that keep no state outside the checkpoint. On a GPU also ``randomness.deterministic=True``,
    since some kernels add in any order. The number of loader workers may differ.

    On a CPU all processes take the first's way through linear layers (:mod:`ltm_det.cpu.products`),
    and a resumed run that of the checkpoint, since each way has last digits of its own.

    With an ``InfiniteSampler`` a resumed run skips to its place at once, where mmengine loads
    all the batches it has trained on a second time.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Gives an optimizer's moments of one number their parameter's shape: release 0.1.0 had
        parameters without a dimension, which are one-dimensional now."""
        if getattr(runner, "_resume", False) and PRODUCT in checkpoint["meta"]:
            products.settle(checkpoint["meta"][PRODUCT])
        optimizer = getattr(getattr(runner, "optim_wrapper", None), "optimizer", None)
        if not isinstance(optimizer, torch.optim.Optimizer) or "optimizer" not in checkpoint:
            return  # a test has the optimizer's config alone
        if getattr(runner, "_resume", False):
            check_optimizer(optimizer, checkpoint["optimizer"])
            check_moments(optimizer, checkpoint["optimizer"].get("state"))
            if runner.param_schedulers is not None and "param_schedulers" in checkpoint:
                check_schedules(runner.param_schedulers, checkpoint["param_schedulers"])
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, state in checkpoint["optimizer"].get("state", {}).items():
            shape = parameters[index].shape if index < len(parameters) else ()
            for name, value in state.items():
                lone = isinstance(value, torch.Tensor) and value.ndim == 0 and name != "step"
                if lone and shape == (1,):
                    state[name] = value.reshape(shape)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if get_device() == "cpu":
            checkpoint["meta"][PRODUCT] = products.way(torch.float32)

    def before_train(self, runner: Runner) -> None:
        if get_device() == "cpu":
            way = [products.way(torch.float32)]
            broadcast_object_list(way)
            products.settle(way[0])
        loop, loader = runner.train_loop, runner.train_loop.dataloader
        loader.dataset.__getitems__ = SeededFetch(loader.dataset, runner.seed, runner.rank)
        batches = fresh_batches(runner.cfg.train_dataloader, loader.dataset, runner.seed)
        infinite = isinstance(batches.sampler, InfiniteSampler)
        start = runner.iter if infinite else 0
        self.batches = NumberedBatches(batches, start)
        loop.dataloader = DataLoader(
            loader.dataset,
            batch_sampler=self.batches,
            **{name: getattr(loader, name) for name in KEPT},
        )
        if isinstance(loop, IterBasedTrainLoop):  # which holds an iterator since it was built
            iterator = type(loop.dataloader_iterator)(loop.dataloader)
            loop.dataloader_iterator = FastForward(iterator, start)

    def before_train_epoch(self, runner: Runner) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.batches.next_number = runner.iter

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        seed_everything(STEP, runner.seed, runner.rank, runner.iter)

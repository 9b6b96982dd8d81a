"""Short runs of a model of one weight, for what hooks do with checkpoints."""

import itertools
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmengine.runner import Runner
from torch.utils.data import Dataset

NUMBERS = itertools.count()


class Numbers(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index + 1)])


class OneWeight(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1000))

    def forward(self, *inputs: torch.Tensor, mode: str = "loss") -> Any:
        if mode == "loss":
            return dict(loss=(torch.stack(inputs) * self.weight).mean())
        return list(inputs)


class GivenScores(BaseMetric):
    """Gives the next of some scores, for the two metrics ``acc`` and ``top``."""

    scores: list[tuple[float, float]] = []

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        acc, top = self.scores.pop(0)
        return dict(acc=acc, top=top)


CLASSES = ((DATASETS, Numbers), (MODELS, OneWeight), (METRICS, GivenScores))


def register() -> None:
    for registry, cls in CLASSES:
        registry.register_module(module=cls, force=True)


def forget() -> None:
    for registry, cls in CLASSES:
        registry.module_dict.pop(cls.__name__)


def runner(work_dir: Path, iterations: int = 8, **options: Any) -> Runner:
    """A run that saves every second iteration.

    Args:
        options: Of the checkpoint hook, but for ``scores``, which are those of evaluations at
            every second iteration, ``resume``, ``load_from`` and ``hooks``.
    """
    scores, resume = options.pop("scores", None), options.pop("resume", False)
    hooks, load_from = options.pop("hooks", []), options.pop("load_from", None)
    loader = dict(dataset=dict(type="Numbers"), batch_size=2, num_workers=0)
    cfg: dict[str, Any] = dict(
        model=dict(type="OneWeight"),
        work_dir=str(work_dir),
        train_dataloader=loader | dict(sampler=dict(type="InfiniteSampler")),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=2),
        optim_wrapper=dict(optimizer=dict(type="Adam", lr=0.01)),
        default_hooks=dict(
            checkpoint=dict(type="mmdet.SafeCheckpointHook", by_epoch=False, interval=2, **options)
        ),
        custom_hooks=hooks,
        experiment_name=f"run_{next(NUMBERS)}",
        resume=resume,
        load_from=load_from,
        randomness=dict(seed=0),
        log_level="ERROR",
        default_scope="mmengine",
    )
    if scores is not None:
        GivenScores.scores = list(scores)
        cfg |= dict(
            val_dataloader=loader | dict(sampler=dict(type="DefaultSampler", shuffle=False)),
            val_cfg=dict(type="ValLoop"),
            val_evaluator=dict(type="GivenScores"),
        )
    return Runner.from_cfg(Config(cfg))

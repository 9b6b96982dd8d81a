"""MergerLossHook in runs of a tiny detector: what it adds, when, and what it leaves alone."""

import math
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODEL_WRAPPERS
from torch import nn

from ltm_det.engine import MergerLossHook
from tests.test_backbones import swin_cases
from tests.test_engine.tiny_detector import build, write_data

LTMP = {"model__backbone__merger__type": "LTMP"}
POINTS = ["stages.0.blocks.1", "stages.1.blocks.1"]
LOSSES = [f"loss_merger_{name}" for name in POINTS]


@HOOKS.register_module(force=True)
class RecordMergers(Hook):
    """Keeps all losses, and those that the mergers themselves hold after a pass."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.losses, self.own = [], []

    def before_run(self, runner) -> None:
        self.mergers = runner.model.backbone.mergers_by_point()
        runner.model.register_forward_hook(self.see)

    def see(self, model, args, output) -> None:
        if model.training:
            self.own.append([self.mergers[name].auxiliary_loss.item() for name in POINTS])

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append({k: v.item() for k, v in outputs.items() if "loss" in k})

    def __deepcopy__(self, memo):
        return self


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(root, tmp_path):
    def run(*hooks, train_cfg__max_iters=3, **options):
        options = {**LTMP, **options, "train_cfg__max_iters": train_cfg__max_iters}
        runner = build(root, tmp_path, [*hooks, dict(type="RecordMergers")], **options)
        before = {k: v.clone() for k, v in runner.model.state_dict().items()}
        runner.train()
        (record,) = (hook for hook in runner.hooks if isinstance(hook, RecordMergers))
        moved = {k: v - before[k] for k, v in runner.model.state_dict().items() if "threshold" in k}
        return SimpleNamespace(runner=runner, moved=moved, own=record.own, losses=record.losses)

    return run


def hook(**options):
    return dict(type="MergerLossHook", **options)


@pytest.mark.parametrize("weight", [10.0, 0.5])
def test_losses_join_the_detector_s(train, weight):
    run = train(hook(weight=weight))
    assert len(run.losses) == len(run.own) == 3
    for losses, own in zip(run.losses, run.own):
        added = {name: value for name, value in losses.items() if "merger" in name}
        assert added == pytest.approx({k: weight * v for k, v in zip(LOSSES, own)}, rel=1e-6)
        assert all(0 < value < weight for value in added.values())
        parts = sum(value for name, value in losses.items() if name != "loss")
        assert losses["loss"] == pytest.approx(parts, rel=1e-5)
    assert len(run.moved) == 4 and all(value.abs() > 0 for value in run.moved.values())


def test_thresholds_are_driven_to_the_budget(train):
    """With so large a weight that the task has no say; they keep too many at first."""
    run = train(hook(weight=1e3), optim_wrapper__optimizer__lr=1e-4)
    for name, value in run.moved.items():
        assert (value < 0) if "merge_threshold" in name else (value >= 0), name
    assert all(last < first for first, last in zip(run.own[0], run.own[-1]))


def test_without_the_hook_there_are_no_such_losses(train):
    run = train()
    assert not any("merger" in name for losses in run.losses for name in losses)


def test_the_same_with_activation_checkpoints(train):
    plain, checkpointed = train(hook()), train(hook(), model__backbone__with_cp=True)
    for one, other in zip(plain.losses, checkpointed.losses, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for name, value in plain.moved.items():
        torch.testing.assert_close(value, checkpointed.moved[name], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("first", [True, False])
def test_next_to_an_averaged_model(train, first):
    """EMAHook copies the detector, hooks and all, whichever comes first."""
    hooks = [hook(), dict(type="EMAHook")]
    run, plain = train(*(hooks if first else hooks[::-1])), train(hook())
    assert run.losses == plain.losses


def test_validation_is_left_alone(train):
    """The averaged model's too; and nothing is left on the detector after the run."""
    options = dict(train_cfg__val_interval=2, validate=True)
    run = train(hook(), dict(type="EMAHook"), **options)
    assert len(run.losses) == len(run.own) == 3
    assert [run.losses[2][name] / 10 for name in LOSSES] == pytest.approx(run.own[2], rel=1e-6)
    assert hooks_of(run.runner.model) == hooks_of(train().runner.model) == 1  # the record's


def hooks_of(model):
    return len(model._forward_hooks)


def detector(backbone):
    """One that answers a pass with the backbone's maps, and in mode 'loss' with a loss."""

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone

        def forward(self, inputs, data_samples=None, mode="tensor"):
            maps = self.backbone(inputs)
            return dict(loss=maps[-1].mean()) if mode == "loss" else maps

    return Detector()


def losses_of(model):
    return [f"loss_merger_{name}" for name in model.backbone.mergers_by_point()]


def started(model, **options):
    own = MergerLossHook(**options)
    own.before_run(SimpleNamespace(model=model))
    return own


@pytest.mark.parametrize("wrapped", [False, True])
def test_losses_are_those_of_training_alone(wrapped):
    model = detector(swin_cases.make(dict(type="LTMP")))
    images = torch.randn(2, 3, 37, 50)
    own = started(Wrapper(model) if wrapped else model)
    added = losses_of(model)
    assert len(added) == 3
    assert list(model(images, mode="loss")) == ["loss", *added]
    assert list(model(images, None, "loss")) == ["loss", *added]
    assert isinstance(model(images), list)
    model.eval()
    assert list(model(images, mode="loss")) == ["loss"]
    own.after_run(None)
    model.train()
    assert list(model(images, mode="loss")) == ["loss"]


@MODEL_WRAPPERS.register_module(force=True)
class Wrapper(nn.Module):
    """As DistributedDataParallel holds the detector."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_losses_are_in_float32_under_amp(low):
    model, images = detector(swin_cases.make(dict(type="LTMP"))), torch.randn(1, 3, 37, 50)
    started(model)
    with torch.autocast("cpu", low):
        losses = model(images, mode="loss")
    assert all(losses[name].dtype == torch.float32 for name in losses_of(model))
    sum(losses.values()).backward()
    for merger in model.backbone.mergers_by_point().values():
        assert merger.merge_threshold.grad.isfinite() and merger.merge_threshold.grad != 0


def test_mergers_without_a_loss():
    model = detector(swin_cases.make(dict(type="ToMe")))
    own = started(model)
    with pytest.raises(ValueError, match=r"mergers \['ToMe'\] have no loss.*custom_hooks.*LTMP"):
        model(torch.randn(1, 3, 32, 32), mode="loss")
    own.after_run(None)


@pytest.mark.parametrize("kind", ["dense", "mmdet"])
def test_a_backbone_without_mergers(kind):
    backbone = swin_cases.make(None)
    if kind == "mmdet":
        backbone = swin_cases.reference_of(backbone)
    name = type(backbone).__name__
    with pytest.raises(ValueError, match=f"{name} has no mergers: take it out of custom_hooks"):
        started(detector(backbone))


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf])
def test_bad_weight(weight):
    with pytest.raises(ValueError, match=f"weight must be finite and above 0, got {weight}"):
        MergerLossHook(weight=weight)


def test_it_is_registered():
    assert MMDET_HOOKS.get("MergerLossHook") is MergerLossHook
    assert MergerLossHook().weight == 10.0

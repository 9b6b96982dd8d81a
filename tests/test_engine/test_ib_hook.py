"""IBHook in runs of a tiny detector: what it logs and adds to the loss, what it leaves alone."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ltm_det  # noqa: F401  first: a spawned rank imports this file, and needs mmdet's models

# isort: split
from mmdet.models.backbones import SwinTransformer
from mmdet.registry import HOOKS as MMDET_HOOKS
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.data import BatchSampler, DataLoader

from ltm_det.backbones import MergeWatch
from ltm_det.engine import IBHook
from ltm_det.engine import ib_hook as module
from ltm_det.engine.bottleneck import Bottleneck
from ltm_det.engine.instances import pool_boxes
from ltm_det.engine.resume_hook import NumberedBatches
from ltm_det.merging import BottleneckStep
from tests.test_backbones import swin_cases
from tests.test_engine.tiny_detector import build, write_data

POINTS = ["stages.0.blocks.1", "stages.1.blocks.1"]
LOSSES = [f"loss_ib_{name}" for name in POINTS]
TOLD = ["information_x", "information_y", "ib", "bound", "input_term", "label_entropy"]
TOLD += ["softness", "samples"]
BETA = "model__backbone__merger__beta"
CONFIGS = Path(__file__).parents[2] / "configs"
GRADIENT = {
    f"model__backbone__merger__{option}": value
    for option, value in dict(update="gradient", clusters=3, classes=3).items()
}


@HOOKS.register_module(force=True)
class Record(Hook):
    """Keeps the losses of each iteration, and what the bottleneck had before it."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        self.losses: dict[int, dict[str, float]] = {}
        self.bottlenecks: dict[int, tuple[dict, dict]] = {}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        for hook in runner.hooks:
            if isinstance(hook, IBHook) and hook.bottleneck is not None:
                kept = hook.bottleneck
                self.bottlenecks[runner.iter] = dict(kept.centroids), dict(kept.q)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        self.losses[runner.iter] = {k: v.item() for k, v in outputs.items() if "loss" in k}


def hook(**options: Any) -> dict:
    return dict(type="IBHook", num_clusters=3, interval=2) | options


def hook_of(runner: Runner) -> IBHook:
    (found,) = (hook for hook in runner.hooks if isinstance(hook, IBHook))
    return found


class Trained:
    """A run that is over: its losses, its scalars, its parameters, and what was called on the way.

    Attributes:
        losses: By iteration from 0 on, by name.
        scalars: Of the bottleneck, in order: (step, {name: value}).
        added: Of each batch, the arguments of Bottleneck.add.
        refreshed: At which iteration (from 0 on) Bottleneck.refresh was called.
        given: Name of the mask module's point and arguments of set_bottleneck.
    """

    def __init__(self, root: Path, work_dir: Path, *hooks: dict, before=None, **options) -> None:
        self.added, self.refreshed, self.given = [], [], []
        self.work_dir = work_dir
        runner = build(root, work_dir, [*hooks, dict(type="Record")], **options)
        if before is not None:
            before(runner)
        with pytest.MonkeyPatch.context() as patch:
            self.spy(patch, Bottleneck, "add", lambda own, *args: self.added.append(args))
            self.spy(patch, Bottleneck, "refresh", lambda own: self.refreshed.append(runner.iter))
            self.spy(
                patch,
                BottleneckStep,
                "set_bottleneck",
                lambda own, *args: self.given.append((own, args)),
            )
            runner.train()
        self.runner, self.model = runner, runner.model
        (record,) = (h for h in runner.hooks if isinstance(h, Record))
        self.losses, self.bottlenecks = record.losses, record.bottlenecks
        log = Path(runner.log_dir) / "vis_data" / "scalars.json"
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        self.scalars = [
            (row.pop("step"), row) for row in rows if any(k.startswith("ib") for k in row)
        ]

    @staticmethod
    def spy(patch: pytest.MonkeyPatch, cls: type, name: str, told: Callable) -> None:
        plain = getattr(cls, name)

        def spied(own, *args):
            told(own, *args)
            return plain(own, *args)

        patch.setattr(cls, name, spied)

    @property
    def ib_losses(self) -> list[int]:
        """Iterations whose losses had the bound's, all points together."""
        found = [i for i, losses in self.losses.items() if LOSSES[0] in losses]
        for i, losses in self.losses.items():
            names = [name for name in losses if "ib" in name]
            assert names == (LOSSES if i in found else [])
        return found


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(root, tmp_path) -> Callable[..., Trained]:
    """Runs and forgets: ``train(*hooks, **options)``."""

    def run(*hooks: dict, work_dir: Path = tmp_path, **options) -> Trained:
        return Trained(root, work_dir, *hooks, **options)

    return run


@pytest.fixture(scope="module")
def measured(root, tmp_path_factory) -> Trained:
    """Six iterations with weight=0."""
    return Trained(root, tmp_path_factory.mktemp("measured"), hook(background=2))


@pytest.fixture(scope="module")
def weighed(root, tmp_path_factory) -> Trained:
    """Six iterations with weight=0.5, whose checkpoint of the third has samples left over."""
    hooks = [hook(weight=0.5, begin=0.0, background=1), dict(type="ExactResumeHook")]
    options = dict(default_hooks__checkpoint__interval=3)
    return Trained(root, tmp_path_factory.mktemp("weighed"), *hooks, **options)


def test_what_is_logged(measured):
    """A row for each point at each refresh, in iterations from 1 on."""
    assert measured.refreshed == [1, 3, 5]
    assert [step for step, _ in measured.scalars] == [2, 2, 4, 4, 6, 6]
    for i, (_, row) in enumerate(measured.scalars):
        name = POINTS[i % 2]
        assert list(row) == [f"ib/{name}/{key}" for key in TOLD]
        values = {key: row[f"ib/{name}/{key}"] for key in TOLD}
        assert all(math.isfinite(value) for value in values.values())
        assert values["samples"] == 2 * 2 * (2 + 2)  # batches, images, instances, background
        assert values["ib"] == pytest.approx(values["information_x"] - values["information_y"])
        assert 0 < values["label_entropy"] <= math.log(3) + 1e-9
        assert 0 <= values["softness"] <= 1


def test_what_is_logged_is_the_bottleneck_of_the_samples(measured):
    """Those since the last refresh."""
    again = Bottleneck(POINTS, 3, 3, 10.0, 1000)
    for i in range(3):
        for batch in measured.added[2 * i : 2 * i + 2]:
            again.add(*batch)
        for name, summary in again.refresh().items():
            (row,) = (r for step, r in measured.scalars if step == 2 * i + 2 and name in str(r))
            assert {key: row[f"ib/{name}/{key}"] for key in TOLD} == pytest.approx(summary)


def test_a_line_in_the_log(train):
    lines = []

    def listen(runner: Runner) -> None:
        runner.logger.info = lines.append

    train(hook(), before=listen, train_cfg__max_iters=2)
    own = [line for line in lines if "IBHook" in line]
    assert [line.split(": ")[1] for line in own] == [f"ib/{name}" for name in POINTS]
    for line in own:
        for word in ("ib ", "information_x ", "information_y ", "bound ", "12 samples", "nats"):
            assert word in line


def test_tensorboard_gets_it_too(train, tmp_path):
    backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
    visualizer = dict(type="Visualizer", vis_backends=backends)
    run = train(hook(), train_cfg__max_iters=2, visualizer=visualizer)
    events = EventAccumulator(str(Path(run.runner.log_dir) / "vis_data"))
    events.Reload()
    for step, row in run.scalars:
        for name, value in row.items():
            (event,) = events.Scalars(name)
            assert event.step == step and event.value == pytest.approx(value, rel=1e-5)


def test_samples_are_the_instances_and_background_of_the_batch(train):
    """Means of the merged map over the boxes, as a watch of our own sees them; pixels; labels."""
    seen = []

    def watch_images(runner: Runner) -> None:
        def keep(model: nn.Module, args: tuple, kwargs: dict) -> None:
            seen.append((kwargs["inputs"], [s.gt_instances for s in kwargs["data_samples"]]))

        watch = MergeWatch(runner.model.backbone)
        watch.__enter__()
        runner.model.register_forward_pre_hook(keep, with_kwargs=True)
        runner.model.backbone.register_forward_hook(
            lambda *_: seen.append({n: (p.merged_map(), p.stride) for n, p in watch.seen.items()})
        )

    run = train(hook(background=0, crop=3), before=watch_images, train_cfg__max_iters=1)
    ((labels, inputs, features),), ((images, instances), maps) = run.added, seen
    assert labels.tolist() == torch.cat([i.labels for i in instances]).tolist()
    rois = [
        torch.cat([torch.full((len(i.bboxes), 1), float(n)), i.bboxes], 1)
        for n, i in enumerate(instances)
    ]
    rois = torch.cat(rois)
    assert sorted(labels.tolist()) == [0, 0, 1, 1]
    assert torch.equal(inputs, pool_boxes(images, rois, 1, 3)) and inputs.shape == (4, 27)
    assert list(features) == POINTS
    for (name, (map_, stride)), channels, expected in zip(maps.items(), (8, 16), (4, 8)):
        assert stride == expected and features[name].shape == (4, channels)
        assert torch.equal(features[name], pool_boxes(map_, rois, stride))


def test_background_has_a_class_of_its_own(measured):
    for labels, inputs, features in measured.added:
        assert sorted(labels.tolist()) == [0, 0, 1, 1, 2, 2, 2, 2]
        assert inputs.shape == (8, 3 * 8 * 8)
        assert not any(x.requires_grad and x.grad_fn is None for x in features.values())
    pixels = torch.cat([inputs[labels == 2] for labels, inputs, _ in measured.added])
    assert len(pixels) == len(pixels.unique(dim=0)) == 24  # drawn anew for each batch


def slow_bound(features: Tensor, labels: Tensor, centroids: Tensor, q: Tensor, beta: float):
    total = 0.0
    for feature, label in zip(features.detach(), labels.tolist()):
        far = (feature / feature.norm() - centroids).square().sum(1)
        phi = (-beta * far).exp() / (-beta * far).exp().sum()
        total -= (phi * q[label].log()).sum().item() / len(labels)
    return total


def test_the_loss_is_the_weighted_bound(weighed):
    """With centroids and Q of the last refresh, from the first refresh on; in the total."""
    assert weighed.refreshed == [1, 3, 5] and weighed.ib_losses == [2, 3, 4, 5]
    for i, losses in weighed.losses.items():
        parts = [value for name, value in losses.items() if name != "loss"]
        assert losses["loss"] == pytest.approx(sum(parts), rel=1e-5)
        centroids, q = weighed.bottlenecks[i]
        labels, _, features = weighed.added[i]
        for name in POINTS if i in weighed.ib_losses else []:
            expected = slow_bound(features[name], labels, centroids[name], q[name], 10.0)
            assert losses[f"loss_ib_{name}"] == pytest.approx(0.5 * expected, rel=1e-4)
    assert torch.equal(weighed.bottlenecks[2][0][POINTS[0]], weighed.bottlenecks[3][0][POINTS[0]])
    assert not torch.equal(
        weighed.bottlenecks[3][1][POINTS[0]], weighed.bottlenecks[4][1][POINTS[0]]
    )


def test_the_loss_is_logged(weighed):
    log = (Path(weighed.runner.log_dir) / "vis_data" / "scalars.json").read_text().splitlines()
    rows = {row["iter"] - 1: row for row in map(json.loads, log) if "loss" in row}
    for i, losses in weighed.losses.items():
        assert {k: v for k, v in rows[i].items() if "loss" in k} == pytest.approx(losses)


@pytest.mark.parametrize("begin, first", [(0.6, 4), (0.2, 2)])
def test_the_loss_begins_with_its_share_of_the_iterations(train, begin, first):
    run = train(hook(weight=0.1, begin=begin))
    assert run.ib_losses == list(range(first, 6))


def test_without_weight_nothing_of_the_training_changes(measured, train):
    """Neither losses nor parameters, to the last bit."""
    assert measured.ib_losses == []
    plain = train()
    assert plain.losses == measured.losses and plain.scalars == []
    weights = measured.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in plain.model.state_dict().items())


def test_with_weight_training_changes(weighed, train):
    plain = train(dict(type="ExactResumeHook"))
    others = [{k: v for k, v in weighed.losses[i].items() if "ib" not in k} for i in range(6)]
    for i in (0, 1):
        assert others[i] == plain.losses[i]
    for i in (3, 4, 5):  # after the first step with the bound
        del others[i]["loss"]
        assert others[i] != {k: v for k, v in plain.losses[i].items() if k != "loss"}


def prepared(root: Path, work_dir: Path, hooks: list[dict], **options) -> tuple[Runner, dict]:
    """A runner that could start to train, its bottleneck refreshed from one batch, and a batch."""
    runner = build(root, work_dir, hooks, **options)
    hook_of(runner).before_run(runner)
    hook_of(runner).before_train(runner)
    runner.model.train()
    batches = iter(runner.train_dataloader)
    first, batch = (runner.model.data_preprocessor(next(batches), True) for _ in range(2))
    with torch.no_grad():
        runner.model(**first, mode="loss")
    hook_of(runner)._refresh(1)
    return runner, batch


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor | None]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return dict(zip(named, found))


@pytest.mark.parametrize("with_cp", [False, True])
def test_the_bound_trains_what_comes_before_its_point(root, tmp_path, with_cp):
    options = dict(model__backbone__with_cp=with_cp, model__backbone__drop_path_rate=0.0)
    options["model__backbone__merger__scope"] = "block"
    runner, batch = prepared(root, tmp_path, [hook(weight=2.0, begin=0.0)], **options)
    losses = runner.model(**batch, mode="loss")
    ours = [name for name in losses if "ib" in name]
    assert ours == [f"{name}.ffn" for name in LOSSES]
    shallow, deep = (gradients(losses[name], runner.model) for name in ours)
    for name, gradient in shallow.items():
        before = ("patch_embed", "stages.0.blocks.0.", "stages.0.blocks.1.attn")
        reached = "bias" not in name and any(part in name for part in before)
        if reached and "bias_table" not in name:
            assert gradient.abs().max() > 0, name
        if "stages.1" in name or "neck" in name or "head" in name or "blocks.1.ffn" in name:
            assert gradient is None, name
    assert deep["backbone.stages.0.downsample.reduction.weight"].abs().max() > 0
    assert deep["backbone.stages.1.blocks.1.merger.step"].abs().max() > 0
    assert deep["backbone.stages.2.blocks.0.ffn.layers.1.weight"] is None
    total, _ = runner.model.parse_losses(losses)
    rest, _ = runner.model.parse_losses({k: v for k, v in losses.items() if k not in ours})
    together, task = gradients(total, runner.model), gradients(rest, runner.model)
    name = "backbone.patch_embed.projection.weight"
    assert (together[name] - task[name] - shallow[name] - deep[name]).abs().max() < 1e-5
    assert (together[name] - task[name]).abs().max() > 1e-5


def test_under_amp_the_bound_is_in_float32(root, tmp_path):
    options = dict(model__backbone__drop_path_rate=0.0)
    runner, batch = prepared(root, tmp_path, [hook(weight=1.0, begin=0.0)], **options)
    model, features = runner.model, []
    plain = hook_of(runner).bottleneck.loss

    def loss(name: str, x: Tensor, labels: Tensor) -> Tensor:
        features.append(x)
        return plain(name, x, labels)

    hook_of(runner).bottleneck.loss = loss
    model.rpn_head.loss_and_predict = lambda *args, **kwargs: ({}, [])
    model.roi_head.loss = lambda *args, **kwargs: {}  # torchvision has them in float32 alone
    exact = {name: value.item() for name, value in model(**batch, mode="loss").items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(**batch, mode="loss")
    assert list(losses) == LOSSES
    for name, value in losses.items():
        assert value.dtype == torch.float32 and value.isfinite()
        assert value.item() == pytest.approx(exact[name], rel=0.1)
        assert value.item() != exact[name]  # half precision was on
    assert all(x.dtype == torch.float32 for x in features)
    sum(losses.values()).backward()
    gradient = model.backbone.patch_embed.projection.weight.grad
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize(
    "train_cfg, sampler, refreshed",
    [
        (dict(type="IterBasedTrainLoop", max_iters=9), "InfiniteSampler", [3, 7]),
        (dict(type="EpochBasedTrainLoop", max_epochs=2), "DefaultSampler", [3, 7]),
    ],
    ids=["iterations", "epochs"],
)
def test_by_default_a_refresh_follows_each_pass_of_the_data(train, train_cfg, sampler, refreshed):
    run = train(
        hook(interval=None, weight=0.1, begin=0.5),
        dict(type="ExactResumeHook"),
        train_cfg=dict(_delete_=True, **train_cfg),
        train_dataloader__sampler__type=sampler,
        train_dataloader__batch_sampler=dict(type="mmdet.AspectRatioBatchSampler"),
        default_hooks__checkpoint__by_epoch=train_cfg["type"].startswith("Epoch"),
    )
    assert run.refreshed == refreshed
    assert run.ib_losses == list(range(5 if len(run.losses) == 9 else 4, len(run.losses)))


@pytest.mark.parametrize("ranks, expected", [(1, (12, 12)), (4, (3, 12)), (100, (1, 12))])
def test_iterations_of_a_pass(monkeypatch, ranks, expected):
    """An infinite sampler is as long as the data on every rank, others are of the rank's part."""
    monkeypatch.setattr(module, "get_world_size", lambda: ranks)
    data = list(range(24))
    for cls, iterations in zip((InfiniteSampler, DefaultSampler), expected):
        plain = DataLoader(data, sampler=cls(data), batch_size=2)
        batches = NumberedBatches(BatchSampler(cls(data), 2, drop_last=False))
        for loader in (plain, DataLoader(data, batch_sampler=batches)):
            runner = SimpleNamespace(train_dataloader=loader)
            assert module.iterations_of_a_pass(runner) == iterations


def test_gradient_accumulation(weighed, train):
    hooks = [hook(weight=0.5, begin=0.0, background=1), dict(type="ExactResumeHook")]
    run = train(*hooks, optim_wrapper__accumulative_counts=2)
    assert run.refreshed == weighed.refreshed and run.ib_losses == weighed.ib_losses
    assert run.losses[0] == weighed.losses[0] and run.losses[1] != weighed.losses[1]
    assert all(math.isfinite(losses["loss"]) for losses in run.losses.values())
    assert run.scalars != weighed.scalars


def resume(run: Trained, tmp_path: Path, iteration: int) -> dict:
    """Options that go on from an iteration of a run, in a folder of its own."""
    (tmp_path / "last_checkpoint").write_text(str(run.work_dir / f"iter_{iteration}.pth"))
    return dict(resume=True)


def test_a_resumed_run_repeats_the_one_that_was_not(weighed, train, tmp_path):
    hooks = [hook(weight=0.5, begin=0.0, background=1), dict(type="ExactResumeHook")]
    again = train(*hooks, **resume(weighed, tmp_path, 3))
    assert again.losses == {i: weighed.losses[i] for i in (3, 4, 5)}
    assert again.scalars == weighed.scalars[2:] and again.ib_losses == [3, 4, 5]


def test_a_run_that_starts_from_a_checkpoint_measures_anew(weighed, train):
    run = train(hook(weight=0.5, begin=0.0), load_from=str(weighed.work_dir / "iter_3.pth"))
    assert run.ib_losses == [2, 3, 4, 5] and run.scalars[0][1] != weighed.scalars[2][1]


def test_resuming_a_run_that_had_no_hook(weighed, train, tmp_path):
    state = torch.load(weighed.work_dir / "iter_3.pth", weights_only=True)
    del state["ib_hook"]
    torch.save(state, tmp_path / "iter_3.pth")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_3.pth"))
    run = train(hook(weight=0.5, begin=0.0), resume=True)
    assert run.refreshed == [3, 5] and run.ib_losses == [4, 5]


@pytest.mark.parametrize("options", [dict(num_clusters=4), dict(points=POINTS[:1])])
def test_resuming_with_other_settings(weighed, train, tmp_path, options):
    with pytest.raises(ValueError, match="resume with the settings of the run"):
        train(hook(weight=0.5, begin=0.0, **options), **resume(weighed, tmp_path, 3))


def test_too_few_samples(train):
    """They wait for the next refresh, and there is no bound before."""
    lines = []

    def listen(runner: Runner) -> None:
        runner.logger.warning = lines.append

    run = train(
        hook(num_clusters=20, weight=1.0, begin=0.0, background=0, interval=2), before=listen
    )
    assert run.refreshed == [1, 3, 5] and run.ib_losses == []
    assert [(step, list(row.values())[-1]) for step, row in run.scalars] == [(6, 24), (6, 24)]
    told = [line for line in lines if "IBHook" in line]
    assert len(told) == 2 and "16 samples on this rank are too few for 20 clusters" in told[1]


def test_validation_is_measured(train, monkeypatch):
    """After each; the boxes are those of the file, scaled by 1.5 as the images are."""
    batches, seeds, plain = [], [], module.instance_boxes

    def boxes(*args):
        seeds.append(args[3].initial_seed())
        batches.append(plain(*args))
        return batches[-1]

    monkeypatch.setattr(module, "instance_boxes", boxes)
    options = dict(train_cfg__max_iters=4, train_cfg__val_interval=2, validate=True)
    run = train(hook(source="val", background=3, interval=None, capacity=9), **options)
    assert run.refreshed == [2, 4] and run.ib_losses == []
    assert [step for step, _ in run.scalars] == [2, 2, 4, 4]  # as of the validation's own metrics
    for i, (_, row) in enumerate(run.scalars):
        assert list(row) == [f"ib_val/{POINTS[i % 2]}/{key}" for key in TOLD]
        assert list(row.values())[-1] == 9
    annotations = json.loads(
        (Path(run.runner.cfg.val_dataloader.dataset.data_root) / "val.json").read_text()
    )
    expected = [[1.5 * v for v in a["bbox"]] for a in annotations["annotations"]]
    assert len(batches) == len(run.added) == 4  # two of each validation
    for first in (0, 2):
        rois = torch.cat([r[labels < 2] for r, labels in batches[first : first + 2]])
        found = torch.cat([rois[:, 1:3], rois[:, 3:] - rois[:, 1:3]], 1)
        assert torch.allclose(found, torch.tensor(expected))
    assert len(set(seeds)) == 4


def test_validation_beyond_what_is_kept_still_draws_anew(train, monkeypatch):
    seeds, plain = [], module.instance_boxes
    monkeypatch.setattr(
        module, "instance_boxes", lambda *args: seeds.append(args[3].initial_seed()) or plain(*args)
    )
    options = dict(train_cfg__max_iters=1, validate=True, val_dataloader__batch_size=1)
    train(hook(source="val", capacity=3), **options)
    assert len(set(seeds)) == len(seeds) == 4


def test_validation_alone_changes_no_parameter(root, tmp_path):
    """Q of validation data is not for mask modules."""
    weights = []
    for hooks in ([hook(source="val")], []):
        runner = build(root, tmp_path, hooks, validate=True, **GRADIENT)
        assert "coco/bbox_mAP" in runner.val()
        weights.append(runner.model.state_dict())
        if hooks:
            assert hook_of(runner).bottleneck.ready and hooks_of(runner.model) == 0
    assert list(weights[0]) == list(weights[1])
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_one_hook_of_each_source(train, tmp_path):
    """Each keeps its own state in the checkpoint."""
    hooks = [hook(), hook(source="val", num_clusters=4)]
    options = dict(train_cfg__max_iters=3, train_cfg__val_interval=2, validate=True)
    run = train(*hooks, default_hooks__checkpoint__interval=3, **options)
    assert {row.split("/")[0] for _, scalars in run.scalars for row in scalars} == {"ib", "ib_val"}
    state = torch.load(tmp_path / "iter_3.pth", weights_only=True)
    sizes = {key: len(state[key]["centroids"][POINTS[0]]) for key in state if "hook" in key}
    assert sorted(sizes.values()) == [3, 4]
    options |= dict(train_cfg__max_iters=6, train_cfg__val_interval=100)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_3.pth"))
    more = train(*hooks, default_hooks__checkpoint__interval=1, resume=True, **options)
    assert more.refreshed[0] == 3
    later = torch.load(tmp_path / "iter_4.pth", weights_only=True)  # before any validation
    assert {key: len(later[key]["centroids"][POINTS[0]]) for key in sizes} == sizes


def test_mask_modules_are_given_the_bottleneck_once(train, tmp_path):
    """At the first refresh, and not again after resuming."""
    options = dict(optim_wrapper__optimizer__lr=0.0, default_hooks__checkpoint__interval=3)
    run = train(hook(), dict(type="ExactResumeHook"), **GRADIENT, **options)
    mergers = run.model.backbone.mergers_by_point()
    assert [step for step, _ in run.given] == [mergers[name].step for name in POINTS]
    centroids, q = run.bottlenecks[2]
    for name, (step, _) in zip(POINTS, run.given):
        assert torch.equal(step.centroids, centroids[name])
        assert (step.log_q.exp() - q[name]).abs().max() < 1e-6
        assert (step.log_prior.exp() - 1 / 3).abs().max() < 1e-6  # two of each class in an image
        assert step.log_q.requires_grad and step.rate == 0
    assert run.refreshed == [1, 3, 5]
    more = dict(options, train_cfg__max_iters=8)
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_3.pth"))
    again = train(hook(), dict(type="ExactResumeHook"), resume=True, **GRADIENT, **more)
    assert again.refreshed == [3, 5, 7] and again.given == []


def test_watched_points_alone_are_given(train):
    run = train(hook(points=POINTS[1:]), train_cfg__max_iters=2, **GRADIENT)
    (given,) = run.given
    assert given[0] is run.model.backbone.mergers_by_point()[POINTS[1]].step


@pytest.mark.parametrize(
    "options, told", [(dict(clusters=4), "clusters=4"), (dict(classes=11), "classes=11")]
)
def test_mask_modules_of_other_sizes(train, options, told):
    sizes = {f"model__backbone__merger__{k}": v for k, v in options.items()}
    with pytest.raises(ValueError, match=f"{told}.*3 clusters, 3 classes.*set the merger's"):
        train(hook(), train_cfg__max_iters=2, **{**GRADIENT, **sizes})


def test_mask_modules_of_another_temperature(train):
    with pytest.raises(ValueError, match="beta=10.0, but Q was counted with beta=4.0: set the mer"):
        train(hook(beta=4.0), train_cfg__max_iters=2, **GRADIENT)
    run = train(hook(beta=4.0), train_cfg__max_iters=2, **{**GRADIENT, BETA: 4.0})
    assert len(run.given) == 2


@pytest.mark.parametrize("first", [True, False])
def test_next_to_an_averaged_model(train, measured, first):
    """EMAHook copies the detector, hooks and all, whichever comes first."""
    hooks = [hook(background=2), dict(type="EMAHook")]
    run = train(*(hooks if first else hooks[::-1]))
    assert run.losses == measured.losses and run.scalars == measured.scalars


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_is_left_behind(measured, weighed, train):
    expected = hooks_of(train(train_cfg__max_iters=1).model)
    for run in (measured, weighed):
        assert hooks_of(run.model) == expected
        assert hook_of(run.runner).watch.seen == {}
        assert hook_of(run.runner).bottleneck.inputs is None


def test_a_dense_backbone_is_measured_where_points_are_named(train):
    names = ["stages.0.blocks.1", "stages.1.blocks.0.ffn"]
    run = train(hook(points=names, weight=1.0, begin=0.0), model__backbone__merger=None)
    assert [list(row)[0].split("/")[1] for _, row in run.scalars] == names * 3
    assert f"loss_ib_{names[1]}" in run.losses[5]


def start(backbone: nn.Module, data: Sequence[str] = ("train",), **options: Any) -> None:
    """What a run does first."""
    model = nn.Module()
    model.backbone = backbone
    cfg = {f"{split}_dataloader": {} for split in data}
    IBHook(**options).before_run(SimpleNamespace(model=model, cfg=cfg))


def test_a_dense_backbone_without_points():
    with pytest.raises(ValueError, match="merges nowhere: name the points"):
        start(swin_cases.make(None))
    start(swin_cases.make(None), points=["stages.0.blocks.0"])


@pytest.mark.parametrize("points", [["stages.0.blocks.0"], ["stages.0.blocks.1.ffn"], ["x"]])
def test_points_that_are_not_there(points):
    with pytest.raises(ValueError, match=f"no merge point '{points[0]}': choose of.*{POINTS[1]}"):
        start(swin_cases.make(dict(type="Pool")), points=points)


def test_a_backbone_of_mmdet():
    with pytest.raises(TypeError, match="SwinTransformer has no merge points: use LTMSwin"):
        start(SwinTransformer(**swin_cases.MINI), points=POINTS)


@pytest.mark.parametrize("source, data", [("val", ["train"]), ("train", ["val"])])
def test_no_data_for_the_source(source, data):
    with pytest.raises(ValueError, match=f"source='{source}', but the config has no data for it"):
        start(swin_cases.make(dict(type="Pool")), data, source=source)


def test_data_without_annotations(train, root, tmp_path):
    pipeline = build(root, tmp_path, validate=True).cfg.val_dataloader.dataset.pipeline
    with pytest.raises(ValueError, match="val/0.png.*LoadAnnotations"):
        train(
            hook(source="val"),
            validate=True,
            train_cfg__max_iters=1,
            val_dataloader__dataset__pipeline=[pipeline[0], pipeline[1], pipeline[3]],
        )


@pytest.mark.parametrize(
    "options, told",
    [
        (dict(source="test"), r"unknown source 'test': choose one of \['train', 'val'\]"),
        (dict(weight=-0.1), "weight must be finite and from 0 on, got -0.1"),
        (dict(weight=math.nan), "weight must be finite"),
        (dict(weight=math.inf), "weight must be finite"),
        (dict(weight=0.1, source="val"), "weight=0.1 needs source='train'"),
        (dict(begin=1.0), r"begin=1.0 must be a share of the iterations, in \[0, 1\)"),
        (dict(begin=-0.1), "begin=-0.1"),
        (dict(begin=math.nan), "begin=nan"),
        (dict(beta=0.0), "beta must be finite and above 0, got 0.0"),
        (dict(beta=math.inf), "beta must be finite"),
        (dict(interval=0), "interval must be a whole number from 1 on, got 0"),
        (dict(interval=2.5), "interval must be a whole number from 1 on, got 2.5"),
        (dict(num_clusters=1), "num_clusters must be a whole number from 2 on, got 1"),
        (dict(num_clusters="8"), "num_clusters must be .* got '8'"),
        (dict(background=-1), "background must be a whole number from 0 on, got -1"),
        (dict(crop=0), "crop must be a whole number from 1 on, got 0"),
        (dict(num_clusters=8, capacity=7), "capacity must be a whole number from 8 on, got 7"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value)),
)
def test_bad_settings(options, told):
    with pytest.raises(ValueError, match=told):
        IBHook(**options)


def test_settings_at_their_limits():
    IBHook(begin=0.0, weight=0, interval=1, num_clusters=2, background=0, crop=1, capacity=2)
    assert MMDET_HOOKS.get("IBHook") is IBHook


def test_the_demo_config():
    """Its hook, next to the config without, refreshes ten times and begins between two of them."""
    cfg, base = (Config.fromfile(CONFIGS / f"demo_ltm_swin{n}_maskrcnn.py") for n in ("_ib", ""))
    (options,) = cfg.custom_hooks
    built = MMDET_HOOKS.build(dict(options))
    assert isinstance(built, IBHook) and built.weight > 0
    assert cfg.train_cfg.max_iters == 10 * built.interval
    assert built.begin * cfg.train_cfg.max_iters >= built.interval  # Q is there by then
    assert {key: value for key, value in cfg.items() if key != "custom_hooks"} == dict(base.items())


def run_rank(rank: int, root: Path, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2
    )
    wrapper = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", str(rank))
        refresh, told, added = Bottleneck.refresh, [], []

        def spied(own: Bottleneck) -> dict:
            added.append((own.labels, own.inputs, dict(own.features)))
            told.append((refresh(own), dict(own.centroids), dict(own.q)))
            return told[-1][0]

        patch.setattr(Bottleneck, "refresh", spied)
        runner = build(
            root,
            folder / str(rank),
            [hook(weight=0.5, begin=0.0), dict(type="ExactResumeHook"), dict(type="Record")],
            launcher="pytorch",
            model_wrapper_cfg=wrapper,
            train_cfg__max_iters=4,
            **GRADIENT,
        )
        runner.train()
    (record,) = (h for h in runner.hooks if isinstance(h, Record))
    weights = runner.model.module.state_dict()
    state = dict(told=told, added=added, losses=record.losses, weights=weights)
    torch.save(state, folder / f"{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks(root, tmp_path):
    """Samples of their own, one bottleneck, one model."""
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=run_rank, args=(rank, root, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
        process.kill()
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert first["told"][0][0][POINTS[0]]["samples"] == 2 * 2 * 2 * 3
    for one, other in zip(first["told"], second["told"], strict=True):
        assert one[0] == other[0]
        for name in POINTS:
            assert torch.equal(one[1][name], other[1][name])
            assert torch.equal(one[2][name], other[2][name])
    for i, told in enumerate(first["told"]):
        alone = Bottleneck(POINTS, 3, 3, 10.0, 1000)
        for rank in (first, second):
            alone.add(*rank["added"][i])
        for name, summary in alone.refresh().items():
            assert told[0][name] == pytest.approx(summary, abs=1e-6)
    assert not torch.equal(first["added"][0][1], second["added"][0][1])
    for key, value in first["weights"].items():
        assert torch.equal(value, second["weights"][key]), key
    for losses in (first["losses"], second["losses"]):
        assert [LOSSES[0] in losses[i] for i in range(4)] == [False, False, True, True]
    assert first["losses"][3] != second["losses"][3]

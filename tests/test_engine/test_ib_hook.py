"""IBHook in runs of a tiny detector: what it logs, gathers, and leaves alone."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import Runner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from ltm_det.backbones import MergeWatch
from ltm_det.engine import ib_hook as module
from ltm_det.engine.bottleneck import Bottleneck
from ltm_det.engine.instances import pool_boxes
from ltm_det.engine.resume_hook import NumberedBatches
from tests.test_engine.ib_runs import POINTS, TOLD, Trained, hook, hook_of, hooks_of


@pytest.fixture(scope="module")
def measured(root, tmp_path_factory) -> Trained:
    """Six iterations with weight=0."""
    return Trained(root, tmp_path_factory.mktemp("measured"), hook(background=2))


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


def test_without_weight_nothing_of_the_training_changes(measured, train):
    """Neither losses nor parameters, to the last bit."""
    assert measured.ib_losses == []
    plain = train()
    assert plain.losses == measured.losses and plain.scalars == []
    weights = measured.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in plain.model.state_dict().items())


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


@pytest.mark.parametrize("first", [True, False])
def test_next_to_an_averaged_model(train, measured, first):
    """EMAHook copies the detector, hooks and all, whichever comes first."""
    hooks = [hook(background=2), dict(type="EMAHook")]
    run = train(*(hooks if first else hooks[::-1]))
    assert run.losses == measured.losses and run.scalars == measured.scalars


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

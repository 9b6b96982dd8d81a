"""IBHook in runs that are resumed or validated, and in those whose mask modules it serves."""

import json
from pathlib import Path

import pytest
import torch

from ltm_det.engine import ib_hook as module
from tests.test_engine.ib_runs import GRADIENT, POINTS, TOLD, Trained, hook, hook_of, hooks_of
from tests.test_engine.tiny_detector import build

BETA = "model__backbone__merger__beta"


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

"""What IBHook adds to the loss of a tiny detector, alone and on two ranks."""

import json
import math
from pathlib import Path

import pytest
import torch

import ltm_det  # noqa: F401  first: a spawned rank imports this file, and needs mmdet's models

# isort: split
from mmengine.runner import Runner
from torch import Tensor, distributed, multiprocessing, nn

from ltm_det.engine.bottleneck import Bottleneck
from tests.test_engine.ib_runs import GRADIENT, LOSSES, POINTS, Record, hook, hook_of
from tests.test_engine.tiny_detector import build


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
        assert value.item() == pytest.approx(exact[name], rel=0.3)
        assert value.item() != exact[name]  # half precision was on
    assert all(x.dtype == torch.float32 for x in features)
    sum(losses.values()).backward()
    gradient = model.backbone.patch_embed.projection.weight.grad
    assert gradient.isfinite().all() and gradient.abs().max() > 0


def test_gradient_accumulation(weighed, train):
    hooks = [hook(weight=0.5, begin=0.0, background=1), dict(type="ExactResumeHook")]
    run = train(*hooks, optim_wrapper__accumulative_counts=2)
    assert run.refreshed == weighed.refreshed and run.ib_losses == weighed.ib_losses
    assert run.losses[0] == weighed.losses[0] and run.losses[1] != weighed.losses[1]
    assert all(math.isfinite(losses["loss"]) for losses in run.losses.values())
    assert run.scalars != weighed.scalars


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

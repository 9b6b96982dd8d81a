"""IBLoss: timm's loss, and from the first refresh on the bound, in training alone."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from timm.data import Mixup
from timm.layers import ClassifierHead
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import ltm_det  # noqa: F401  first: a spawned rank imports this file, and needs mmdet's models

# isort: split
from ltm_det.basics.errors import InputError
from ltm_det.classifiers import Classifier, IBLoss
from ltm_det.ib import assign, bound, class_cost
from tests.test_backbones import mobilevit_cases
from tests.test_backbones.harness import randomise

LTM = dict(type="LTM")
CLASSES, BATCH = 3, 8
SETTINGS = dict(interval=2, num_clusters=4, crop=2, weight=0.5)


def classifier(merger=LTM):
    backbone = mobilevit_cases.make(merger, norm_eval=False)
    model = Classifier(
        backbone,
        ClassifierHead(8, CLASSES),
        classifier="head.fc",
        in_chans=3,
        num_features=8,
        num_classes=CLASSES,
        global_pool="avg",
    )
    return randomise(model).train()


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(BATCH, 3, 32, 32, generator=generator)
    return images, torch.randint(CLASSES, (BATCH,), generator=generator)


def run(loss, model, steps=1, start=0):
    """The loss of the last of some steps."""
    for seed in range(start, start + steps):
        images, target = batch(seed)
        found = loss(model(images), target)
        found.backward()
    return found


def plain_loss(model, seed):
    images, target = batch(seed)
    return LabelSmoothingCrossEntropy()(copy.deepcopy(model)(images), target)


@pytest.fixture
def model():
    return classifier()


@pytest.fixture
def loss(model):
    return IBLoss(LabelSmoothingCrossEntropy(), model, **SETTINGS)


def test_it_is_timms_until_there_are_centroids(model, loss):
    for seed in range(2):
        torch.testing.assert_close(run(loss, model, start=seed), plain_loss(model, seed))
    assert loss.bottleneck.ready and not len(loss.bottleneck.labels)  # refreshed after two
    assert run(loss, model, start=2) > plain_loss(model, 2)


def test_the_bound_is_that_of_merged_tokens(model, loss):
    run(loss, model, 2)
    images, target = batch(2)
    before = plain_loss(model, 2)
    output = model(images)
    expected = before
    for name, point in loss.watch.seen.items():
        x = point.merged_map().mean((2, 3))
        phi = assign(x, loss.bottleneck.centroids[name], loss.bottleneck.beta)
        cost = class_cost(loss.bottleneck.q[name].log().to(phi), target)
        expected = expected + 0.5 * bound(phi, cost)
    torch.testing.assert_close(loss(output, target), expected)


def test_its_gradient_reaches_what_comes_before_the_merger(model, loss):
    run(loss, model, 2)
    images, target = batch(2)
    gradients = []
    for loss.weight in (0.0, 0.5):
        model.zero_grad()
        loss(model(images), target).backward()
        gradients.append(model.backbone.stem.conv.weight.grad.clone())
    assert (gradients[0] - gradients[1]).abs().max() > 1e-6


def test_mixed_classes(model, loss):
    mixup = Mixup(mixup_alpha=1.0, num_classes=CLASSES)
    loss.loss = SoftTargetCrossEntropy()
    for seed in range(3):
        images, target = mixup(*batch(seed))
        found = loss(model(images), target)
    assert found.isfinite() and len(loss.bottleneck.labels) == BATCH
    assert set(loss.bottleneck.labels.tolist()) <= set(range(CLASSES))


def test_it_counts_from_a_step_on(model):
    loss = IBLoss(nn.CrossEntropyLoss(), model, **SETTINGS | dict(begin=3))
    run(loss, model, 2)
    for seed, counts in ((2, False), (3, True)):
        images, target = batch(seed)
        alone = nn.functional.cross_entropy(copy.deepcopy(model)(images), target)
        assert (run(loss, model, start=seed) > alone) == counts


def test_evaluation_is_left_alone(model, loss):
    run(loss, model, 2)
    images, target = batch()
    model.eval()
    with torch.no_grad():
        found = loss(model(images), target)
        torch.testing.assert_close(found, loss.loss(model(images), target))
    assert loss.steps == 2


def test_a_mean_of_the_model_is_none_of_its_passes(model, loss):
    run(loss, model, 1)
    mean = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        mean.module.eval()(batch(5)[0])
    assert not mean.module.training
    mean.update(model)
    assert run(loss, model, 2, start=1).isfinite() and loss.steps == 3


def test_wrapped_models(model):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    assert IBLoss(nn.CrossEntropyLoss(), Wrapper(model), **SETTINGS).watch.backbone is (
        model.backbone
    )


def test_it_goes_on_from_its_state(model, loss):
    run(loss, model, 3)
    again = IBLoss(LabelSmoothingCrossEntropy(), model, **SETTINGS)
    again.load_state_dict(copy.deepcopy(loss.state_dict()))
    assert again.steps == 3
    images, target = batch(3)
    torch.testing.assert_close(
        again(model(images), target),
        loss(model(images), target),
    )


def test_masks_by_the_bounds_gradient_are_given_it():
    options = dict(update="gradient", clusters=4, classes=CLASSES)
    model = classifier(dict(LTM, **options))
    loss = IBLoss(nn.CrossEntropyLoss(), model, **SETTINGS)
    run(loss, model, 2)
    assert loss.bottleneck.ready  # which the next pass brings to the mask modules
    run(loss, model, 1, start=2)
    for name, merger in model.backbone.mergers_by_point().items():
        torch.testing.assert_close(merger.step.centroids.data, loss.bottleneck.centroids[name])


def test_it_tells_what_it_measures(model, loss, caplog):
    with caplog.at_level(logging.INFO):
        run(loss, model, 2)
    (point,) = model.backbone.mergers_by_point()
    assert f"IBLoss: {point}: ib " in caplog.text and "16 samples" in caplog.text


def test_too_few_samples_are_told(model, caplog):
    settings = SETTINGS | dict(num_clusters=20, capacity=20, interval=1)
    loss = IBLoss(nn.CrossEntropyLoss(), model, **settings)
    run(loss, model, 1)
    assert "8 samples on this rank are too few for 20 clusters" in caplog.text


def test_a_pass_that_was_not_seen(model, loss):
    images, target = batch()
    other = classifier()
    with pytest.raises(InputError, match="has not seen the model's pass"):
        loss(other(images), target)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(weight=-1), "weight"),
        (dict(interval=0), "interval"),
        (dict(num_clusters=1), "num_clusters"),
        (dict(capacity=3), "capacity"),
        (dict(wieght=1), "did you mean 'weight'"),
    ],
    ids=str,
)
def test_bad_settings(model, given, said):
    with pytest.raises(InputError, match=said):
        IBLoss(nn.CrossEntropyLoss(), model, **SETTINGS | given)


def test_models_without_merging_are_told():
    with pytest.raises(InputError, match="merges nowhere"):
        IBLoss(nn.CrossEntropyLoss(), classifier(None), **SETTINGS)
    with pytest.raises(InputError, match="Linear is no classifier of ltm_det"):
        IBLoss(nn.CrossEntropyLoss(), nn.Linear(2, 2), **SETTINGS)


def run_rank(rank: int, folder: Path) -> None:
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2
    )
    model = classifier(dict(LTM, update="gradient", clusters=4, classes=CLASSES))
    loss = IBLoss(nn.CrossEntropyLoss(), model, **SETTINGS)
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(4):
        images, target = batch(10 * step + rank)
        optimizer.zero_grad()
        loss(wrapped(images), target).backward()
        optimizer.step()
    state = dict(weights=dict(model.named_parameters()), centroids=loss.bottleneck.centroids)
    torch.save(state, folder / f"{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_have_one_bottleneck_and_one_model(tmp_path):
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=run_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
        process.kill()
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    for part in ("weights", "centroids"):
        assert first[part] and first[part].keys() == second[part].keys()
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name


@pytest.mark.parametrize("own", [dict(classes=CLASSES, clusters=5), dict(classes=4, clusters=4)])
def test_a_gradient_of_other_clusters_or_classes_is_refused_at_once(own):
    """Not at the first refresh, an epoch later."""
    model = classifier(dict(LTM, update="gradient", **own))
    with pytest.raises(InputError, match="the loss classes=3, clusters=4"):
        IBLoss(LabelSmoothingCrossEntropy(), model, **SETTINGS)


def test_a_model_without_classes_is_refused():
    model = classifier()
    model.reset_classifier(0)
    with pytest.raises(InputError, match="has no classes"):
        IBLoss(LabelSmoothingCrossEntropy(), model, **SETTINGS)

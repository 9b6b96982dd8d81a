"""The samples that the bottleneck of a detector is measured on."""

import copy
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ltm_det.studies import bottleneck
from ltm_det.studies.bottleneck import KINDS, data_of, measure
from tests.test_studies.tiny_study import MEAN, STAGE_POINTS, STD
from tests.test_tools.conftest import SIZE


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, dict]]:
    """The batches of labels, pixels and features that `measure` gathers."""
    batches = []

    class Spy(bottleneck.Bottleneck):
        def add(self, *batch: object) -> None:
            batches.append(copy.deepcopy(batch))
            super().add(*batch)

    monkeypatch.setattr(bottleneck, "Bottleneck", Spy)
    return batches


def test_it_repeats_itself_whatever_was_drawn_before(config: Callable, saved: Callable) -> None:
    cfg = config()
    path = saved(cfg)
    first = measure(cfg, "merged", path, "train", clusters=4, betas=[3.0])
    random.random(), torch.rand(5)
    assert measure(cfg, "merged", path, "train", clusters=4, betas=[3.0]) == first


@pytest.mark.parametrize("split", ["val", "train"])
def test_all_kinds_see_the_same_samples(
    config: Callable, saved: Callable, samples: list, split: str
) -> None:
    """Also in training data, whose augmentation draws anew: from a seed that is not the model's."""
    gradient = {"model.backbone.merger.update": "gradient", "randomness.seed": 5}
    runs = []
    path = saved(config())
    for kind, cfg, checkpoint in [
        *((kind, config(), path) for kind in KINDS),
        ("merged", config(**gradient), None),
    ]:
        measure(cfg, kind, checkpoint, split, clusters=4)
        runs.append([torch.cat(parts) for parts in list(zip(*samples))[:2]])
        samples.clear()
    for labels, pixels in runs:
        assert torch.equal(labels, runs[0][0]) and torch.equal(pixels, runs[0][1])
    images = dict(val=4, train=8)[split]
    labels = runs[0][0].bincount(minlength=3)
    assert labels[:2].tolist() == [images, images] and 0 < labels[2] <= images


@pytest.mark.parametrize(("split", "images"), [("val", 4), ("train", 8)])
def test_a_split_is_read_in_its_order(config: Callable, split: str, images: int) -> None:
    """The config's own loader shuffles, and batches images of one shape."""
    cfg = config()
    before = cfg.to_dict()
    loader = data_of(cfg, split)
    ids = [[sample.img_id for sample in batch["data_samples"]] for batch in loader]
    assert ids == [[i, i + 1] for i in range(1, images, 2)]
    assert loader.num_workers == 0 and cfg.to_dict() == before


@pytest.mark.parametrize(("images", "seen"), [(1, 2), (2, 2), (3, 4), (4, 4), (99, 4), (None, 4)])
def test_images_are_the_first_in_whole_batches(
    config: Callable, samples: list, images: int | None, seen: int
) -> None:
    cfg = config()
    (summaries,) = measure(cfg, "dense", None, images=images, clusters=4)
    assert {s["samples"] for s in summaries.values()} == {3 * seen}
    pixels = torch.cat([batch[1] for batch in samples])
    samples.clear()
    measure(cfg, "dense", None, clusters=4)
    assert torch.equal(pixels, torch.cat([batch[1] for batch in samples])[: 3 * seen])


def test_several_betas_are_the_same_as_one_after_another(
    config: Callable, saved: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, betas = config(), (1.0, 10.0, math.inf)
    path = saved(cfg)
    together = measure(cfg, "pool", path, clusters=4, betas=betas)
    apart = [measure(cfg, "pool", path, clusters=4, betas=[beta])[0] for beta in betas]
    assert together == apart
    softness = [summaries[STAGE_POINTS[0]]["softness"] for summaries in together]
    assert softness[0] > softness[1] > softness[2] == 0


def test_fewer_samples_than_clusters_are_refused(config: Callable) -> None:
    measure(config(), "dense", None, clusters=12)
    with pytest.raises(ValueError, match="12 samples are too few for 13 clusters: take more"):
        measure(config(), "dense", None, clusters=13)
    with pytest.raises(ValueError, match="6 samples are too few for 7"):
        measure(config(), "dense", None, images=1, clusters=7)


def pixels_of(samples: list, label: int) -> Tensor:
    """(n, 3, CROP, CROP) of a category, in order."""
    labels, pixels = (torch.cat(parts) for parts in list(zip(*samples))[:2])
    return pixels[labels == label].unflatten(1, (3, 8, 8))


def assert_slabs(pixels: Tensor) -> None:
    """They are the last to be drawn, so all of them is to be seen, in grey value 200."""
    inner = pixels[:, :, 2:-2, 2:-2].permute(0, 2, 3, 1).double().numpy()
    assert np.abs(inner * STD + MEAN - 200).max() < 1


def test_validation_boxes_follow_a_resized_image(config: Callable, samples: list) -> None:
    crops = {}
    for scale in (1, 2):
        cfg = config()
        cfg.val_dataloader.dataset.pipeline[1].scale = (SIZE * scale, SIZE * scale)
        measure(cfg, "dense", None, clusters=4)
        crops[scale] = [pixels_of(samples, label) for label in range(3)]
        samples.clear()
    for one, two in zip(crops[1], crops[2], strict=True):
        assert one.shape == two.shape and len(one)
        inner = (one - two)[:, :, 2:-2, 2:-2]  # the enlarged image is blurred at edges
        assert inner.abs().max() < 0.25  # of about 1, the spread of pixels; a grey value is 0.02
    assert_slabs(crops[2][1])


def test_training_boxes_are_those_of_the_augmented_image(config: Callable, samples: list) -> None:
    cfg = config()
    load, annotations, *_, pack = cfg.train_dataloader.dataset.pipeline
    cfg.train_dataloader.dataset.pipeline = [
        load,
        annotations,
        dict(type="RandomChoiceResize", scales=[(96, 96), (128, 128)], keep_ratio=True),
        dict(type="RandomFlip", prob=0.5),
        pack,
    ]
    measure(cfg, "dense", None, "train", clusters=4)
    slabs = pixels_of(samples, 1)
    assert len(slabs) == 8
    assert_slabs(slabs)

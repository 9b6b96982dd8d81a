"""Average precision on the validation part: in all, by class and by size, not rounded.

Shapes: a picture of h x w pixels, K objects.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from tqdm import tqdm

from ltm_det.detectors import FastCascadeRoIHead, FastStandardRoIHead
from ltm_det.prediction.detector import as_detections

Batch = dict[str, Any]  # as a loader gives it
SIZES = ("small", "medium", "large")  # COCO's: below 32 x 32 pixels, below 96 x 96, and above
MOST = (100, 300, 1000)  # objects of a picture, as mmdet's CocoMetric has them


def dataset_of(cfg: Config) -> Any:
    """The validation pictures, through the config's pipeline."""
    init_default_scope(cfg.get("default_scope", "mmdet"))
    with redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        return DATASETS.build(cfg.val_dataloader.dataset)


def batches_of(cfg: Config) -> Iterator[Batch]:
    init_default_scope(cfg.get("default_scope", "mmdet"))
    with redirect_stdout(io.StringIO()):
        loader = Runner.build_dataloader(cfg.val_dataloader)
    yield from tqdm(loader, "evaluate", disable=None)


def evaluate(model: nn.Module, cfg: Config, masked: bool, classes: Sequence[str]) -> dict[str, Any]:
    """What a detector finds on the validation pictures against the truth.

    Args:
        model: In evaluation mode, or an exported file in its place.
        cfg: With the data.
        masked: Whether masks count too.
        classes: Names of its labels.

    Returns:
        ``pictures``, how many; ``sizes``, of pictures as the backbone gets them, 'H x W', how many
        of each; ``bbox`` and, if masked, ``segm``, each in points, 0 to 100, None where there is no
        such object: ``AP``, ``AP50``, ``small``, ``medium``, ``large``, and ``classes`` by name.
    """
    truth = coco_of(str(cfg.val_evaluator.ann_file))
    ids = {row["name"]: row["id"] for row in truth.dataset["categories"]}
    rows: dict[str, list[dict[str, Any]]] = dict(bbox=[], segm=[])
    sizes: Counter[str] = Counter()
    seen = []
    step = getattr(model.data_preprocessor, "pad_size_divisor", 1)
    with torch.no_grad(), run_lengths(model):
        for batch in batches_of(cfg):
            for sample in model.test_step(batch):
                padded = [-(-side // step) * step for side in sample.img_shape[:2]]
                sizes["{} x {}".format(*padded)] += 1
                seen.append(sample.img_id)
                add_rows(rows, sample, [ids[name] for name in classes])
    kinds = ["bbox", "segm"] if masked else ["bbox"]
    return dict(
        pictures=len(seen),
        sizes=dict(sizes.most_common()),
        **{kind: precision(truth, rows[kind], kind, seen, ids, classes) for kind in kinds},
    )


@contextmanager
def run_lengths(model: nn.Module) -> Iterator[None]:
    """Inside, a fast detector makes no bitmaps of its masks, which large pictures have large ones
    of, but run lengths."""
    head = getattr(model, "roi_head", None)
    if not isinstance(head, (FastStandardRoIHead, FastCascadeRoIHead)):
        yield
        return
    before = head.test_cfg
    head.test_cfg = ConfigDict(before, mask_format="rle")
    try:
        yield
    finally:
        head.test_cfg = before


def coco_of(file: str) -> COCO:
    """An annotation file."""
    with redirect_stdout(io.StringIO()):
        return COCO(file)


def add_rows(
    rows: dict[str, list[dict[str, Any]]], sample: DetDataSample, ids: Sequence[int]
) -> None:
    """A picture's objects as COCO's results, by kind."""
    instances = sample.pred_instances
    mask_scores = instances.get("mask_scores")  # of Mask Scoring R-CNN
    if mask_scores is not None and len(instances):
        mask_scores = mask_scores[instances.scores.argsort(descending=True)].tolist()
    found = as_detections(sample, sample.ori_shape[:2], None)
    for i, (x1, y1, x2, y2) in enumerate(found.boxes.tolist()):
        about = dict(image_id=sample.img_id, category_id=ids[found.labels[i]])
        score = float(found.scores[i])
        rows["bbox"].append(dict(about, score=score, bbox=[x1, y1, x2 - x1, y2 - y1]))
        if found.masks is not None and i < len(found.masks):
            own = score if mask_scores is None else mask_scores[i]
            rows["segm"].append(dict(about, score=own, segmentation=found.masks[i]))


def precision(
    truth: COCO,
    rows: list[dict[str, Any]],
    kind: str,
    pictures: Sequence[int],
    ids: dict[str, int],
    classes: Sequence[str],
) -> dict[str, Any]:
    """COCO's numbers of one kind, see :func:`evaluate`."""
    nothing = dict.fromkeys(["AP", "AP50", *SIZES], 0.0)
    if not rows:
        return nothing | dict(classes=dict.fromkeys(classes, 0.0))
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(rows), kind)
        params = evaluation.params
        params.imgIds, params.maxDets = list(pictures), list(MOST)
        params.catIds = [ids[name] for name in classes]
        evaluation.evaluate()  # which sorts the categories
        evaluation.accumulate()
    found = evaluation.eval["precision"]  # overlaps, recalls, classes, sizes, most

    def points(values: np.ndarray) -> float | None:
        values = values[values > -1]
        return 100 * float(values.mean()) if len(values) else None

    places = {number: place for place, number in enumerate(params.catIds)}
    by_class = {name: points(found[:, :, places[ids[name]], 0, 0]) for name in classes}
    return dict(
        AP=points(found[..., 0, 0]),
        AP50=points(found[0, ..., 0, -1]),
        **{size: points(found[..., i + 1, -1]) for i, size in enumerate(SIZES)},
        classes=by_class,
    )


def loss_of(before: dict[str, Any], after: dict[str, Any]) -> float:
    """Points of AP that were lost: of boxes or of masks, whichever lost more."""
    kinds = [kind for kind in ("bbox", "segm") if kind in before]
    return max((before[kind]["AP"] or 0.0) - (after[kind]["AP"] or 0.0) for kind in kinds)


def some_batches(cfg: Config, number: int) -> list[Batch]:
    """Validation pictures spread evenly over all, a batch each."""
    dataset = dataset_of(cfg)
    picks = np.linspace(0, len(dataset) - 1, min(number, len(dataset))).round().astype(int)
    return [pseudo_collate([dataset[i]]) for i in sorted(set(picks.tolist()))]

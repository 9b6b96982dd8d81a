"""The whole detectors among which ratios and a lean recipe are searched together.

What a choice costs in accuracy is measured without labels: what the dense detector with exact heads
finds is taken for the truth, and the error is what average precision against it falls short of 1.

Shapes: B images of H x W pixels.
"""

import copy
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from ltm_det.backbones.common.weights import without_mergers
from ltm_det.basics.words import brief
from ltm_det.compat.state_dicts import origin
from ltm_det.conversion.ratio_search import Label
from ltm_det.conversion.searched_models import SearchedModels
from ltm_det.detectors import FAST
from ltm_det.detectors.recipes import name_of, parts_of
from ltm_det.engine.building import building
from ltm_det.measure.detectors import kind_of
from ltm_det.measure.flops import count_macs, without_pretraining
from ltm_det.measure.timing import interleaved

SURE = 0.3  # objects of this score and above are taken for the truth
EXACT = "exact"
RUNS, WARM_UP = 11, 1


class SearchedDetectors:
    """The detector of a config with a dense backbone and exact heads, and leaner ones of its
    weights.

    Args:
        cfg, options, checkpoint, ratios, unit, device: See :class:`SearchedModels`.

    Raises:
        ValueError: The weights do not fit, the merger does not, or the detector has no fast form.
    """

    def __init__(
        self,
        cfg: Config,
        options: Mapping[str, Any],
        checkpoint: Mapping[str, Any],
        ratios: Sequence[float],
        unit: str | None,
        device: str,
    ) -> None:
        cfg = copy.deepcopy(cfg)
        kind = kind_of(cfg.model)
        if kind not in FAST:
            raise ValueError(f"the detector is a {kind}: give one of {[*FAST]}, or its backbone")
        cfg.model.type = FAST[kind]
        cfg.model.pop("lean", None)
        cfg.model.test_cfg.rcnn.mask_format = "rle"  # nothing of the image's size is made
        self.backbones = SearchedModels(cfg, options, checkpoint, ratios, unit, device)
        self.cfg, self.device = self.backbones.cfg, device
        own = without_mergers(checkpoint["state_dict"])
        heads = {k: v.to(device) for k, v in own.items() if not k.startswith("backbone.")}
        self.heads: dict[str, Tensor] = heads
        self.file = origin(checkpoint["state_dict"])
        self.parts: dict[Label, tuple[str, Any]] = {}
        self.units = dict(self.backbones.units)
        self.dense = self.model([])
        for key, value in parts_of(self.cfg.model.test_cfg):
            label = f"lean.{key}", name_of(key, value).partition("=")[2]
            self.parts[label] = key, value
            if key.startswith("mask") and not self.dense.with_mask:
                continue
            if key == "proposals" and value < self.cfg.model.test_cfg.rcnn.max_per_img:
                continue  # fewer regions than objects that a picture may have
            try:
                self.model([label])
            except ValueError:  # of another head or neck than mmdet's
                continue
            self.units[label[0]] = [*self.units.get(label[0], [EXACT]), label[1]]

    def merger(self, labels: Sequence[Label]) -> dict[str, Any] | None:
        """The backbone's merger for some choices."""
        return self.backbones.merger(self.of_backbone(labels))

    def of_backbone(self, labels: Iterable[Label]) -> list[Label]:
        return [label for label in labels if label[0] in self.backbones.units]

    def recipe(self, labels: Iterable[Label]) -> dict[str, Any]:
        """The detector's ``lean`` for some choices."""
        return dict(self.parts[label] for label in labels if label in self.parts)

    def model(self, labels: Sequence[Label]) -> nn.Module:
        """The detector of some choices, all else dense and exact; in evaluation mode.

        Raises:
            ValueError: It has no such part, or the checkpoint has other heads.
        """
        model = copy.deepcopy(self.cfg.model)
        model.lean = self.recipe(labels)
        torch.manual_seed(0)
        with building(self.cfg):
            built = MODELS.build(without_pretraining(model))
        built.backbone = self.backbones.model(self.of_backbone(labels))
        backbone = {f"backbone.{k}": v for k, v in built.backbone.state_dict().items()}
        try:
            built.load_state_dict({**backbone, **self.heads}, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{self.file} is of another detector: {brief(str(error))}") from error
        return built.to(self.device).eval()

    def costs(
        self, models: Sequence[nn.Module], cost: str, shape: tuple[int, int], image: Tensor
    ) -> list[float]:
        """GMACs of the detectors on one image, or milliseconds on ``image`` (1, 3, H, W), each the
        fastest of its runs."""
        if cost == "gmacs":
            return [count_macs(model, shape).macs["detector"] / 1e9 for model in models]
        image = F.interpolate(image.to(self.device), shape, mode="bilinear")

        def run(model: nn.Module) -> None:
            objects_on(model, image)
            if image.device.type == "cuda":
                torch.cuda.synchronize(image.device)

        runs = {i: partial(run, model) for i, model in enumerate(models)}
        times = interleaved(runs, RUNS, WARM_UP)
        return [1e3 * min(seconds) for seconds in times.values()]

    def errors(
        self,
        models: Sequence[nn.Module],
        batches: Iterable[Tensor],
        progress: Callable[[], Any] = lambda: None,
    ) -> list[float]:
        """For each model what its AP, boxes' and masks', falls short of 1, where the dense
        detector's sure objects are the truth.

        Raises:
            ValueError: There are none.
        """
        batches = [images.to(self.device) for images in batches]
        sizes = [tuple(images.shape[2:]) for images in batches for _ in images]
        sure = [own for images in batches for own in objects_on(self.dense, images)]
        truth = [own[own.scores >= SURE] for own in sure]
        if not any(len(own) for own in truth):
            raise ValueError(
                f"the detector finds nothing of a score of {SURE} on {len(truth)} images: is its "
                "checkpoint a trained one, and are these pictures like those it was trained on?"
            )
        found: list[list[InstanceData]] = [[] for _ in models]
        for images in batches:
            for model, objects in zip(models, found, strict=True):
                objects += objects_on(model, images)
                progress()
        kinds = ["bbox", "segm"] if self.dense.with_mask else ["bbox"]
        return [
            1 - mean(precision_against(truth, objects, sizes, kind) for kind in kinds)
            for objects in found
        ]


@torch.no_grad()
def objects_on(model: nn.Module, images: Tensor) -> list[InstanceData]:
    """What a detector finds on images (B, 3, H, W), as its data preprocessor leaves them."""
    size = tuple(images.shape[2:])
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    samples = [DetDataSample(metainfo=meta) for _ in images]
    found = model.predict(images, samples, rescale=False)
    return [sample.pred_instances for sample in found]


def precision_against(
    truth: Sequence[InstanceData],
    found: Sequence[InstanceData],
    sizes: Sequence[tuple[int, int]],
    kind: str,
) -> float:
    """COCO's average precision, 0 to 1, of what is found on some images.

    Args:
        truth: Objects of each image, with ``bboxes``, ``labels``, and ``masks`` as run lengths.
        found: The same with ``scores``.
        sizes: Height and width of each image.
        kind: 'bbox' or 'segm'.
    """

    def entries(objects: Sequence[InstanceData], scored: bool) -> list[dict[str, Any]]:
        out = []
        for image, own in enumerate(objects):
            boxes = torch.cat([own.bboxes[:, :2], own.bboxes[:, 2:] - own.bboxes[:, :2]], 1)
            for i, (box, label) in enumerate(zip(boxes.tolist(), own.labels.tolist())):
                entry = dict(id=len(out) + 1, image_id=image, category_id=label, bbox=box)
                entry |= dict(area=box[2] * box[3], iscrowd=0)
                if kind == "segm":
                    entry |= dict(segmentation=own.masks[i], area=float(coco.area(own.masks[i])))
                if entry["area"] > 0:  # an empty mask never matches, not even itself
                    out.append(entry | (dict(score=float(own.scores[i])) if scored else {}))
        return out

    objects, detections = entries(truth, False), entries(found, True)
    if not detections:
        return 0.0
    data = COCO()
    data.dataset = dict(
        images=[dict(id=i, height=h, width=w) for i, (h, w) in enumerate(sizes)],
        annotations=objects,
        categories=[dict(id=i) for i in sorted({entry["category_id"] for entry in objects})],
    )
    with redirect_stdout(io.StringIO()):  # it prints what it does
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, -1]  # of all sizes, of up to 100 objects
    return float(precision[precision > -1].mean())

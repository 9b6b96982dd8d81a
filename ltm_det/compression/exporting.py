"""The file to deploy, and whether it gives what the detector gives.

A two-stage detector of mmdet's goes into one file as a whole; of others the backbone does, which
then takes the backbone's place in the detector.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.ops import box_iou

from ltm_det import deploy
from ltm_det.compression.evaluation import Batch
from ltm_det.compression.given import Given
from ltm_det.compression.settings import LATENCY, Settings
from ltm_det.deploy.backbone import ExportedBackbone
from ltm_det.deploy.exported_detector import ExportedDetector
from ltm_det.deploy.runtime import package
from ltm_det.engine.config_check import leaf_datasets

TOLERANCE = 1e-3  # relative error of a backbone's maps
SURE = 0.3  # objects of this score and above are looked for in what the file finds
SAME = dict(overlap=0.95, score=0.02)  # of an object that is found again
FOUND = 0.99  # part of the objects that have to be found again


def check_packages(names: Sequence[str]) -> None:
    """That what an export needs is installed.

    Raises:
        ImportError: A package is not; it names the extra.
    """
    for name in names:
        package(name)


def export(
    cfg: Config,
    detector: nn.Module,
    file: Path,
    whole: bool,
    classes: Sequence[str],
    batch: Batch,
    dynamic: bool,
) -> dict[str, Any]:
    """Writes a detector's file, or its backbone's.

    Args:
        cfg: Of the detector, with its data.
        detector: On the CPU, in evaluation mode.
        file: .onnx or .xml.
        whole: Whether it is the whole detector.
        classes: Names of the labels.
        batch: A picture of the test pipeline.
        dynamic: Whether the file takes pictures of any size, or those of this one's alone.

    Returns:
        ``files``; ``part``, 'detector' or 'backbone'; ``size``, 'H x W' or 'any'; ``mb``.
    """
    image = detector.data_preprocessor(batch, False)["inputs"]
    detector = copy.deepcopy(detector)  # exporters change what they trace
    if whole:
        with deploy.written(file, image) as part:
            deploy.save_detector(
                detector,
                image,
                part,
                classes=classes,
                dynamic=dynamic,
                scale=scale_of(cfg),
            )
    else:
        size = deploy.sample_size(detector.backbone) if dynamic else image.shape[2:]
        traced = torch.randn(2 if dynamic else 1, 3, *size)
        with deploy.written(file, image) as part:
            deploy.save(detector.backbone, traced, part, dynamic)
    own = files_of(file)
    return dict(
        files=[path.name for path in own],
        part="detector" if whole else "backbone",
        size="any" if dynamic else "{} x {}".format(*image.shape[2:]),
        mb=sum(path.stat().st_size for path in own) / 2**20,
    )


def counts_file(found: Given, settings: Settings, device: str) -> bool:
    """Whether time is counted of the file: of one that holds the whole detector."""
    exported = settings.export != "none" and found.whole and device == "cpu"
    return exported and settings.cost == LATENCY


def files_of(file: Path) -> list[Path]:
    """The files that a written detector is in: OpenVINO's weights lie beside it."""
    return [file, *([file.with_suffix(".bin")] if file.suffix == ".xml" else [])]


def scale_of(cfg: Config) -> tuple[int, int] | None:
    """Into which the config's test pipeline fits pictures."""
    leaf = next(leaf_datasets(cfg.val_dataloader.dataset))
    return next((tuple(step.scale) for step in leaf.pipeline if step.get("scale")), None)


def from_file(file: Path, detector: nn.Module, whole: bool, threads: int) -> nn.Module:
    """The file in the detector's place, or in its backbone's."""
    if whole:
        return ExportedDetector(file, threads).eval()
    twin = copy.deepcopy(detector).cpu()
    twin.backbone = ExportedBackbone(file, threads)
    return twin.eval()


@torch.no_grad()
def same(
    detector: nn.Module, exported: nn.Module, whole: bool, batches: Sequence[Batch]
) -> dict[str, Any]:
    """Whether a file gives what its detector gives, on the CPU.

    A backbone's maps are compared; of a detector the objects that it is sure of are looked for
    among those of the file, and the other way round. Both get the same padded pictures.

    Returns:
        ``same``; and ``relative_error``, or how many ``objects`` there are, both ways, and how many
        were ``found``.
    """
    if not whole:
        worst = 0.0
        for batch in batches:
            images = detector.data_preprocessor(batch, False)["inputs"]
            pairs = exported.backbone(images), detector.backbone(images)
            worst = max(worst, *deploy.relative_errors(*pairs))
        return dict(same=worst <= TOLERANCE, relative_error=worst)
    total = found = 0
    model = deploy.WholeDetector(detector)
    for batch in batches:
        images = detector.data_preprocessor(batch, False)["inputs"]
        one, other = (objects_of(run(images)) for run in (model, exported.predictor.raw))
        for objects, others in ((one, other), (other, one)):
            sure = objects[objects.scores >= SURE]
            total += len(sure)
            found += again(sure, others)
    return dict(same=found >= FOUND * total, objects=total, found=found)


def objects_of(found: Sequence[Tensor]) -> InstanceData:
    """Boxes, scores and labels as one; masks are left out."""
    boxes, scores, labels = found[:3]
    return InstanceData(bboxes=boxes, scores=scores, labels=labels)


def again(objects: Any, others: Any) -> int:
    """How many objects are among others."""
    if not len(objects) or not len(others):
        return 0
    near = box_iou(objects.bboxes, others.bboxes) >= SAME["overlap"]
    near &= objects.labels[:, None] == others.labels[None]
    near &= (objects.scores[:, None] - others.scores[None]).abs() <= SAME["score"]
    return int(near.any(1).sum())


def told(done: Mapping[str, Any]) -> str:
    """In one line how a file compares."""
    if "relative_error" in done:
        return f"maps differ by {done['relative_error']:.1e} of at most {TOLERANCE}"
    return f"{done['found']} of {done['objects']} objects are the same"

"""A contact sheet of a detector's predictions beside the ground truth."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.apis import init_detector
from mmdet.registry import DATASETS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch import nn

from ltm_det.basics.errors import InputError
from ltm_det.basics.files import check_name, whole
from ltm_det.basics.finite import check_finite
from ltm_det.compat.checkpoint import fitting
from ltm_det.deploy import ExportedDetector
from ltm_det.deploy.detector import FORMATS
from ltm_det.engine.building import building
from ltm_det.engine.classes import check_labels
from ltm_det.prediction.sources import pictures_of

PANEL = 320  # pixels that the longer side of a small image is enlarged to: labels stay legible


def predict(model: nn.Module, dataset: Sequence, number: int) -> list[DetDataSample]:
    """Predictions, with the ground truth, on ``number`` images spread evenly over a data set.

    Raises:
        InputError: One of them cannot be read.
    """
    picks = np.linspace(0, len(dataset) - 1, min(number, len(dataset))).round().astype(int)
    samples = []
    for index in picks.tolist():  # all of them first, since the detector takes its time
        path = dataset.get_data_info(index)["img_path"]
        check_name(path)
        if cv2.imread(path) is None:
            raise InputError(f"no readable image at {path}: put one there, or take it off the data")
    for index in picks.tolist():
        with torch.no_grad():
            samples += model.test_step(pseudo_collate([dataset[index]]))
    return samples


def check_apart(dataset: Sequence, out: Path) -> None:
    """Raises InputError where a picture to write is one of the data."""
    for path in pictures_of(dataset):
        if path.name == out.name and path.resolve() == out.resolve():
            raise InputError(f"{out} is a picture of the data: name another one to write")


def draw_pair(
    visualizer: DetLocalVisualizer, sample: DetDataSample, score_thr: float
) -> np.ndarray:
    """One image twice, (H, 2W, 3) RGB: with its ground truth, and with what was predicted.

    Raises:
        FileNotFoundError: The image is not on disk.
    """
    image = cv2.imread(sample.img_path)
    if image is None:
        raise FileNotFoundError(f"no readable image at {sample.img_path}")
    scale = max(1.0, PANEL / max(image.shape[:2]))
    sample = sample.cpu()
    drawn = DetDataSample()
    drawn.pred_instances = enlarge(sample.pred_instances, scale)
    drawn.gt_instances = enlarge(sample.gt_instances, scale)
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    image = cv2.resize(image[..., ::-1], size, interpolation=cv2.INTER_CUBIC)
    visualizer.add_datasample("pair", image, drawn, pred_score_thr=score_thr)
    return visualizer.get_image()


def enlarge(instances: InstanceData, scale: float) -> InstanceData:
    """Instances with boxes and masks for an image ``scale`` times as large."""
    large = InstanceData(labels=instances.labels)
    if "scores" in instances:
        large.scores = instances.scores
    large.bboxes = torch.as_tensor(getattr(instances.bboxes, "tensor", instances.bboxes)) * scale
    if "masks" in instances:
        masks = instances.masks
        if isinstance(masks, (BitmapMasks, PolygonMasks)):
            masks = masks.to_ndarray()
        size = [max(1, round(side * scale)) for side in masks.shape[:0:-1]]  # width, height
        large.masks = np.zeros((len(masks), *size[::-1]), dtype=bool)
        for i, mask in enumerate(np.asarray(masks, dtype=np.uint8) * 255):
            large.masks[i] = cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR) > 127
    return large


def detector_of(cfg: Config, file: str, device: str) -> nn.Module:
    """The config's detector with the weights of a checkpoint, or an exported one.

    Raises:
        InputError: Weights are not finite, or the exported file has other classes than the data.
        ImportError: The runtime of an exported file is missing.
    """
    if Path(file).suffix in FORMATS:
        exported = ExportedDetector(file, mask_format="bitmap")
        check_labels(cfg, "val", file, exported.predictor.about["classes"] or ())
        return exported
    model = init_detector(cfg, file, device=device)
    check_finite(model.state_dict(), file)
    return model


def contact_sheet(
    cfg: Config,
    checkpoint: str,
    out: Path,
    number: int = 6,
    score_thr: float = 0.5,
    device: str = "cpu",
) -> None:
    """Writes a picture of validation images: ground truth and predictions, side by side.

    Args:
        cfg: Config of the detector and of its validation data, whose pipeline loads annotations.
        checkpoint: File or URL of its weights, or an exported detector.
        out: Picture to write; its suffix chooses the format (.png, .jpg, .pdf).
        number: How many images, spread evenly over the validation data.
        score_thr: Predictions below this score are left out.
        device: Where the detector runs; an exported one runs on the CPU.
    """
    with fitting(), building(cfg):
        model = detector_of(cfg, checkpoint, device)
        dataset = DATASETS.build(cfg.val_dataloader.dataset)
    check_apart(dataset, Path(out))
    visualizer = DetLocalVisualizer(line_width=2, alpha=0.5)
    visualizer.dataset_meta = dataset.metainfo
    pairs = [draw_pair(visualizer, s, score_thr) for s in predict(model, dataset, number)]
    columns = 2 if len(pairs) > 1 else 1
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(6.4 * columns, 3.5 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, pair in zip(axes, pairs):
        axis.imshow(pair)
        axis.axvline(pair.shape[1] / 2 - 0.5, color="white", linewidth=3)
        axis.set_title(f"ground truth  |  predicted, score over {score_thr:g}", fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    with whole(out) as part:
        figure.savefig(part, dpi=100)

"""Boxes and masks stay on their objects in the enlarged picture."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData

from ltm_det.pictures.predictions import draw_pair, enlarge, predict


def instances(masks: object, **fields: object) -> InstanceData:
    boxes = torch.tensor([[2.0, 3.0, 10.0, 9.0]])
    return InstanceData(bboxes=boxes, labels=torch.tensor([0]), masks=masks, **fields)


def mask_of_box() -> np.ndarray:
    mask = np.zeros((1, 12, 20), dtype=np.uint8)
    mask[0, 3:9, 2:10] = 1
    return mask


@pytest.mark.parametrize("kind", ["bitmap", "tensor"])
@pytest.mark.parametrize("scale", [1.0, 2.0, 3.3])
def test_masks_fill_their_boxes_at_any_scale(kind: str, scale: float) -> None:
    mask = mask_of_box()
    masks = BitmapMasks(mask, 12, 20) if kind == "bitmap" else torch.from_numpy(mask).bool()
    large = enlarge(instances(masks, scores=torch.tensor([0.9])), scale)
    assert large.masks.shape == (1, round(12 * scale), round(20 * scale))
    assert large.masks.dtype == bool
    rows, columns = np.nonzero(large.masks[0])
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array(edges) - large.bboxes[0].numpy()).max() <= 1
    assert large.scores.tolist() == instances(mask, scores=torch.tensor([0.9])).scores.tolist()


def test_no_instances_and_no_masks() -> None:
    none = instances(torch.zeros(1, 12, 20))[torch.zeros(1, dtype=torch.bool)]
    assert enlarge(none, 2.0).masks.shape == (0, 24, 40)
    boxes = InstanceData(bboxes=torch.zeros(1, 4), labels=torch.zeros(1))
    assert "masks" not in enlarge(boxes, 2.0)


def test_ground_truth_is_left_and_prediction_right_without_low_scores(tmp_path: Path) -> None:
    image = np.zeros((12, 20, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), image)
    sample = DetDataSample(metainfo=dict(img_path=str(path)))
    sample.gt_instances = instances(BitmapMasks(mask_of_box(), 12, 20))
    masks = torch.from_numpy(mask_of_box()).bool()
    sample.pred_instances = instances(masks, scores=torch.tensor([0.4]))
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=("box",), palette=[(255, 0, 0)])
    pair = draw_pair(visualizer, sample, score_thr=0.5)
    assert pair.shape == (192, 640, 3)
    assert pair[:, :320].any() and not pair[:, 320:].any()
    pair = draw_pair(visualizer, sample, score_thr=0.3)
    assert pair[:, 320:].any()
    sample.set_metainfo(dict(img_path=str(tmp_path / "gone.png")))
    with pytest.raises(FileNotFoundError, match="gone.png"):
        draw_pair(visualizer, sample, score_thr=0.3)


def test_images_are_spread_over_the_data_set(tmp_path: Path) -> None:
    class Model:
        def test_step(self, batch: dict) -> list:
            return batch["inputs"]

    class Data(list):
        def get_data_info(self, index: int) -> dict:
            return dict(img_path=str(picture))

    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), np.zeros((2, 2, 3), np.uint8))
    dataset = Data(dict(inputs=i) for i in range(11))
    assert predict(Model(), dataset, 3) == [0, 5, 10]
    assert predict(Model(), dataset, 1) == [0]
    assert predict(Model(), dataset, 99) == list(range(11))

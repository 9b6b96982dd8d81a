"""Samples of the information bottleneck for detection: instances, and sampled background.

Shapes: B images, n boxes, C channels, H x W map.
"""

from collections.abc import Sequence

import torch
from mmdet.structures import DetDataSample
from torch import Tensor
from torchvision.ops import box_iou, roi_align

TRIES = 20  # boxes drawn for one that lies on background
MOST_OVERLAP = 0.1  # of a background box with any instance, as intersection over union


def instance_boxes(
    samples: Sequence[DetDataSample],
    background: int,
    background_label: int,
    generator: torch.Generator,
    rescale: bool = False,
) -> tuple[Tensor, Tensor]:
    """The boxes of a batch's instances, and of background as large as they are.

    Args:
        samples: With ``gt_instances``.
        background: Boxes of background in each image. Where none of a few draws lies clear of the
            instances, there are fewer.
        background_label: Their label.
        generator: For the background; on the CPU.
        rescale: Whether boxes are those of the image file, as mmdet's pipelines for evaluation
            leave them, and follow the image's ``scale_factor`` here.

    Returns:
        (n, 5), index of the image and corners in pixels of the batch; and labels (n,).

    Raises:
        ValueError: If the data come without annotations.
    """
    rois, labels = [], []
    for i, sample in enumerate(samples):
        if "gt_instances" not in sample or "labels" not in sample.gt_instances:
            raise ValueError(
                f"no annotations with image {sample.get('img_path')}: the bottleneck needs boxes "
                "and categories, so the data's pipeline has to load annotations (LoadAnnotations)"
            )
        boxes = sample.gt_instances.bboxes
        boxes = torch.as_tensor(getattr(boxes, "tensor", boxes)).float()
        known = torch.as_tensor(sample.gt_instances.labels)
        if rescale and "scale_factor" in sample.metainfo:
            boxes = boxes * boxes.new_tensor(sample.scale_factor).repeat(2)
        empty = background_boxes(boxes.cpu(), sample.img_shape[:2], background, generator)
        boxes = torch.cat([boxes, empty.to(boxes)])
        rois.append(torch.cat([boxes.new_full((len(boxes), 1), i), boxes], dim=1))
        labels.append(torch.cat([known, known.new_full((len(empty),), background_label)]))
    if not rois:
        return torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)
    return torch.cat(rois), torch.cat(labels)


def background_boxes(
    boxes: Tensor, image_size: tuple[int, int], number: int, generator: torch.Generator
) -> Tensor:
    """Up to ``number`` boxes that lie clear of ``boxes``, each of the size of one of them.

    Args:
        boxes: (n, 4); where there are none, the drawn ones are half as high and wide as the image.
        image_size: Height and width of the image in pixels.

    Returns:
        (number or fewer, 4)
    """
    height, width = image_size
    limits = boxes.new_tensor([width, height])
    sizes = (boxes[:, 2:] - boxes[:, :2]) if len(boxes) else limits[None] / 2
    found = [boxes.new_zeros(0, 4)]
    for _ in range(number):
        pick = torch.randint(len(sizes), (TRIES,), generator=generator)
        size = sizes[pick].minimum(limits)
        corner = torch.rand(TRIES, 2, generator=generator) * (limits - size)
        drawn = torch.cat([corner, corner + size], dim=1)
        clear = (box_iou(drawn, boxes) <= MOST_OVERLAP).all(1)
        found.append(drawn[clear][:1])
    return torch.cat(found)


def pool_boxes(maps: Tensor, rois: Tensor, stride: float, side: int = 1) -> Tensor:
    """Means of a map over boxes, or over the cells of a grid laid on each box.

    Args:
        maps: (B, C, H, W)
        rois: (n, 5), see :func:`instance_boxes`.
        stride: Pixels between neighbouring entries of the map.
        side: Cells along each side of a box.

    Returns:
        (n, C * side * side), in at least float32.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    with torch.autocast(maps.device.type, enabled=False):
        cells = roi_align(maps, rois.to(maps), side, 1 / stride, sampling_ratio=-1, aligned=True)
    return cells.flatten(1)

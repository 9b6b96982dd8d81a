"""Run lengths of a part of an image: pycocotools' of the whole, byte for byte."""

import resource

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from pycocotools import mask as coco

from ltm_det.detectors.masks import encode_crop, pasted_rle

WHOLE = (13, 17)
PARTS = {
    "inside": (slice(3, 9), slice(4, 11)),
    "all rows": (slice(0, 13), slice(5, 9)),
    "all": (slice(0, 13), slice(0, 17)),
    "last column": (slice(2, 13), slice(16, 17)),
    "one pixel": (slice(0, 1), slice(0, 1)),
    "nothing": (slice(4, 4), slice(4, 4)),
}


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_it_is_pycocotools(part, share) -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        whole = np.zeros(WHOLE, bool)
        crop = generator.random(whole[part].shape) < share
        whole[part] = crop
        assert encode_crop(crop, part, WHOLE) == coco.encode(np.asfortranarray(whole, np.uint8))


@pytest.mark.parametrize(
    "box", [[3.0, 2, 30, 20], [-8, -9, 12, 60], [31, 5, 90, 9], [0, 0, 39, 29], [70, 70, 90, 90]]
)
def test_a_pasted_mask_is_mmdets(box) -> None:
    mask, box = torch.rand(1, 28, 28), torch.tensor(box)
    whole, _ = _do_paste_mask(mask[None], box[None], 30, 40, skip_empty=False)
    expected = coco.encode(np.asfortranarray((whole[0] >= 0.5).numpy(), np.uint8))
    assert pasted_rle(mask, box, (30, 40), 0.5) == expected


def test_a_large_image_takes_little_memory() -> None:
    """A hundred masks on 24 megapixels, 2.4 GB as bitmaps, of which no piece of that size exists:
    the limit would end this process."""
    size, masks = (4000, 6000), torch.rand(100, 1, 28, 28)
    corners = torch.rand(100, 2) * torch.tensor([5000.0, 3000])
    boxes = torch.cat([corners, corners + 900], 1)
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), before[1]))
    try:
        found = [pasted_rle(mask, box, size, 0.5) for mask, box in zip(masks, boxes)]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert len(found) == 100 and all(rle["size"] == [*size] for rle in found)

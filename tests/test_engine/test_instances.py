"""Boxes of instances and of background, and means of maps over them."""

import math

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from ltm_det.engine.instances import background_boxes, instance_boxes, pool_boxes

BACKGROUND = 7
BOXES = torch.tensor([[3.0, 4.0, 19.0, 30.0], [40.0, 8.0, 70.5, 20.25]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(boxes=BOXES, labels=(2, 5), size=(64, 80), **meta) -> DetDataSample:
    """An image of ``size`` (h, w) with annotations."""
    found = DetDataSample(metainfo=dict(img_shape=size, **meta))
    found.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor(labels, dtype=torch.long))
    return found


def empty(size=(64, 80)) -> DetDataSample:
    return sample(torch.zeros(0, 4), [], size)


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union."""
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return shared / (sum(areas) - shared)


def test_instances_of_a_batch():
    more = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    samples = [sample(), empty(), sample(more, [0])]
    rois, labels = instance_boxes(samples, 0, BACKGROUND, generator())
    assert rois.tolist() == [[0, *BOXES[0]], [0, *BOXES[1]], [2, 0, 1, 2, 3]]
    assert labels.tolist() == [2, 5, 0] and labels.dtype == torch.long


def test_boxes_of_mmdet_and_of_any_dtype():
    expected = instance_boxes([sample()], 2, BACKGROUND, generator())
    for boxes in (HorizontalBoxes(BOXES), BOXES.double(), BOXES.numpy()):
        found = instance_boxes([sample(boxes)], 2, BACKGROUND, generator())
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
        assert found[0].dtype == torch.float32
    whole = sample(BOXES.int())
    assert instance_boxes([whole], 0, 7, generator())[0].dtype == torch.float32


def test_background_follows_the_instances_of_its_image():
    samples = [sample(), sample(torch.tensor([[50.0, 50.0, 60.0, 60.0]]), [1])]
    rois, labels = instance_boxes(samples, 2, BACKGROUND, generator())
    assert rois[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert labels.tolist() == [2, 5, BACKGROUND, BACKGROUND, 1, BACKGROUND, BACKGROUND]
    assert ((rois[5:, 3:] - rois[5:, 1:3]) - 10).abs().max() < 1e-4


def test_boxes_of_the_file_are_scaled_to_the_image():
    scaled = sample(scale_factor=(1.5, 0.5), size=(32, 120))
    rois, _ = instance_boxes([scaled, sample()], 4, BACKGROUND, generator(), rescale=True)
    factors = torch.tensor([1.5, 0.5, 1.5, 0.5])
    assert torch.equal(rois[:2, 1:], BOXES * factors)
    assert torch.equal(rois[rois[:, 0] == 1][:2, 1:], BOXES)  # which knows of no factor
    drawn = rois[2:6, 1:]
    sizes = (BOXES[:, 2:] - BOXES[:, :2]) * factors[:2]
    for box in drawn:
        assert ((box[2:] - box[:2] - sizes).abs().amax(1) < 1e-4).any()
        assert box[2] <= 120 and box[3] <= 32
    as_they_are, _ = instance_boxes([scaled], 0, BACKGROUND, generator())
    assert torch.equal(as_they_are[:, 1:], BOXES)


@pytest.mark.parametrize("seed", range(10))
def test_background_is_clear_of_instances_and_inside(seed):
    height, width = (60, 100) if seed % 2 else (100, 60)
    corner = torch.rand(4, 2, generator=generator(seed)) * 30
    boxes = torch.cat([corner, corner + 5 + torch.rand(4, 2, generator=generator(seed)) * 25], 1)
    drawn = background_boxes(boxes, (height, width), 6, generator(seed))
    assert len(drawn) == 6 and len(drawn.unique(dim=0)) == 6
    for box in drawn.tolist():
        assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height
        shares = [overlap(box, other) for other in boxes.tolist()]
        assert max(shares) <= 0.1 + 1e-6  # they are held to it in float32
        size = torch.tensor([box[2] - box[0], box[3] - box[1]])
        assert ((boxes[:, 2:] - boxes[:, :2] - size).abs().amax(1) < 1e-4).any()


def test_background_reaches_every_place_and_size():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 8.0], [0.0, 0.0, 8.0, 4.0]])
    drawn = background_boxes(boxes, (40, 60), 300, generator())
    middle = (drawn[:, :2] + drawn[:, 2:]) / 2
    assert middle[:, 0].max() > 54 and middle[:, 1].max() > 34 and middle.amin() < 6
    high = ((drawn[:, 3] - drawn[:, 1]) > 6).float().mean()
    assert 0.3 < high < 0.7


def test_background_is_that_of_the_generator():
    first, again, other = (instance_boxes([sample()], 3, 7, generator(s))[0] for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    state = torch.get_rng_state()
    used = generator()
    before = used.get_state()
    instance_boxes([sample(), empty()], 0, BACKGROUND, used)
    assert torch.equal(used.get_state(), before)
    instance_boxes([sample(), empty()], 1, BACKGROUND, used)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_room_for_background():
    full = torch.tensor([[0.0, 0.0, 80.0, 64.0]])
    assert background_boxes(full, (64, 80), 5, generator()).shape == (0, 4)
    rois, labels = instance_boxes([sample(full, [3]), empty()], 2, BACKGROUND, generator())
    assert labels.tolist() == [3, BACKGROUND, BACKGROUND] and rois[:, 0].tolist() == [0, 1, 1]
    large = torch.tensor([[-10.0, 0.0, 90.0, 200.0]])  # larger than the image
    assert background_boxes(large, (64, 80), 5, generator()).shape == (0, 4)
    most = torch.tensor([[0.0, 0.0, 43.5, 64.0]])  # one draw in forty is clear of it
    assert 40 < len(background_boxes(most, (64, 80), 200, generator())) < 160


def test_images_without_instances():
    drawn = background_boxes(torch.zeros(0, 4), (60, 100), 4, generator())
    assert torch.allclose(drawn[:, 2:] - drawn[:, :2], torch.tensor([50.0, 30.0]))
    assert len(drawn.unique(dim=0)) == 4
    assert drawn.min() >= 0 and (drawn[:, 2:] <= torch.tensor([100.0, 60.0])).all()
    rois, labels = instance_boxes([empty()], 0, BACKGROUND, generator())
    assert rois.shape == (0, 5) and labels.shape == (0,) and labels.dtype == torch.long


def test_no_images():
    rois, labels = instance_boxes([], 3, BACKGROUND, generator())
    assert rois.shape == (0, 5) and labels.shape == (0,) and labels.dtype == torch.long


@pytest.mark.parametrize("instances", [None, InstanceData()])
def test_missing_annotations(instances):
    bare = DetDataSample(metainfo=dict(img_shape=(64, 80), img_path="a/b.png"))
    if instances is not None:  # what PackDetInputs leaves
        bare.gt_instances = instances
    with pytest.raises(ValueError, match="a/b.png.*LoadAnnotations"):
        instance_boxes([sample(), bare], 1, BACKGROUND, generator())


def cell_means(maps: Tensor, rois: Tensor, stride: int, side: int) -> Tensor:
    """Boxes along the map's cells, each into side x side parts of whole cells."""
    rows = []
    for roi in rois.tolist():
        image, (x0, y0, x1, y1) = int(roi[0]), (round(v / stride) for v in roi[1:])
        row = []
        for c in range(maps.shape[1]):
            for i in range(side):
                for j in range(side):
                    h, w = (y1 - y0) // side, (x1 - x0) // side
                    cells = [
                        maps[image, c, y, x].item()
                        for y in range(y0 + i * h, y0 + (i + 1) * h)
                        for x in range(x0 + j * w, x0 + (j + 1) * w)
                    ]
                    row.append(sum(cells) / len(cells))
        rows.append(row)
    return torch.tensor(rows, dtype=maps.dtype)


@pytest.mark.parametrize("stride", [1, 4, 16])
@pytest.mark.parametrize("side", [1, 2, 3])
def test_means_of_whole_cells(stride, side):
    maps = torch.randn(2, 5, 12, 18, dtype=torch.float64)
    corners = [[1, 0, 0, 6, 6], [0, 3, 2, 9, 8], [1, 0, 0, 18, 12], [0, 12, 6, 18, 12]]
    corners += [[0, 2, 3, 14, 9], [1, 2, 3, 8, 9]]
    rois = torch.tensor(corners, dtype=torch.float64)
    rois[:, 1:] *= stride
    found = pool_boxes(maps, rois, stride, side)
    assert found.dtype == torch.float64
    assert (found - cell_means(maps, rois, stride, side)).abs().max() < 1e-9


@pytest.mark.parametrize("stride", [4, 16 * 7 / 5])
def test_a_map_of_places_has_its_mean_in_the_middle(stride):
    """Entry i of a map stands for the pixels about (i + 0.5) * stride."""
    y, x = ((torch.arange(n, dtype=torch.float64) + 0.5) * stride for n in (20, 30))
    maps = torch.stack([x.expand(20, 30), y[:, None].expand(20, 30)])[None]
    corner = torch.rand(50, 2, dtype=torch.float64) * 10 * stride + stride
    size = torch.rand(50, 2, dtype=torch.float64) * 8 * stride
    rois = torch.cat([torch.zeros(50, 1, dtype=torch.float64), corner, corner + size], dim=1)
    assert (pool_boxes(maps, rois, stride) - (corner + size / 2)).abs().max() < 1e-9


def test_means_have_gradients():
    maps = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 3.0, 5.0, 17.0, 20.0], [1, 0.0, 0.0, 24.0, 8.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m: pool_boxes(m, rois, 4, 2), maps, nondet_tol=1e-9)
    pool_boxes(maps, rois[1:], 4).sum().backward()
    expected = torch.zeros(2, 3, 6, 7, dtype=torch.float64)
    expected[1, :, :2, :6] = 1 / 12
    assert (maps.grad - expected).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_means_are_in_full_precision(dtype):
    maps = (torch.randn(1, 4, 40, 40) + 100).to(dtype)
    rois = torch.tensor([[0, 0.0, 0.0, 160.0, 160.0], [0, 8.0, 8.0, 80.0, 120.0]])
    expected = cell_means(maps.double(), rois, 4, 1)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found = pool_boxes(maps, rois, 4)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_no_boxes(dtype):
    maps = torch.randn(2, 3, 6, 7, dtype=dtype, requires_grad=True)
    found = pool_boxes(maps, torch.zeros(0, 5), 4, 2)
    assert found.shape == (0, 12) and found.dtype == torch.float32
    found.sum().backward()
    assert maps.grad.abs().max() == 0


def test_boxes_at_the_edge_and_of_no_size_are_finite():
    maps = torch.randn(1, 3, 6, 7)
    rois = [[0, -9.0, -9.0, 2.0, 2.0], [0, 20.0, 20.0, 60.0, 60.0], [0, 5.0, 5.0, 5.0, 5.0]]
    rois += [[0, 27.9, 23.9, 28.0, 24.0]]
    assert pool_boxes(maps, torch.tensor(rois), 4).isfinite().all()
    assert math.prod(pool_boxes(maps, torch.tensor(rois), 4, 8).shape) == 4 * 3 * 64

"""The stand-in for mmcv's compiled ops, against slow oracles and, where there, mmcv's own ops."""

import importlib
import math
from importlib.util import find_spec

import mmcv.ops
import pytest
import torch
from torch import Tensor

from ltm_det.compat import mmcv_ext, provide_mmcv_ops
from ltm_det.compat.ops import STAND_IN

HAS_COMPILED = find_spec("mmcv._ext").origin != str(STAND_IN)
needs_compiled = pytest.mark.skipif(not HAS_COMPILED, reason="needs the full mmcv")
roi_cases = pytest.mark.parametrize(
    ("aligned", "sampling_ratio"), [(a, s) for a in (True, False) for s in (0, 2)]
)

# Image index, x1, y1, x2, y2: inside, overlapping, over two borders, outside, tiny, a point.
ROIS = [
    [0, 3.3, 2.1, 19.7, 11.2],
    [1, 5.0, 4.0, 21.0, 14.0],
    [0, -9.0, -7.0, 6.0, 5.5],
    [1, 17.0, 9.0, 45.0, 40.0],
    [1, 90.0, 90.0, 99.0, 99.0],
    [0, 7.2, 7.1, 7.4, 7.5],
    [0, 8.0, 8.0, 8.0, 8.0],
]


@roi_cases
@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_roi_align_equals_slow_oracle(aligned, sampling_ratio, scale):
    input, rois = _features(), torch.tensor(ROIS, dtype=torch.float64)
    grad_output = torch.randn(len(ROIS), 3, 2, 4, dtype=torch.float64)
    output, grad_input = _roi_align(
        mmcv_ext, input, rois, grad_output, scale, sampling_ratio, aligned
    )
    input.requires_grad_()
    expected = _slow_roi_align(input, rois, 2, 4, scale, sampling_ratio, aligned)
    expected.backward(grad_output)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    # mmcv's op adds to the buffer it is given: it was started at one.
    torch.testing.assert_close(grad_input, input.grad + 1, rtol=0, atol=1e-10)


@needs_compiled
@roi_cases
@pytest.mark.parametrize("count", [0, len(ROIS)])
def test_roi_align_equals_mmcv(aligned, sampling_ratio, count):
    compiled = importlib.import_module("mmcv._ext")
    input, rois = _features(), torch.tensor(ROIS, dtype=torch.float64)[:count]
    grad_output = torch.randn(count, 3, 2, 4, dtype=torch.float64)
    arguments = (input, rois, grad_output, 0.5, sampling_ratio, aligned)
    for ours, theirs in zip(
        _roi_align(mmcv_ext, *arguments), _roi_align(compiled, *arguments), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@roi_cases
def test_roi_align_without_regions(aligned, sampling_ratio):
    output, grad_input = _roi_align(
        mmcv_ext,
        _features(),
        torch.zeros(0, 5, dtype=torch.float64),
        torch.zeros(0, 3, 2, 4, dtype=torch.float64),
        0.5,
        sampling_ratio,
        aligned,
    )
    assert output.shape == (0, 3, 2, 4)
    assert torch.equal(grad_input, torch.ones(2, 3, 9, 11, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_roi_align_in_lower_precision_rounds_once(dtype):
    """The result is the float64 one for the same rounded input, up to one rounding."""
    input, rois = _features().to(dtype), torch.tensor(ROIS[:4]).to(dtype)
    grad_output = torch.randn(4, 3, 2, 4).to(dtype)
    results = _roi_align(mmcv_ext, input, rois, grad_output, 0.25, 2, True)
    exact = _roi_align(mmcv_ext, input.double(), rois.double(), grad_output.double(), 0.25, 2, True)
    for result, expected in zip(results, exact, strict=True):
        assert result.dtype == dtype
        step = torch.finfo(dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(result.double(), expected, rtol=0, atol=4 * step)


def test_roi_align_gradient_through_mmcv():
    rois = torch.tensor(ROIS[:3], dtype=torch.float64)
    input = _features()[..., :5, :6].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mmcv.ops.roi_align(x, rois, (2, 2), 0.25, 2), input)


def test_roi_align_under_autocast():
    layer = mmcv.ops.RoIAlign((2, 2), spatial_scale=0.25)
    input = _features().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(input, torch.tensor(ROIS).bfloat16())
    output.sum().backward()
    assert output.dtype == input.grad.dtype == torch.bfloat16
    assert input.grad.abs().sum() > 0


@pytest.mark.parametrize("op", ["roi_align_forward", "roi_align_backward"])
def test_max_pooling_is_refused(op):
    empty = torch.zeros(0)
    with pytest.raises(NotImplementedError, match="pool_mode='max'.*full mmcv"):
        getattr(mmcv_ext, op)(*[empty] * 5, 2, 2, 1.0, 0, pool_mode=0, aligned=True)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_nms_equals_slow_oracle(offset, threshold):
    boxes, scores = _boxes(), torch.randint(0, 50, (200,)) / 50
    kept = mmcv_ext.nms(boxes.double(), scores, threshold, offset)
    assert kept.tolist() == _slow_nms(boxes, scores, threshold, offset)
    assert 0 < len(kept) < 200


@needs_compiled
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("count", [0, 200])
def test_nms_equals_mmcv(offset, threshold, count):
    compiled = importlib.import_module("mmcv._ext")
    # All scores differ: mmcv leaves open which of two equal ones comes first.
    boxes, scores = _boxes()[:count], torch.randperm(200)[:count] / 200
    options = dict(iou_threshold=threshold, offset=offset)
    ours, theirs = (ops.nms(boxes, scores, **options) for ops in (mmcv_ext, compiled))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6, 0.7, 0.8])
def test_nms_keeps_an_iou_equal_to_the_threshold(threshold):
    boxes = torch.tensor([[0.0, 0, 10, 1], [0, 0, 10 * threshold, 1]])
    assert mmcv_ext.nms(boxes, torch.tensor([0.9, 0.8]), threshold, offset=0).tolist() == [0, 1]


def test_nms_offset_and_threshold_matter():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]])  # IoU 8 / 16, or 15 / 25 with the offset
    scores = torch.tensor([0.9, 0.8])
    assert mmcv_ext.nms(boxes, scores, 0.5, offset=0).tolist() == [0, 1]
    assert mmcv_ext.nms(boxes, scores, 0.5, offset=1).tolist() == [0]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_nms_without_boxes_and_in_half(offset, dtype):
    empty = mmcv_ext.nms(torch.zeros(0, 4, dtype=dtype), torch.zeros(0, dtype=dtype), 0.5, offset)
    assert empty.shape == (0,) and empty.dtype == torch.int64
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 28, 28]], dtype=dtype)
    scores = torch.tensor([0.5, 0.75, 0.25])  # float32 beside half boxes, as in mixed precision
    assert mmcv_ext.nms(boxes, scores, 0.5, offset).tolist() == [1, 2]


@pytest.mark.parametrize("name", ["softnms", "ms_deform_attn_forward", "deform_conv_forward"])
def test_other_op_is_named_with_its_remedy(name):
    op = getattr(mmcv_ext, name)  # mmcv.ops asks for it on import, so it has to be there
    with pytest.raises(NotImplementedError, match=f"{name}.*full mmcv.*mmcv-lite"):
        op(torch.zeros(1))


def test_private_names_are_not_ops():
    assert not hasattr(mmcv_ext, "__path__")
    assert not hasattr(mmcv_ext, "_C")


def test_stand_in_has_a_real_spec():
    spec = find_spec("mmcv._ext")
    assert spec.loader is not None and spec.name == "mmcv._ext"
    assert importlib.import_module("mmcv._ext") is mmcv._ext


def test_providing_twice_changes_nothing():
    before = importlib.import_module("mmcv._ext")
    provide_mmcv_ops()
    assert importlib.import_module("mmcv._ext") is before


def test_full_mmcv_is_left_untouched(tmp_path, run_python):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("")
    (tmp_path / "mmcv" / "_ext.py").write_text("nms = 'compiled'\n")
    code = "from ltm_det import compat; compat.provide_mmcv_ops(); import mmcv._ext as ext"
    run = run_python(f"{code}; print(ext.nms, ext.__file__)", hidden=["mmdet"], path=[tmp_path])
    assert run.stdout.split() == ["compiled", str(tmp_path / "mmcv" / "_ext.py")], run.stderr


def _features() -> Tensor:
    return torch.randn(2, 3, 9, 11, dtype=torch.float64)


def _boxes() -> Tensor:
    """Boxes on a coarse grid: many equal ones, some without area, IoUs equal to thresholds."""
    corner = torch.randint(0, 12, (200, 2))
    return torch.cat((corner, corner + torch.randint(0, 9, (200, 2))), dim=1).float()


def _roi_align(
    ops, input: Tensor, rois: Tensor, grad_output: Tensor, scale: float, ratio: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Forward and backward as mmcv calls them, on buffers that are not clean."""
    output = torch.full_like(grad_output, 7)
    grad_input = torch.ones_like(input)
    unused = input.new_zeros(0)
    options = dict(
        aligned_height=grad_output.shape[2],
        aligned_width=grad_output.shape[3],
        spatial_scale=scale,
        sampling_ratio=ratio,
        pool_mode=1,
        aligned=aligned,
    )
    ops.roi_align_forward(input, rois, output, unused, unused, **options)
    ops.roi_align_backward(grad_output, rois, unused, unused, grad_input, **options)
    return output, grad_input


def _slow_roi_align(
    input: Tensor, rois: Tensor, height: int, width: int, scale: float, ratio: int, aligned: bool
) -> Tensor:
    """RoIAlign (arXiv 1703.06870, section 3), sample by sample."""
    regions = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - 0.5 * aligned for corner in corners)
        least = 0.0 if aligned else 1.0
        bin_h, bin_w = max(y2 - y1, least) / height, max(x2 - x1, least) / width
        samples_h, samples_w = (ratio or math.ceil(size) for size in (bin_h, bin_w))
        for i in range(height):
            for j in range(width):
                total = input.new_zeros(input.shape[1])
                for k in range(samples_h):
                    for m in range(samples_w):
                        y = y1 + (i + (k + 0.5) / samples_h) * bin_h
                        x = x1 + (j + (m + 0.5) / samples_w) * bin_w
                        total = total + _sample(input[int(image)], y, x)
                regions.append(total / max(samples_h * samples_w, 1))
    stacked = torch.stack(regions).view(len(rois), height, width, -1)
    return stacked.permute(0, 3, 1, 2)


def _sample(plane: Tensor, y: float, x: float) -> Tensor:
    """Bilinear sample of (C, H, W): edges reach one cell outwards, beyond that lies zero."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(plane.shape[0])
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    total = plane.new_zeros(plane.shape[0])
    for row in (math.floor(y), math.floor(y) + 1):
        for col in (math.floor(x), math.floor(x) + 1):
            weight = (1 - abs(y - row)) * (1 - abs(x - col))
            if weight > 0:
                total = total + weight * plane[:, row, col]
    return total


def _slow_nms(boxes: Tensor, scores: Tensor, threshold: float, offset: int) -> list[int]:
    kept: list[int] = []
    for i in torch.sort(scores, descending=True, stable=True).indices.tolist():
        if all(_iou(boxes[i].tolist(), boxes[j].tolist(), offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def _iou(a: list[float], b: list[float], offset: int) -> float:
    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + offset, 0) * max(y2 - y1 + offset, 0)

    overlap = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - overlap
    return overlap / union if union else 0.0

"""The three compiled ops of mmcv that two-stage detectors use, computed by torchvision.

This file is loaded as ``mmcv._ext`` where mmcv comes without compiled ops (mmcv-lite). The calls
are those of mmcv 2.1 (``mmcv/ops/nms.py``, ``mmcv/ops/roi_align.py``); both libraries hold the
same two algorithms, so results agree up to float rounding. Any other op raises when called.

Shapes: B images, C channels, H x W grid, K boxes or regions, h x w bins of one region.
Half precision is computed in float32, as torchvision itself does under autocast, and rounded
once at the end. On CUDA, ``torch.use_deterministic_algorithms(True)`` makes torch refuse
``roi_align_backward``, whose sums are atomic; the full mmcv has the same sums and says nothing.
"""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

_OPS = ("nms", "roi_align_forward", "roi_align_backward")


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes kept by greedy suppression, by falling score.

    Args:
        bboxes: Boxes (K, 4) as x1, y1, x2, y2.
        scores: Scores (K,).
        iou_threshold: A box is dropped where its IoU with a kept box is larger.
        offset: 0 or 1; widths and heights count as x2 - x1 + offset.
    """
    dtype = _compute_dtype(torch.promote_types(bboxes.dtype, scores.dtype))
    bboxes = bboxes.to(dtype)
    if offset:
        # Moving x2 and y2 makes every width, height and overlap larger by the offset.
        bboxes = torch.cat((bboxes[:, :2], bboxes[:, 2:] + offset), dim=1)
    # Rounded as the IoUs are, so that an IoU of exactly 0.3 is not above 0.3: as mmcv does.
    iou_threshold = torch.tensor(iou_threshold, dtype=dtype).item()
    return torch.ops.torchvision.nms(bboxes, scores.to(dtype), iou_threshold)


@torch.no_grad()
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the average-pooled regions of ``input`` (B, C, H, W) to ``output`` (K, C, h, w).

    Args:
        rois: Regions (K, 5) as image index, x1, y1, x2, y2 in pixels of the image.
        argmax_y: Only for max pooling; stays as it is.
        argmax_x: Like ``argmax_y``.
        aligned_height: h.
        aligned_width: w.
        spatial_scale: Grid cells per pixel of the image.
        sampling_ratio: Samples per bin and axis; 0 takes as many as the bin has cells.
        pool_mode: 0 max, 1 average.
        aligned: Whether a cell's centre lies at its middle (0.5) and not at its corner.

    Raises:
        NotImplementedError: ``pool_mode`` is not 1 (average).
    """
    _check_pool_mode(pool_mode)
    dtype = _compute_dtype(input.dtype)
    pooled = torch.ops.torchvision.roi_align(
        input.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


@torch.no_grad()
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add to ``grad_input`` (B, C, H, W) the gradient that ``grad_output`` (K, C, h, w) sends.

    The arguments are those of ``roi_align_forward``.

    Raises:
        NotImplementedError: ``pool_mode`` is not 1 (average).
    """
    _check_pool_mode(pool_mode)
    dtype = _compute_dtype(grad_output.dtype)
    grad = torch.ops.torchvision._roi_align_backward(
        grad_output.to(dtype),
        rois.to(dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input.add_(grad)


def get_compiler_version() -> str:
    """What mmcv's environment report prints in the place of its compiler."""
    return f"none (ltm_det stand-in on torchvision {torchvision.__version__})"


def get_compiling_cuda_version() -> str:
    """The CUDA version torch and torchvision were built with."""
    return torch.version.cuda or "not available"


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_pool_mode(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            f"RoIAlign with pool_mode='max' (got {pool_mode}) is not in ltm_det's stand-in for "
            f"mmcv's ops, as torchvision has none. Use pool_mode='avg', or {_REMEDY}"
        )


_REMEDY = (
    'install the full mmcv: `pip uninstall mmcv-lite`, then `pip install "ltm_det[full]"` '
    "(built from source where it has no wheel for your torch)."
)


def __getattr__(name: str) -> Callable:
    """Every other op of mmcv: there, as ``mmcv.ops`` asks on import, but raises when called."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f"mmcv's op {name!r} is not in ltm_det's stand-in, which holds {', '.join(_OPS)}. "
            f"To use {name!r}, {_REMEDY}"
        )

    return missing

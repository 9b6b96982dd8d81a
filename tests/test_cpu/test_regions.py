"""RoIAlign as weighted sums over cells: torchvision's, whatever the region."""

import pytest
import torch
from torchvision.ops import roi_align

from ltm_det.cpu import regions

SCALES = [1 / 4, 1 / 8]


def some_rois(images: int) -> torch.Tensor:
    """On the map, over its edges, off it, thin, tiny and of no size at all."""
    corners = torch.tensor(
        [
            [3.0, 5, 60, 40],
            [-30, -20, 30, 20],
            [80, 60, 140, 110],
            [0, 0, 120, 88],
            [500, 500, 600, 600],
            [10, 10, 110, 12],
            [20.5, 3, 21, 80],
            [7, 7, 7, 7],
            [119.9, 87.9, 120, 88],
        ]
    )
    drawn = torch.rand(60, 2) * torch.tensor([120.0, 88])
    drawn = torch.cat([drawn, drawn + 50 * torch.rand(60, 2)], 1)
    corners = torch.cat([corners, drawn])
    return torch.cat([torch.randint(images, (len(corners), 1)).float(), corners], 1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("size", [(7, 7), (3, 5)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_it_is_torchvisions(aligned, sampling_ratio, size, last) -> None:
    maps = [torch.randn(2, 6, 22, 30), torch.randn(2, 6, 11, 15)]
    if last:
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    rois = some_rois(2)
    levels = torch.randint(2, (len(rois),))
    found = regions.roi_align(maps, rois, levels, size, SCALES, sampling_ratio, aligned)
    for level, scale in enumerate(SCALES):
        at = levels == level
        expected = roi_align(maps[level], rois[at], size, scale, sampling_ratio, aligned)
        torch.testing.assert_close(found[at], expected, rtol=1e-4, atol=1e-4)


def test_no_regions_at_all() -> None:
    maps = [torch.randn(1, 4, 8, 8)]
    none = torch.zeros(0, dtype=torch.long)
    found = regions.roi_align(maps, torch.zeros(0, 5), none, (7, 7), [0.25], 0, True)
    assert found.shape == (0, 4, 7, 7)

"""mmdet's region extractor without a loop over levels that waits for the device."""

from collections.abc import Sequence

import torch
from mmcv.ops import RoIAlign
from mmdet.models import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor

from ltm_det.cpu import door, regions


def plain(maps: Sequence[Tensor]) -> list[Tensor]:
    """Laid out as mmcv's RoIAlign reads them."""
    return [x.contiguous() for x in maps]


@MODELS.register_module()
class FastRoIExtractor(SingleRoIExtractor):
    """mmdet's ``SingleRoIExtractor``, faster where no gradients are asked for.

    On a CPU in float32 regions are weighted sums over cells, see :mod:`ltm_det.cpu.regions`. On
    other devices each level takes all regions, of which those of other levels have no size there
    and cost nothing: so nobody has to know how many there are. Everywhere else it is mmdet's.
    """

    def forward(
        self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """(B, C, H, W) of each level and regions (K, 5) to (K, C, h, w)."""
        usual = all(type(m) is RoIAlign and not door.altered(m) for m in self.roi_layers)
        if torch.is_grad_enabled() or not usual or self.roi_layers[0].pool_mode != "avg":
            return super().forward(plain(feats), rois, roi_scale_factor)
        layer, rois = self.roi_layers[0], rois.type_as(feats[0])
        levels = self.map_roi_levels(rois, len(feats))
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        if feats[0].device.type == "cpu":
            if feats[0].dtype != torch.float32 or not door.fast(feats[0]):
                return super().forward(plain(feats), rois)
            scales = [layer.spatial_scale for layer in self.roi_layers[: len(feats)]]
            options = layer.output_size, scales, layer.sampling_ratio, layer.aligned
            return regions.roi_align(feats, rois, levels, *options)
        if not layer.aligned or layer.sampling_ratio > 0:  # there a region always has some size
            return super().forward(plain(feats), rois)
        image, corners = rois[:, :1], rois[:, 1:]
        found = []
        for level, (layer, x) in enumerate(zip(self.roi_layers, feats)):
            own = torch.where((levels == level)[:, None], corners, 0)
            found.append(layer(x, torch.cat([image, own], dim=1)))
        return torch.stack(found).sum(0)

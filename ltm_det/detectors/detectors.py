"""Two-stage detectors of mmdet's whose necks and heads go fast: a config changes its type alone.

    _base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
    custom_imports = dict(imports=["ltm_det"])
    model = dict(type="FastMaskRCNN")

Parameters and their names are mmdet's, and so are boxes, scores and masks, to rounding. Training is
mmdet's altogether. With ``lean=True``, or a dict of what to leave out, less is computed, at a price
in AP: see :mod:`ltm_det.detectors.lean`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.models import CascadeRCNN, FasterRCNN, MaskRCNN
from mmdet.registry import MODELS
from torch import Tensor

from ltm_det.basics.arguments import checked
from ltm_det.basics.errors import InputError
from ltm_det.detectors.convolutions import use_fast_convolutions
from ltm_det.detectors.lean import Recipe
from ltm_det.necks import SimpleFPN

# Detectors of mmdet's, and what changes nothing in them but their speed.
FAST = dict(MaskRCNN="FastMaskRCNN", FasterRCNN="FastFasterRCNN", CascadeRCNN="FastCascadeRCNN")
# Parts by mmdet's names, and what stands in their places.
FAST_PARTS = dict(
    RPNHead="FastRPNHead",
    SingleRoIExtractor="FastRoIExtractor",
    FCNMaskHead="FastFCNMaskHead",
    StandardRoIHead="FastStandardRoIHead",
    CascadeRoIHead="FastCascadeRoIHead",
)


def check_lean(model: Mapping[str, Any]) -> None:
    """That a detector's config asks for a lean recipe that there is.

    Raises:
        InputError: The detector has none, or the recipe is wrong.
    """
    if "lean" in model and model["type"] not in FAST.values():
        own = [*FAST.values()]
        raise InputError(f"model.lean is of {own}, not of a {model['type']}: change model.type")
    Recipe.of(model.get("lean"))


def with_fast_parts(cfg: Any) -> Any:
    """A head's config with the parts of `FAST_PARTS` in the places of mmdet's; others stay."""
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(with_fast_parts(value) for value in cfg)
    if not isinstance(cfg, Mapping):
        return cfg
    parts = {key: with_fast_parts(value) for key, value in cfg.items()}
    kind = parts.get("type")
    if isinstance(kind, str):
        name = kind.removeprefix("mmdet.")
        if name in FAST_PARTS:
            parts["type"] = FAST_PARTS[name]
    return type(cfg)(parts)


class FastTwoStage:
    """For a two-stage detector: fast parts in the places of mmdet's.

    Args:
        lean: A :class:`Recipe`, its arguments, or true for `LEAN`. None: all is computed.
    """

    @checked()
    def __init__(
        self, *, rpn_head: Any, roi_head: Any, test_cfg: Any, lean: Any = None, **options: Any
    ) -> None:
        recipe = Recipe.of(lean)
        super().__init__(
            rpn_head=with_fast_parts(recipe.rpn_head(rpn_head)),
            roi_head=with_fast_parts(roi_head),
            test_cfg=recipe.test_cfg(test_cfg),
            **options,
        )
        for name in ("neck", "rpn_head", "roi_head"):
            if getattr(self, name, None) is not None:
                use_fast_convolutions(getattr(self, name))
        recipe.change_neck(getattr(self, "neck", None))
        self.recipe = recipe

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) to the neck's maps."""
        if torch.is_grad_enabled() or batch_inputs.device.type != "cpu":
            return super().extract_feat(batch_inputs)
        last = torch.channels_last  # as convolutions leave them
        maps = [x.contiguous(memory_format=last) for x in self.backbone(batch_inputs)]
        if self.with_neck:
            maps = self.neck(maps, **dict(layout=last) if isinstance(self.neck, SimpleFPN) else {})
        return tuple(x.contiguous(memory_format=last) for x in maps)  # regions are read so as well


@MODELS.register_module()
class FastFasterRCNN(FastTwoStage, FasterRCNN):
    """mmdet's ``FasterRCNN``, faster."""


@MODELS.register_module()
class FastMaskRCNN(FastTwoStage, MaskRCNN):
    """mmdet's ``MaskRCNN``, faster."""


@MODELS.register_module()
class FastCascadeRCNN(FastTwoStage, CascadeRCNN):
    """mmdet's ``CascadeRCNN``, Cascade Mask R-CNN included, faster."""

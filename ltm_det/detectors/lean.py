"""A lean recipe: how much of a detector's heads is computed, at a price in AP.

Everything here is off unless it is asked for: heads are mmdet's to rounding without it.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch.nn.functional as F
from mmdet.registry import MODELS
from torch import Tensor, nn

from ltm_det.basics.arguments import checked, choice, is_number
from ltm_det.basics.errors import InputError
from ltm_det.cpu import door
from ltm_det.detectors.convolutions import FastConv2d, FastConvModule
from ltm_det.detectors.rpn import FastRPNHead

FINEST = ("whole", "strided", "half", "none")


@dataclass(frozen=True)
class Recipe:
    """What is computed of the neck and the heads; as it stands, all of it.

    Args:
        proposals: At most so many regions go to the box heads. None: as many as ``test_cfg`` says.
        rpn_finest: What the RPN sees of the finest map, which has three quarters of all cells:
            'whole'; 'strided', the same at every second row and column, and the anchors there;
            'half', means of 2 x 2 cells, with its anchors in their middle; or 'none', and no
            anchors of that size.
        neck_finest: The output convolution of the finest map is computed on a grid whose sides are
            by so much shorter, such as 5 / 7, that of windows whose 7 x 7 tokens were merged into
            5 x 5.
        mask_score: Objects of a lower score have no mask.
        masks: At most so many objects of an image have one. None: all.

    Raises:
        InputError: A value out of its range.
    """

    proposals: int | None = None
    rpn_finest: str = "whole"
    neck_finest: float = 1.0
    mask_score: float = 0.0
    masks: int | None = None

    def __post_init__(self) -> None:
        for name in ("proposals", "masks"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InputError(f"lean.{name}={value!r}: give a whole number from 1, or None")
        if self.rpn_finest not in FINEST:
            raise InputError(f"lean.rpn_finest={self.rpn_finest!r}: give one of {FINEST}")
        for name in ("neck_finest", "mask_score"):
            if not is_number(getattr(self, name)):
                raise InputError(f"lean.{name}={getattr(self, name)!r}: give a number")
        if not 0.5 <= self.neck_finest <= 1:
            raise InputError(f"lean.neck_finest={self.neck_finest}: give 0.5 to 1")
        if not 0 <= self.mask_score <= 1:
            raise InputError(f"lean.mask_score={self.mask_score}: give 0 to 1")

    @classmethod
    def of(cls, given: "Recipe | Mapping[str, Any] | bool | None") -> "Recipe":
        """From what a config says: true for `LEAN`, or the arguments that differ from all of it.

        Raises:
            InputError: An unknown argument, or a value out of its range.
        """
        if isinstance(given, Recipe):
            return given
        if given is None or isinstance(given, bool):
            return LEAN if given else cls()
        if not isinstance(given, Mapping):
            raise InputError(f"lean={given!r}: give True, None, or a dict")
        known = [field.name for field in fields(cls)]
        if unknown := set(given) - set(known):
            raise InputError(f"lean has no {sorted(unknown)}: give some of {known}, or True")
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def test_cfg(self, cfg: Any) -> Any:
        """A detector's ``test_cfg`` with fewer proposals and masks."""
        cfg = deepcopy(cfg)
        if self.proposals is not None:
            cfg["rpn"]["max_per_img"] = min(self.proposals, cfg["rpn"]["max_per_img"])
        if self.mask_score > 0:
            cfg["rcnn"]["mask_score"] = self.mask_score
        if self.masks is not None:
            cfg["rcnn"]["masks"] = self.masks
        return cfg

    def rpn_head(self, cfg: Any) -> Any:
        """An RPN head's config, with what it sees of the finest map.

        Raises:
            InputError: It is another head than mmdet's.
        """
        if self.rpn_finest == "whole":
            return cfg
        kind = str(cfg["type"]).removeprefix("mmdet.")
        if kind != "RPNHead":
            raise InputError(f"lean.rpn_finest={self.rpn_finest!r} is of an RPNHead, not a {kind}")
        return type(cfg)({**cfg, "type": "LeanRPNHead", "finest": self.rpn_finest})

    def change_neck(self, neck: nn.Module | None) -> None:
        """Its convolution of the finest map becomes a coarser one.

        Raises:
            InputError: There is no such convolution.
        """
        if self.neck_finest == 1:
            return
        convs = getattr(neck, "fpn_convs", None)
        if not convs or not isinstance(getattr(convs[0], "conv", None), FastConv2d):
            kind = type(neck).__name__
            raise InputError(f"lean.neck_finest={self.neck_finest} is of an FPN, not a {kind}")
        coarse = CoarseConv2d.__new__(CoarseConv2d)
        coarse.__dict__.update(convs[0].conv.__dict__, grid=self.neck_finest)
        convs[0].conv = coarse


# What costs next to nothing without training; see results/lean for the rest.
LEAN = Recipe(proposals=300, mask_score=0.1)


class CoarseConv2d(FastConv2d):
    """A convolution on a coarser grid, of at least half as many cells along each side, brought back
    to the finer one; by bilinear weights, at a half means of 2 x 2 cells."""

    grid: float

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, D, H, W)."""
        size = [max(1, round(int(side) * self.grid)) for side in x.shape[2:]]
        few = F.interpolate(x, size, mode="bilinear", align_corners=False)
        sides = [int(side) for side in x.shape[2:]]
        return F.interpolate(super().forward(few), sides, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, grid={self.grid:.3g}"


@MODELS.register_module()
class LeanRPNHead(FastRPNHead):
    """mmdet's ``RPNHead`` that sees less of the finest map, see :class:`Recipe`.

    Args:
        finest: 'strided', 'half' or 'none'; weights are the same.

    Raises:
        InputError: Anchors are not of mmdet's ``AnchorGenerator``.
    """

    @checked(finest=choice(FINEST[1:]))
    def __init__(self, *args: Any, finest: str, anchor_generator: Any, **options: Any) -> None:
        self.finest = finest
        anchors = lean_anchors(anchor_generator, finest)
        super().__init__(*args, anchor_generator=anchors, **options)

    def forward(self, x: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, C, H, W) to logits and deltas of anchors, of each map that is seen."""
        first, *rest = x
        if self.finest == "half":
            rest = [F.avg_pool2d(first, 2, ceil_mode=True), *rest]
        logits, deltas = super().forward(tuple(rest))
        if self.finest == "strided":
            own = self.every_second(first)
            logits, deltas = ([y, *others] for y, others in zip(own, (logits, deltas)))
        return logits, deltas

    def every_second(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of what ``forward_single`` makes of (B, C, H, W), the even rows and columns."""
        stacked = type(self.rpn_conv) is nn.Sequential and not door.altered(self.rpn_conv)
        *before, last = self.rpn_conv if stacked else [self.rpn_conv]
        for layer in before:
            x = layer(x)
        conv = last.conv if is_relu_of_conv(last) else last
        if type(conv) is FastConv2d and conv.usual and door.untouched(conv):
            x = F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)
        else:
            x = last(x)[..., ::2, ::2]
        x = F.relu(x)
        return self.rpn_cls(x), self.rpn_reg(x)


def is_relu_of_conv(layer: nn.Module) -> bool:
    """Whether it is a convolution and ReLU, nothing else, and nobody watches."""
    known = type(layer) is FastConvModule and not door.altered(layer)
    return known and not layer.with_norm and layer.joins(norm=False, activate=True)


def lean_anchors(cfg: Any, finest: str) -> Any:
    """An anchor generator's config for maps of which the finest is halved, or missing.

    Anchors keep their sizes; of a strided map they are every second one along each side, of a
    halved one they lie in the middle of four former ones.
    """
    if str(cfg["type"]).removeprefix("mmdet.") != "AnchorGenerator":
        raise InputError(f"lean.rpn_finest is of an AnchorGenerator, not a {cfg['type']}")
    cfg = deepcopy(cfg)
    strides = list(cfg["strides"])
    sizes = list(cfg.get("base_sizes") or strides)
    offset = cfg.pop("center_offset", 0.0)
    centers = list(cfg.get("centers") or [(offset * size, offset * size) for size in sizes])
    if finest in ("strided", "half"):
        step, (x, y) = strides[0], centers[0]
        moved = step / 2 if finest == "half" else 0.0
        strides[0], centers[0] = 2 * step, (x + moved, y + moved)
    else:
        strides, sizes, centers = strides[1:], sizes[1:], centers[1:]
    cfg.update(strides=strides, base_sizes=sizes, centers=centers)
    return cfg

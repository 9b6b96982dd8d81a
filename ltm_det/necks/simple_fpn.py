"""SimpleFPN: a feature pyramid from one map, without a top-down path (ViTDet, arXiv 2203.16527).

Shapes: B images, C channels, H x W grid of the backbone's map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT_MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ltm_det.basics.arguments import checked, is_number
from ltm_det.basics.errors import InputError
from ltm_det.compat.layers import check_init, check_norm

SCALES = (4, 2, 1, 1 / 2, 1 / 4, 1 / 8)


@ROOT_MODELS.register_module()  # where mmcv's own norms are: found whatever the default scope is
class LN2d(LayerNorm2d):
    """LayerNorm over the channels of (B, C, H, W), as ``norm_cfg=dict(type='LN2d', eps=1e-6)``.

    Without ``eps`` in ``norm_cfg`` mmcv gives every norm 1e-5. The output is a channels-last view.
    """

    _abbr_ = "norm_layer"  # mmcv's name of the child, the one in published ViTDet detectors


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """Feature maps of several strides from the last map of a plain backbone.

    Each level is the map, resized on its own by deconvolutions (two with norm and GELU between
    them for scale 4) or by max pooling, then a 1 x 1 and a 3 x 3 convolution, each with norm.
    Parameters are named as in mmdet's ViTDet project: fpn1, fpn2, ... in the order of ``scales``,
    lateral_convs, fpn_convs.

    Args:
        in_channels: C of the backbone's map.
        out_channels: Channels of every level.
        scales: Size of each level over that of the map, descending; of 4, 2, 1, 1/2, 1/4, 1/8.
            The default makes strides 4 to 32 of a patch size of 16.
        num_outs: Levels in all; those beyond ``scales`` take every second cell of the one before.
        norm_cfg: Norm of all convolutions; None for none.
        init_cfg: Default: Xavier uniform for convolutions and deconvolutions, with zero biases.

    Raises:
        InputError: On scales that are not in the list or not descending, channels that cannot be
            halved as often as a scale needs, fewer outputs than scales, a ``norm_cfg`` that
            does not fit.
    """

    @checked()
    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scales: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        num_outs: int = 5,
        norm_cfg: Mapping[str, Any] | None = dict(type="LN2d", eps=1e-6),
        init_cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = dict(
            type="Xavier", layer=["Conv2d", "ConvTranspose2d"], distribution="uniform"
        ),
    ) -> None:
        super().__init__(init_cfg)
        _check(in_channels, out_channels, scales, num_outs, norm_cfg)
        check_init("SimpleFPN: init_cfg", init_cfg)
        self.num_scales, self.num_outs = len(scales), num_outs
        conv = dict(norm_cfg=norm_cfg, act_cfg=None)
        # Not mmengine's lists, which let each ConvModule reset itself after init_cfg.
        self.lateral_convs, self.fpn_convs = nn.ModuleList(), nn.ModuleList()
        for i, scale in enumerate(scales, 1):
            channels = in_channels // max(1, int(scale))
            self.add_module(f"fpn{i}", _resize(in_channels, scale, norm_cfg))
            self.lateral_convs.append(ConvModule(channels, out_channels, 1, **conv))
            self.fpn_convs.append(ConvModule(out_channels, out_channels, 3, padding=1, **conv))

    def forward(
        self,
        inputs: Tensor | Sequence[Tensor],
        layout: torch.memory_format = torch.contiguous_format,
    ) -> tuple[Tensor, ...]:
        """The map (B, C, H, W), or maps of which the last counts, to ``num_outs`` maps.

        Level i has ceil(H * scale) x ceil(W * scale) cells; each further one half of that, rounded
        up. All are contiguous, unless another ``layout`` is asked for: mmcv's RoIAlign reads any
        other wrongly, and says nothing.
        """
        x = inputs if isinstance(inputs, Tensor) else inputs[-1]
        outs = []
        for i in range(self.num_scales):
            level = getattr(self, f"fpn{i + 1}")(x)
            out = self.fpn_convs[i](self.lateral_convs[i](level))
            outs.append(out.contiguous(memory_format=layout))
        for _ in range(self.num_outs - self.num_scales):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)


def _resize(channels: int, scale: float, norm_cfg: Mapping[str, Any] | None) -> nn.Sequential:
    """(B, C, H, W) to scale times its size; each doubling halves C."""
    if scale < 1:
        return nn.Sequential(nn.MaxPool2d(round(1 / scale), ceil_mode=True))
    layers = []
    while scale > 1:
        if layers:
            norm = build_norm_layer(norm_cfg, channels)[1] if norm_cfg else nn.Identity()
            layers += [norm, nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels, scale = channels // 2, scale / 2
    return nn.Sequential(*layers)


def _check(
    in_channels: int,
    out_channels: int,
    scales: Sequence[float],
    num_outs: int,
    norm_cfg: Mapping[str, Any] | None,
) -> None:
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if type(value) is not int or value < 1:
            raise InputError(
                f"{name}={value!r}: give one positive integer, since the pyramid is made of one map"
            )
    listed = isinstance(scales, Sequence) and bool(scales) and all(map(is_number, scales))
    if not listed or not set(scales) <= set(SCALES):
        raise InputError(f"scales={scales!r}: choose one or more of {SCALES}")
    if list(scales) != sorted(set(scales), reverse=True):
        raise InputError(f"scales={scales!r}: give them in descending order, each once")
    if in_channels % max(1, int(scales[0])):
        raise InputError(
            f"in_channels={in_channels} is not a multiple of {int(scales[0])}: each doubling of "
            f"the map halves its channels; leave the largest of scales={scales!r} out"
        )
    if type(num_outs) is not int or num_outs < len(scales):
        raise InputError(
            f"num_outs={num_outs!r} is less than the {len(scales)} scales={scales!r}: give fewer "
            "scales, or as many outputs"
        )
    if norm_cfg is not None:
        inner = {in_channels // 2} if scales[0] == 4 else set()
        for channels in {out_channels, *inner}:
            check_norm("SimpleFPN: norm_cfg", norm_cfg, channels, (2, channels, 2, 2))

"""SimpleFPN against a slow oracle, and inside mmdet's two-stage detectors."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.roi_heads.bbox_heads import Shared4Conv1FCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.model import BaseModule
from torch import Tensor, nn

from ltm_det.necks import LN2d, SimpleFPN

SCALES = [
    (4.0, 2.0, 1.0, 0.5),  # patches of 16 pixels
    (2.0, 1.0, 0.5, 0.25),  # of 8
    (1, 0.5, 0.25, 0.125),  # of 4
    (4.0,),
    (0.125,),
]
NORMS = [dict(type="LN2d", eps=1e-6), dict(type="BN"), None]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Cell by cell."""
    out = torch.empty_like(x)
    for image in range(len(x)):
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                cell = x[image, :, row, column]
                centred = cell - cell.mean()
                scaled = centred / (centred.square().mean() + eps).sqrt()
                out[image, :, row, column] = scaled * weight + bias
    return out


def doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each cell becomes 2 x 2 cells, by a matrix of its own for each."""
    out = x.new_empty(len(x), weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])
    for down in range(2):
        for across in range(2):
            cells = torch.einsum("bchw,cd->bdhw", x, weight[:, :, down, across])
            out[:, :, down::2, across::2] = cells + bias[:, None, None]
    return out


def pooled(x: Tensor, side: int) -> Tensor:
    rows = [x[:, :, i : i + side].amax(2) for i in range(0, x.shape[2], side)]
    x = torch.stack(rows, 2)
    columns = [x[..., i : i + side].amax(3) for i in range(0, x.shape[3], side)]
    return torch.stack(columns, 3)


def oracle(state: dict[str, Tensor], x: Tensor, scales: tuple, num_outs: int) -> list[Tensor]:
    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    outs = []
    for i, scale in enumerate(scales):
        level = x
        if scale == 4:
            level = doubled(level, state[f"fpn{i + 1}.0.weight"], state[f"fpn{i + 1}.0.bias"])
            level = norm(level, f"fpn{i + 1}.1")
            level = level * (1 + torch.erf(level / math.sqrt(2))) / 2
            level = doubled(level, state[f"fpn{i + 1}.3.weight"], state[f"fpn{i + 1}.3.bias"])
        elif scale == 2:
            level = doubled(level, state[f"fpn{i + 1}.0.weight"], state[f"fpn{i + 1}.0.bias"])
        elif scale < 1:
            level = pooled(level, int(1 / scale))
        weight = state[f"lateral_convs.{i}.conv.weight"][:, :, 0, 0]
        level = torch.einsum("bchw,dc->bdhw", level, weight)
        level = norm(level, f"lateral_convs.{i}.norm_layer")
        level = F.conv2d(level, state[f"fpn_convs.{i}.conv.weight"], padding=1)
        outs.append(norm(level, f"fpn_convs.{i}.norm_layer"))
    while len(outs) < num_outs:
        outs.append(outs[-1][:, :, ::2, ::2])
    return outs


def randomised(neck: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.normal_()
    return neck


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("size", [(4, 6), (3, 5), (1, 1)], ids=str)
def test_it_is_the_oracle(scales: tuple, size: tuple) -> None:
    neck = randomised(SimpleFPN(8, 6, scales, len(scales) + 2)).double()
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    outs = neck([x])
    expected = oracle(neck.state_dict(), x, scales, len(scales) + 2)
    assert isinstance(outs, tuple) and len(outs) == len(expected)
    for out, slow in zip(outs, expected):
        torch.testing.assert_close(out, slow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (13, 9), (64, 43)], ids=str)
def test_levels_have_the_sizes_of_their_strides_rounded_up(size: tuple) -> None:
    neck = SimpleFPN(8, 4, num_outs=6)
    outs = neck(torch.randn(1, 8, *size))
    for i, out in enumerate(outs):  # strides 4, 8, ... of patches of 16
        assert out.shape == (1, 4, *(math.ceil(16 * side / 2 ** (i + 2)) for side in size))
        assert out.is_contiguous()  # mmcv's RoIAlign reads the memory as if it were


def test_maps_in_another_layout_are_the_same() -> None:
    neck, x = SimpleFPN(8, 6).eval(), torch.randn(2, 8, 5, 7)
    last = torch.channels_last
    for found, expected in zip(neck(x, layout=last), neck(x), strict=True):
        assert found.is_contiguous(memory_format=last) and not found.is_contiguous()
        torch.testing.assert_close(found, expected)


def test_it_takes_the_last_of_several_maps() -> None:
    neck = SimpleFPN(8, 4)
    first, last = torch.randn(1, 8, 5, 5), torch.randn(1, 8, 3, 4)
    for inputs in ([last], (first, last), [first, last]):
        assert all(map(torch.equal, neck(inputs), neck(last)))


@pytest.mark.parametrize("norm_cfg", NORMS, ids=str)
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_gradients_reach_all_parameters(scales: tuple, norm_cfg: dict | None) -> None:
    neck = SimpleFPN(8, 4, scales, len(scales) + 1, norm_cfg)
    neck.init_weights()
    x = torch.randn(2, 8, 5, 3, requires_grad=True)
    sum((out * torch.randn_like(out)).sum() for out in neck([x])).backward()
    assert x.grad.abs().max() > 0
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_parameters_are_those_of_published_detectors() -> None:
    shapes = {
        "fpn1.0.weight": (768, 384, 2, 2),
        "fpn1.0.bias": (384,),
        "fpn1.1.weight": (384,),
        "fpn1.1.bias": (384,),
        "fpn1.3.weight": (384, 192, 2, 2),
        "fpn1.3.bias": (192,),
        "fpn2.0.weight": (768, 384, 2, 2),
        "fpn2.0.bias": (384,),
    }
    for i, channels in enumerate((192, 384, 768, 768)):
        shapes[f"lateral_convs.{i}.conv.weight"] = (256, channels, 1, 1)
        shapes[f"fpn_convs.{i}.conv.weight"] = (256, 256, 3, 3)
        for convs in ("lateral_convs", "fpn_convs"):
            shapes[f"{convs}.{i}.norm_layer.weight"] = (256,)
            shapes[f"{convs}.{i}.norm_layer.bias"] = (256,)
    state = SimpleFPN(768).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == shapes


def test_heads_name_the_norm_as_published_detectors_do() -> None:
    register_all_modules()  # mmdet's scope, whatever ran before
    norm_cfg = dict(type="LN2d", eps=1e-6)
    box_head = Shared4Conv1FCBBoxHead(in_channels=4, conv_out_channels=4, norm_cfg=norm_cfg)
    mask_head = FCNMaskHead(in_channels=4, conv_out_channels=4, norm_cfg=norm_cfg)
    for head, convs in ((box_head, "shared_convs"), (mask_head, "convs")):
        keys = {key for key in head.state_dict() if key.startswith(f"{convs}.")}
        names = ("conv.weight", "norm_layer.weight", "norm_layer.bias")
        assert keys == {f"{convs}.{i}.{name}" for i in range(4) for name in names}
        assert isinstance(getattr(head, convs)[0].norm, LN2d)
        assert getattr(head, convs)[0].norm.eps == 1e-6


def test_ln2d_normalises_the_channels_of_each_cell() -> None:
    norm = randomised(LN2d(6)).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(norm(x), layer_norm(x, norm.weight, norm.bias, 1e-6))
    assert isinstance(norm, nn.LayerNorm)  # so that mmengine's norm_decay_mult counts it in
    assert MODELS.get("LN2d") is LN2d


def test_initial_weights() -> None:
    neck = SimpleFPN(64, 32)
    neck.init_weights()
    convolutions = [m for m in neck.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 3 + 2 * 4
    for module in convolutions:
        area = math.prod(module.kernel_size)
        bound = math.sqrt(6 / (area * (module.in_channels + module.out_channels)))
        assert 0.9 * bound < module.weight.abs().max() <= bound * (1 + 1e-6)
        assert module.bias is None or not module.bias.any()


def test_autocast_stays_close() -> None:
    neck, x = SimpleFPN(16, 8), torch.randn(2, 16, 5, 3)
    exact = neck(x)
    with torch.autocast("cpu", torch.bfloat16):
        outs = neck(x)
    sum(out.float().sum() for out in outs).backward()
    assert all(parameter.grad.isfinite().all() for parameter in neck.parameters())
    for out, value in zip(outs, exact):
        assert (out.float() - value).abs().max() < 0.1 * value.abs().max()


def test_a_copy_is_independent() -> None:
    neck, x = SimpleFPN(8, 4), torch.randn(1, 8, 3, 3)
    before = neck(x)
    other = copy.deepcopy(neck)
    assert all(map(torch.equal, other(x), before))
    randomised(other)
    assert all(map(torch.equal, neck(x), before))
    assert not torch.equal(other(x)[0], before[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(in_channels=[8, 8]), r"in_channels=\[8, 8\]: give one positive integer"),
        (dict(in_channels=0), "in_channels=0: give one positive integer"),
        (dict(in_channels=8, out_channels=-1), "out_channels=-1: give one positive integer"),
        (dict(in_channels=6), "in_channels=6 is not a multiple of 4.*leave the largest"),
        (dict(in_channels=8, scales=()), r"scales=\(\): choose one or more of \(4, 2"),
        (dict(in_channels=8, scales=4), "scales=4: choose one or more of"),
        (dict(in_channels=8, scales=(8, 4)), r"scales=\(8, 4\): choose"),
        (dict(in_channels=8, scales=(3, 1)), r"scales=\(3, 1\): choose"),
        (dict(in_channels=8, scales=(1, 2)), r"scales=\(1, 2\): give them in descending order"),
        (dict(in_channels=8, scales=(1, 1)), "descending order, each once"),
        (dict(in_channels=8, num_outs=3), r"num_outs=3 is less than the 4 scales=\(4.0"),
        (dict(in_channels=8, norm_cfg="LN2d"), "norm_cfg='LN2d': give a dict with type"),
        (dict(in_channels=8, norm_cfg=dict(eps=1)), "norm_cfg={'eps': 1}: give a dict with type"),
    ],
    ids=str,
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimpleFPN(**options)


class PatchBackbone(BaseModule):
    """One map of stride 16."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, 16, stride=16)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.patches(x)]


def detector(base: str) -> nn.Module:
    """mmdet's detector, narrow, with ViTDet's neck and heads."""
    register_all_modules()
    cfg: ConfigDict = get_config(f"mmdet::_base_/models/{base}_r50_fpn.py").model
    norm_cfg, width = dict(type="LN2d", eps=1e-6), 16
    cfg.backbone = dict(type=PatchBackbone, channels=32)
    cfg.neck = dict(type="SimpleFPN", in_channels=32, out_channels=width, norm_cfg=norm_cfg)
    cfg.rpn_head.update(in_channels=width, feat_channels=width, num_convs=2)
    roi_head = cfg.roi_head
    heads = roi_head.bbox_head if isinstance(roi_head.bbox_head, list) else [roi_head.bbox_head]
    convs = dict(in_channels=width, conv_out_channels=width, norm_cfg=norm_cfg, num_classes=3)
    for head in heads:
        head.update(type="Shared4Conv1FCBBoxHead", fc_out_channels=width, **convs)
    roi_head.mask_head.update(convs)
    roi_head.bbox_roi_extractor.out_channels = roi_head.mask_roi_extractor.out_channels = width
    cfg.train_cfg.rpn.allowed_border = -1  # the larger anchors reach beyond so small an image
    cfg.test_cfg.rpn.max_per_img = 16
    cfg.test_cfg.rcnn.score_thr = 0.0  # so that an untrained model reports something
    model = MODELS.build(cfg)
    model.init_weights()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("base", ["mask-rcnn", "cascade-mask-rcnn"])
def test_detectors_train_and_predict(base: str, dtype: torch.dtype) -> None:
    model = detector(base)

    def batch(training: bool) -> dict:
        inputs = demo_mm_inputs(
            2, [(3, 96, 64), (3, 50, 81)], num_items=[2, 1], num_classes=3, with_mask=True
        )
        return model.data_preprocessor(inputs, training)

    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        losses, _ = model.parse_losses(model.train()(**batch(True), mode="loss"))
        losses.backward()
        assert losses.isfinite()
        for name, parameter in model.neck.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
        with torch.no_grad():
            samples = model.eval()(**batch(False), mode="predict")
    for sample in samples:
        found = sample.pred_instances
        assert len(found) > 0 and found.bboxes.isfinite().all()
        assert found.masks.shape[-2:] == sample.ori_shape[:2]

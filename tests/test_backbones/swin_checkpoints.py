"""Swins to load weights into, and checkpoints in the layouts that are told apart."""

import re
from functools import partial

import torch
from mmdet.models.backbones import SwinTransformer

from ltm_det.backbones import LTMSwin
from ltm_det.backbones.common import accounting, weights
from ltm_det.backbones.swin.weights import SWIN

account = partial(accounting.account, SWIN)
load_accounted = partial(weights.load_accounted, SWIN)
SIZES = dict(embed_dims=24, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 8), drop_path_rate=0.0)
STAGE = dict(type="LTM", compression_ratio=(1.0, 1.0, 0.51, 1.0), scope="stage")
BLOCK = dict(type="LTM", compression_ratio=0.51, scope="block")
BACKBONES = {
    "mmdet": lambda **kw: SwinTransformer(**{**SIZES, **kw}),
    "dense": lambda **kw: LTMSwin(**{**SIZES, **kw}),
    "stage": lambda **kw: LTMSwin(merger=STAGE, **{**SIZES, **kw}),
    "block": lambda **kw: LTMSwin(merger=BLOCK, **{**SIZES, **kw}),
}


def parameters(state):
    """Without the buffers that mmdet saves and LTMSwin doesn't."""
    return {k: v for k, v in state.items() if not k.endswith("relative_position_index")}


def assert_same(loaded, expected):
    """All of ``expected`` is in ``loaded``, bit for bit."""
    expected = parameters(expected)
    assert expected.keys() <= loaded.keys()
    assert [k for k, v in expected.items() if not torch.equal(loaded[k], v)] == []


def swin_repository(state):
    """mmdet's backbone state dict in the Swin repository's classifier layout, by slow loops."""
    renames = (
        (r"^stages", "layers"),
        (r"^patch_embed\.projection", "patch_embed.proj"),
        (r"attn\.w_msa", "attn"),
        (r"ffn\.layers\.0\.0", "mlp.fc1"),
        (r"ffn\.layers\.1", "mlp.fc2"),
    )
    swin = {}
    for key, value in state.items():
        if re.match(r"norm\d", key):
            continue
        if ".downsample." in key:
            channels = value.shape[-1] // 4
            other = torch.empty_like(value)
            for place, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
                for c in range(channels):
                    other[..., place * channels + c] = value[..., c * 4 + row * 2 + column]
            value = other
        for pattern, name in renames:
            key = re.sub(pattern, name, key)
        swin[key] = value
    swin["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    swin |= {"norm.weight": torch.ones(192), "norm.bias": torch.zeros(192)}
    swin |= {"head.weight": torch.ones(5, 192), "head.bias": torch.zeros(5)}
    return {"model": swin, "epoch": 3}

"""Small LTMViTs and timm's ViT of the same weights: what all tests of LTMViT share."""

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer

from ltm_det.backbones import LTMViT
from tests.test_backbones.harness import Family, dense_twin, randomise

# five blocks with everything on, windows of 4, cheap in float64
MINI = dict(
    embed_dims=8,
    depth=5,
    num_heads=2,
    patch_size=4,
    window_size=4,
    global_blocks=(0, 3),
    pretrain_img_size=(24, 40),
    img_size=32,
    use_rel_pos=True,
    prefix_tokens=2,
    init_values=0.1,
)


def make(merger, ratio=0.5, **options):
    """A small backbone; extra options go to it."""
    if merger is not None:
        merger = dict(dict(compression_ratio=ratio), **merger)
    return LTMViT(merger=merger, **{**MINI, **options})


def build(*args, **options):
    """As `make`, of random weights in evaluation mode."""
    return randomise(make(*args, **options))


dense_of = partial(dense_twin, build)


def weights_of(reference: VisionTransformer):
    """As LTMViT names the parameters of timm's ViT, whose prefix tokens may have positions too."""
    weights = reference.state_dict()
    prefix = [weights.pop(name) for name in ("cls_token", "reg_token") if name in weights]
    if "pos_embed" in weights:
        patches = reference.patch_embed.num_patches
        first, weights["pos_embed"] = weights["pos_embed"].tensor_split([-patches], dim=1)
        prefix = [torch.cat(prefix, 1) + first] if first.shape[1] else prefix
    if prefix:
        weights["prefix_tokens"] = torch.cat(prefix, 1)
    return weights


FAMILIES = {
    "vit": Family(
        make=make,
        dense=dense_of,
        maps=lambda h, w: [(8, h, w)],
        layouts={
            "start": dict(merge_at=0),
            "later": dict(merge_at=1),
            "twice": dict(merge_at=[2, 4], compression_ratio=[0.5, 0.25]),
        },
        depth=lambda blocks: dict(depth=blocks, global_blocks=()),
        equal=dict(use_abs_pos=False, prefix_tokens=0),
        local=dict(use_abs_pos=False, global_blocks=()),
        fast=dict(prefix_tokens=0),
        unread=dict(global_blocks=(0, 1, 3)),  # dense windows see zeros, as ViTDet's do
    )
}

# As DINOv3 has it: tokens turned by where they are, a SwiGLU, registers beside the map.
ROTARY = dict(use_rel_pos=False, use_abs_pos=False, rope_base=100.0, prefix_tokens=3)
ROTARY |= dict(mlp="swiglu", mlp_ratio=3.0, embed_dims=16, norm_eps=1e-5, final_norm=True)

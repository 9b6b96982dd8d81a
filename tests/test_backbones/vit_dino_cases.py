"""timm's DINOv2 and DINOv3, small, and LTMViTs of the same weights."""

from functools import partial

from timm.layers import LayerNorm, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ltm_det.backbones import LTMViT
from ltm_det.backbones.common.weights import load_accounted
from ltm_det.backbones.vit.weights import VIT
from tests.test_backbones.harness import randomise

SIZES = dict(embed_dims=16, depth=2, num_heads=2, window_size=4, global_blocks=range(2))
TIMM = dict(embed_dim=16, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True)
TIMM |= dict(dynamic_img_pad=True, init_values=0.1)
# timm's models and ours, of DINOv2 at patches of 14 and of DINOv3 at patches of 16
V2 = partial(VisionTransformer, img_size=70, patch_size=14, **TIMM)
GIANT = dict(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=5.5)
V3 = partial(Eva, img_size=64, patch_size=16, rope_type="dinov3", rope_temperature=100, **TIMM)
V3 = partial(V3, rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False)
V3 = partial(V3, num_reg_tokens=4, use_fc_norm=False, norm_layer=partial(LayerNorm, eps=1e-5))
PLUS = dict(swiglu_mlp=True, swiglu_align_to=8)
OURS2 = dict(SIZES, patch_size=14, pretrain_img_size=70, init_values=0.1, final_norm=True)
OURS3 = dict(SIZES, patch_size=16, init_values=0.1, final_norm=True, norm_eps=1e-5)
OURS3 |= dict(use_abs_pos=False, rope_base=100, prefix_tokens=5)
MODELS = {
    "v2": (V2, dict(OURS2, prefix_tokens=1)),
    "v2 registers": (
        partial(V2, reg_tokens=4, no_embed_class=True),
        dict(OURS2, prefix_tokens=5),
    ),
    "v2 giant": (
        partial(V2, **GIANT),
        dict(OURS2, prefix_tokens=1, mlp="swiglu", mlp_ratio=5.5),
    ),
    "v3": (partial(V3, qkv_bias=False), dict(OURS3, qkv_bias=False)),
    "v3 bias": (partial(V3, qkv_bias=True), OURS3),
    "v3 plus": (
        partial(V3, qkv_bias=False, **PLUS),
        dict(OURS3, qkv_bias=False, mlp="swiglu", mlp_ratio=8.0),
    ),
    "v3 packed": (
        partial(V3, qkv_bias=True, swiglu_mlp=True),
        dict(OURS3, mlp="swiglu", mlp_ratio=8.0),
    ),
}


def load(model, state):
    return load_accounted(VIT, model, state, grid=model.pretrain_grid)


def pair(name):
    """timm's model of random weights, and ours that loaded them."""
    theirs, options = MODELS[name]
    reference = randomise(theirs())
    model = LTMViT(**options).eval()
    note = load(model, reference.state_dict())
    assert note == "" or note.endswith("left as initialised: rope_embed.periods"), note
    return reference, model

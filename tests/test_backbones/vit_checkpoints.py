"""ViTs to load weights into, and where the weights come from."""

import timm
import torch
from timm.models import VisionTransformer

from ltm_det.backbones.common import weights
from ltm_det.backbones.vit.backbone import LTMViT
from ltm_det.backbones.vit.weights import VIT
from tests.test_backbones.checkpoints import randomise

C, DEPTH, HEADS, PATCHES = 24, 3, 2, 16
SIZES = dict(embed_dims=C, depth=DEPTH, num_heads=HEADS, pretrain_img_size=64, img_size=64)
SIZES |= dict(window_size=3, global_blocks=[2])
TIMM = dict(img_size=64, embed_dim=C, depth=DEPTH, num_heads=HEADS, num_classes=5)
DEIT = "deit_tiny_distilled_patch16_224"
# timm's models by the tokens that they have beside the map.
SOURCES = {
    "class": lambda **kw: VisionTransformer(**TIMM, **kw),
    "distilled": lambda **kw: timm.create_model(DEIT, pretrained=False, **TIMM, **kw),
    "registers": lambda **kw: VisionTransformer(reg_tokens=2, **TIMM, **kw),
    "deit3": lambda **kw: VisionTransformer(no_embed_class=True, init_values=0.1, **TIMM, **kw),
    "dinov2": lambda **kw: VisionTransformer(no_embed_class=True, reg_tokens=4, **TIMM, **kw),
    "none": lambda **kw: VisionTransformer(
        class_token=False, global_pool="avg", fc_norm=False, **TIMM, **kw
    ),
}


def vit(**options):
    return LTMViT(**{**SIZES, **options})


def load_accounted(model, checkpoint, **options):
    return weights.load_accounted(VIT, model, checkpoint, grid=model.pretrain_grid, **options)


def source(name="class", **options):
    """State dict of a timm model with random weights."""
    return randomise(SOURCES[name](**options)).state_dict()


def body(state):
    """What LTMViT takes over as it is, without a final norm."""
    return {k: v for k, v in state.items() if k.startswith(("patch_embed.", "blocks."))}


def assert_loaded(model, expected):
    """All of ``expected`` is in the model, bit for bit."""
    loaded = model.state_dict()
    assert expected and expected.keys() <= loaded.keys()
    assert [k for k, v in expected.items() if not torch.equal(loaded[k], v)] == []


def vitdet():
    """State dict of a ViTDet with relative positions, and with the class token's position."""
    state = randomise(vit(use_rel_pos=True)).state_dict()
    return state | {"pos_embed": torch.randn(1, 1 + PATCHES, C)}

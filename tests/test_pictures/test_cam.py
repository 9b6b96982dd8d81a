"""Class activation maps of a backbone's blocks."""

import pytest
import torch

from ltm_det.pictures.cam import token_map
from tests.test_backbones import swin_cases, vit_cases
from tests.test_backbones.harness import difference

SIZE = (37, 50)  # 10 x 13 tokens: windows of 4 are padded


def cam(model, layer, reshape, images):
    """Grad-CAM of the mean of the last map: channels weighted by their mean gradient."""
    found = {}

    def keep(module, args, out):
        found["tokens"] = out
        out.register_hook(lambda gradient: found.update(gradient=gradient))

    handle = model.get_submodule(layer).register_forward_hook(keep)
    model(images)[-1].square().mean().backward()
    handle.remove()
    tokens, gradient = reshape(found["tokens"].detach()), reshape(found["gradient"])
    return (gradient.mean((2, 3), keepdim=True) * tokens).sum(1)  # (B, H, W)


@pytest.mark.parametrize(
    "block, hw", [("stages.0.blocks.1", (10, 13)), ("stages.1.blocks.0", (5, 7))]
)
def test_dense_swin_has_mmdets(block, hw):
    """Shifted windows and padding included; mmdet's tokens are in the map's order."""
    model, images = swin_cases.build(None), torch.randn(2, 3, *SIZE)
    twin = swin_cases.reference_of(model)
    ours = cam(model, f"{block}.norm1", token_map(model, block, SIZE), images)
    theirs = cam(twin, f"{block}.norm1", lambda x: x.transpose(1, 2).unflatten(2, hw), images)
    assert ours.shape == (2, *hw) and theirs.abs().max() > 0
    assert difference([ours / theirs.abs().max()], [theirs / theirs.abs().max()]) < 1e-3


def test_dense_vit_has_its_tokens_in_order():
    model, images = vit_cases.build(None), torch.randn(2, 3, *SIZE)
    found = cam(model, "blocks.4.norm1", token_map(model, "blocks.4", SIZE), images)
    plain = cam(
        model, "blocks.4.norm1", lambda x: x[:, 2:].transpose(1, 2).unflatten(2, (10, 13)), images
    )
    assert found.abs().max() > 0 and difference([found], [plain]) == 0


@pytest.mark.parametrize(
    "build, merger, block, hw",
    [
        # 3 x 4 windows of 4 x 4 tokens keep 3 x 3 each
        (swin_cases.build, dict(dense_blocks=0), "stages.0.blocks.1", (9, 12)),
        # and in a ViT the cells of padding alone are cut off
        (vit_cases.build, dict(merge_at=1), "blocks.4", (8, 10)),
        (vit_cases.build, dict(merge_at=1), "blocks.0", (10, 13)),
    ],
)
def test_merged_blocks_have_a_smaller_map(build, merger, block, hw):
    model = build(dict(type="LTM", **merger))
    reshape = token_map(model, block, SIZE)
    found = cam(model, f"{block}.norm1", reshape, torch.randn(1, 3, *SIZE))
    assert found.shape == (1, *hw) and found.abs().max() > 0


@pytest.mark.parametrize(
    "build, merger, block",
    [
        (swin_cases.build, dict(dense_blocks=0), "stages.0.blocks.1"),
        (vit_cases.build, dict(merge_at=1), "blocks.1"),
    ],
)
def test_matched_tokens_have_no_map(build, merger, block):
    with pytest.raises(ValueError, match="lie on no grid"):
        token_map(build(dict(type="ToMe", **merger)), block, SIZE)


@pytest.mark.parametrize("build, name", [(swin_cases.build, "stages.0"), (vit_cases.build, "norm")])
def test_what_is_no_block_is_refused(build, name):
    with pytest.raises(ValueError, match="is no block"):
        token_map(build(None), name, SIZE)

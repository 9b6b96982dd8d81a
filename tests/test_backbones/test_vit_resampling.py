"""Loading ViT weights of another size: resampled, or told apart."""

import pytest
import torch
from timm.layers import resample_patch_embed

from ltm_det.backbones.vit.weights import VIT
from tests.test_backbones.checkpoints import Detector, resample_slowly
from tests.test_backbones.vit_checkpoints import (
    HEADS,
    PATCHES,
    C,
    assert_loaded,
    load_accounted,
    source,
    vit,
    vitdet,
)


def linear_slowly(column, rows):
    """(R,) to (rows,), linearly; ends repeat, cell centres stay aligned."""
    out = torch.zeros(rows, dtype=torch.float64)
    for i in range(rows):
        y = min(max((i + 0.5) * len(column) / rows - 0.5, 0), len(column) - 1)
        low = min(int(y), len(column) - 2)
        out[i] = (1 - (y - low)) * column[low] + (y - low) * column[low + 1]
    return out


def test_relative_positions_of_another_size():
    """Of another window in window blocks, of another map (h != w) in the global ones."""
    state = vitdet()
    model = vit(use_rel_pos=True, window_size=4, img_size=(32, 96))
    note = load_accounted(model, state)
    rows = {"blocks.0.attn.rel_pos_h": 7, "blocks.2.attn.rel_pos_h": 3}
    rows |= {"blocks.1.attn.rel_pos_w": 7, "blocks.2.attn.rel_pos_w": 11}
    loaded = model.state_dict()
    for key, length in rows.items():
        assert key in note and loaded[key].shape == (length, C // HEADS)
        for i in range(C // HEADS):
            expected = linear_slowly(state[key][:, i].double(), length)
            torch.testing.assert_close(loaded[key][:, i].double(), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"rel_pos_h: \(5, 12\) in the checkpoint, \(5, 24\) in"):
        load_accounted(vit(use_rel_pos=True, num_heads=1), state)


@pytest.mark.parametrize(
    "name, prefix_tokens", [("class", 0), ("class", 1), ("deit3", 0), ("deit3", 1), ("none", 0)]
)
def test_absolute_positions_of_another_grid(name, prefix_tokens):
    state = source(name)
    model = vit(
        pretrain_img_size=(48, 112),
        prefix_tokens=prefix_tokens,
        init_values=1.0 if name == "deit3" else None,
    )
    assert "resampled to the model's size: pos_embed" in load_accounted(model, state)
    loaded = model.pos_embed.detach()
    assert loaded.shape == (1, 21, C)
    for channel in range(C):
        grid = state["pos_embed"][0, -PATCHES:, channel].view(4, 4).double()
        expected = resample_slowly(grid, (3, 7))
        got = loaded[0, :, channel].view(3, 7).double()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    if prefix_tokens:
        cls = state["cls_token"]
        cls = cls + state["pos_embed"][:, :1] if name == "class" else cls
        assert_loaded(model, {"prefix_tokens": cls})


def test_grid_that_is_no_square():
    """It is taken where the model has as many patches, which also tells the class position."""
    state = source() | {"pos_embed": torch.randn(1, 1 + 21, C)}
    model = vit(pretrain_img_size=(48, 112))
    load_accounted(model, state)
    assert_loaded(model, {"pos_embed": state["pos_embed"][:, 1:]})
    with pytest.raises(ValueError, match="pos_embed: 21 patches, not a square"):
        load_accounted(vit(), state)


@pytest.mark.parametrize(
    "rows, tokens, patches, first",
    [
        (17, 1, 16, 1),
        (16, 1, 16, 0),
        (17, 0, 16, 1),
        (17, 5, 16, 1),
        # Not a square, but the model's.
        (21, 1, 21, 0),
        (22, 5, 21, 1),
        # Two squares: the model's, else the one that gives all tokens a position.
        (9, 5, 4, 5),
        (9, 5, 9, 0),
        (9, 5, 16, 5),
        (10, 1, 16, 1),
        # None.
        (22, 1, 16, 1),
        (22, 1, 0, 1),
    ],
)
def test_rows_that_are_no_patches(rows, tokens, patches, first):
    state = {"pos_embed": torch.randn(1, rows, 2), "reg_token": torch.zeros(1, tokens, 2)}
    state = {k: v for k, v in state.items() if v.numel()}
    own = {"pos_embed": torch.zeros(1, patches, 2)} if patches else {}
    prepared = VIT.prepare(own, state)
    assert torch.equal(prepared["pos_embed"], state["pos_embed"][:, first:])
    left = prepared.get(f"pos_embed[:, :{first}]", torch.zeros(1, 0, 2))
    assert torch.equal(left, state["pos_embed"][:, :first])


def test_another_patch_size():
    state, model = source(patch_size=16), vit(patch_size=8, pretrain_img_size=32)
    assert "resampled to the model's size: patch_embed.proj.weight" in load_accounted(model, state)
    key = "patch_embed.proj.weight"
    assert_loaded(model, {key: resample_patch_embed(state[key], [8, 8])})
    with pytest.raises(
        ValueError, match=r"(?s)weight: \(24, 768\) in the .*embed_dims=24, .*size="
    ):
        load_accounted(vit(), state | {key: state[key].flatten(1)})


def test_relative_positions_may_lack_all_together():
    """In weights of a backbone: pretraining has none. Not a part of them, not in a detector."""
    state, model = source(), vit(use_rel_pos=True)
    note = load_accounted(model, state)
    assert "left as initialised: blocks.0.attn.rel_pos_h" in note and "(6 in all)" not in note
    assert model.blocks[1].attn.rel_pos_w.abs().max() == 0
    some = vitdet()
    del some["blocks.1.attn.rel_pos_w"]
    with pytest.raises(ValueError, match=r"(?s)1 missing: blocks.1.attn.rel_pos_w.*use_rel_pos=F"):
        load_accounted(model, some)
    none = vit().state_dict()
    with pytest.raises(ValueError, match=r"(?s)6 missing: blocks.0.attn.rel_pos_h.*init_cfg, whi"):
        Detector(model).load_state_dict({f"backbone.{k}": v for k, v in none.items()})

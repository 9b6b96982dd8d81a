"""LTMViT in mmdet's grammar: arguments, errors, freezing, names, the published sizes."""

import math

import pytest
import timm
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import nn

from ltm_det.backbones import LTMViT
from ltm_det.backbones.vit.layers import GlobalAttention
from ltm_det.basics.errors import InputError
from tests.test_backbones.harness import difference, ltm_shapes, mergers_of
from tests.test_backbones.vit_cases import MINI, build


def ltm(ratio=0.5, **options):
    return dict(type="LTM", compression_ratio=ratio, **options)


@pytest.mark.parametrize(
    "merger, error, message",
    [
        ("LTM", ValueError, "must be None or a dict with type and compression_ratio: 'LTM'"),
        (dict(type="LTM"), ValueError, r"\{'type': 'LTM'\} lacks \['compression_ratio'\]"),
        (dict(compression_ratio=0.5), ValueError, r"lacks \['type'\]"),
        (dict(type="LTN", compression_ratio=0.5), ValueError, "unknown merger type 'LTN'"),
        (dict(type="LTN", compression_ratio=1.0), ValueError, "unknown merger type 'LTN'"),
        (ltm(0), ValueError, r"\(0, 1\].*got 0"),
        (ltm(1.5), ValueError, r"\(0, 1\].*got 1.5"),
        (ltm(True), ValueError, r"\(0, 1\].*got True"),
        (ltm("0.5"), ValueError, r"\(0, 1\].*got '0.5'"),
        (ltm(math.nan), ValueError, r"\(0, 1\].*got nan"),
        (ltm([0.5, -1], merge_at=[1, 2]), ValueError, r"\(0, 1\].*got -1"),
        (ltm([0.5, 0.5]), ValueError, r"\[0.5, 0.5\] has 2 entries for merge_at=\[0\]"),
        (ltm([0.5], merge_at=[1, 2]), ValueError, r"1 entries for merge_at=\[1, 2\]: give one"),
        (ltm([0.2, 0.5], merge_at=[1, 2]), ValueError, r"\[0.2, 0.5\] rises: .* at most the one"),
        (ltm(merge_at=5), ValueError, "merge_at names block 5, but there are blocks 0 to 4"),
        (ltm(merge_at=-1), ValueError, "merge_at names block -1,"),
        (ltm(merge_at=1.0), ValueError, "merge_at names block 1.0,"),
        (ltm(merge_at=True), ValueError, "merge_at names block True,"),
        (ltm(merge_at=[]), ValueError, r"merge_at=\[\] must name blocks"),
        (ltm(merge_at="3"), ValueError, "merge_at names block '3',"),
        (ltm(merge_at=[3, 1]), ValueError, r"merge_at=\[3, 1\] must name blocks in ascending"),
        (ltm(merge_at=[1, 1]), ValueError, r"merge_at=\[1, 1\] .* each once"),
        (ltm(mask="fuzzy"), ValueError, "unknown mask 'fuzzy'"),
        (ltm(1.0, mask="fuzzy"), ValueError, "unknown mask 'fuzzy'"),
        (ltm(temperature=0), ValueError, "above 0, got 0"),
        (ltm(scope="stage"), InputError, "scope='stage' is of LTMSwin.*LTMViT has merge_at"),
        (dict(type="Pool", compression_ratio=1.0, mask="soft"), InputError, "'mask'"),
    ],
    ids=str,
)
def test_errors_name_the_bad_merger(merger, error, message):
    given = dict(merger) if isinstance(merger, dict) else merger
    with pytest.raises(error, match=message):
        LTMViT(merger=merger, **MINI)
    assert merger == given


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(global_blocks=[5]), "global_blocks names block 5, but there are blocks 0 to 4"),
        (dict(global_blocks=[0, -1]), "global_blocks names block -1,"),
        (dict(global_blocks=[True]), "global_blocks names block True,"),
        (dict(global_blocks=3), "global_blocks must be a list of blocks, got 3"),
        (dict(frozen_stages=6), "frozen_stages=6: give -1 to 5"),
        (dict(frozen_stages=-2), "frozen_stages must be a whole number from -1 on, got -2"),
        (dict(window_size=0), "window_size must be a whole number from 1 on, got 0"),
        (dict(window_size=(4, 4)), r"window_size .* got \(4, 4\)"),
        (dict(patch_size=-4), "patch_size .* got -4"),
        (dict(embed_dims=0), "embed_dims .* got 0"),
        (dict(depth=0), "depth .* got 0"),
        (dict(num_heads=2.0), "num_heads .* got 2.0"),
        (dict(in_channels=0), "in_channels .* got 0"),
        (dict(prefix_tokens=-1), "prefix_tokens must be a whole number from 0 on, got -1"),
        (dict(prefix_tokens=True), "prefix_tokens .* got True"),
        (dict(pretrain_img_size=(8, 3)), "8x3 pixels hold no patch of 4x4"),
        (dict(img_size=3), "3x3 pixels hold no patch of 4x4"),
        (dict(num_heads=3), "embed_dims=8 .* num_heads=3"),
    ],
    ids=str,
)
def test_errors_name_the_bad_argument(options, message):
    with pytest.raises(ValueError, match=message):
        LTMViT(**{**MINI, **options})


def test_an_unknown_argument_is_an_error():
    with pytest.raises(InputError, match="'out_indices'"):
        LTMViT(out_indices=(3,), **MINI)


def test_it_is_built_from_a_config():
    merger = ConfigDict(type="LTM", compression_ratio=[0.5, 0.25], merge_at=[1, 3])
    model = MODELS.build(ConfigDict(type="LTMViT", merger=merger, **MINI))
    assert isinstance(model, LTMViT) and len(mergers_of(model)) == 2
    assert merger.merge_at == [1, 3]


@pytest.mark.parametrize(
    "depth, given, expected",
    [
        (12, None, [2, 5, 8, 11]),
        (24, None, [5, 11, 17, 23]),
        (4, None, [0, 1, 2, 3]),
        (6, None, [0, 2, 3, 5]),
        (1, None, [0]),
        (5, (), []),
        (5, range(5), [0, 1, 2, 3, 4]),
        (5, [3, 1], [1, 3]),
    ],
)
def test_global_blocks(depth, given, expected):
    model = LTMViT(**{**MINI, "depth": depth, "global_blocks": given})
    found = [i for i, b in enumerate(model.blocks) if isinstance(b.attn, GlobalAttention)]
    assert found == expected


def test_drop_path_grows_linearly():
    model = LTMViT(**{**MINI, "drop_path_rate": 0.4})
    assert isinstance(model.blocks[0].drop_path1, nn.Identity)
    rates = [[b.drop_path1.drop_prob, b.drop_path2.drop_prob] for b in model.blocks[1:]]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2).T)


@pytest.mark.parametrize(
    "depth, window, merger, expected",
    [
        (12, 14, ltm(0.4), {"2": (14, 9)}),
        (24, 14, ltm(0.4), {"5": (14, 9)}),
        (3, 14, ltm(0.4), {"0": (14, 9)}),
        (12, 14, ltm(0.5, merge_at=7), {"7": (14, 10)}),
        (12, 14, ltm([0.5, 0.25], merge_at=(3, 6)), {"3": (14, 10), "6": (10, 7)}),
        (12, 14, ltm(0.5, merge_at=[3, 6]), {"3": (14, 10)}),  # no less by the second
        (12, 14, ltm([1.0, 0.5], merge_at=[3, 6]), {"6": (14, 10)}),
        (12, 14, ltm(1.0), {}),
        (12, 4, ltm(0.9), {}),  # 4 * sqrt(0.9) is 4 again
        (12, 4, ltm(0.01), {"2": (4, 1)}),
    ],
)
def test_mergers(depth, window, merger, expected):
    model = LTMViT(embed_dims=8, num_heads=1, depth=depth, window_size=window, merger=merger)
    found = {name: (m.window, math.isqrt(m.tokens)) for name, m in model.mergers.items()}
    assert found == expected
    for (before, kept), module in zip(expected.values(), model.mergers.values()):
        assert module.tokens == kept**2 and f"tokens={kept**2}/{before**2}" in repr(model)


def frozen_names(model):
    return {name for name, p in model.named_parameters() if not p.requires_grad}


def test_frozen_stages():
    """Blocks 0 and 1 with the merger before block 1; the merger before block 2 learns."""
    merger = ltm([0.5, 0.25], merge_at=[1, 2], mask="hard")
    model = build(merger, frozen_stages=2, drop_rate=0.1).train()
    first = ("patch_embed.", "pos_embed", "prefix_tokens", "blocks.0.", "blocks.1.", "mergers.1.")
    names = {name for name, _ in model.named_parameters()}
    assert frozen_names(model) == {name for name in names if name.startswith(first)}
    frozen = [model.patch_embed, model.pos_drop, *model.blocks[:2], model.mergers["1"]]
    for module in frozen:
        assert not any(m.training for m in module.modules())
    for module in (*model.blocks[2:], model.mergers["2"]):
        assert all(m.training for m in module.modules())

    images, seen = torch.randn(2, 3, 37, 50), []
    model.blocks[1].register_forward_hook(lambda module, args, out: seen.append(out))
    one, two = model(images), model(images)  # only what is not frozen is stochastic
    assert torch.equal(*seen) and not torch.equal(one[0], two[0])
    one[0].sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None} == frozen_names(model)
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("stages", [-1, 0, 5])
def test_all_or_nothing_is_frozen(stages):
    model = build(ltm(), frozen_stages=stages).train()
    first = {-1: (), 0: ("patch_embed.", "pos_embed", "prefix_tokens"), 5: ("",)}[stages]
    names = {name for name, _ in model.named_parameters()}
    assert frozen_names(model) == {name for name in names if name.startswith(first)}


def test_state_dict_is_timms_and_the_mergers():
    options = dict(img_size=(24, 40), patch_size=4, embed_dim=8, depth=5, num_heads=2)
    reference = timm.models.VisionTransformer(
        **options, num_classes=0, class_token=False, global_pool="avg", init_values=0.1
    )
    dense = {k: v.shape for k, v in reference.state_dict().items() if not k.startswith("fc_norm")}
    dense["prefix_tokens"] = (1, 2, 8)
    for i in range(5):
        for axis in "hw":  # tables of heads of 4: over 8 x 8 tokens, or over a window of 4 x 4
            dense[f"blocks.{i}.attn.rel_pos_{axis}"] = (15, 4) if i in (0, 3) else (7, 4)
    own = {**ltm_shapes("mergers.2", 8, 9, 16), **ltm_shapes("mergers.4", 8, 4, 9)}
    merger = ltm([0.5, 0.25], merge_at=[2, 4])
    assert {k: v.shape for k, v in build(merger).state_dict().items()} == {**dense, **own}
    for other in (None, dict(merger, type="Pool")):
        assert {k: v.shape for k, v in build(other).state_dict().items()} == dense
    plain = build(None, prefix_tokens=0, use_rel_pos=False, use_abs_pos=False, init_values=None)
    assert not [k for k in plain.state_dict() if "pos" in k or "prefix" in k or "ls" in k]
    normed = build(None, final_norm=True).state_dict()
    assert normed.keys() - dense.keys() == {"norm.weight", "norm.bias"}


def test_relative_positions_of_a_map_that_is_not_square():
    model = LTMViT(**{**MINI, "img_size": (32, 80), "window_size": 3})
    shapes = [tuple(len(t) for t in (b.attn.rel_pos_h, b.attn.rel_pos_w)) for b in model.blocks]
    assert shapes == [(15, 39), (5, 5), (5, 5), (15, 39), (5, 5)]


def test_relative_positions_start_as_none():
    model = LTMViT(**MINI).eval()
    plain = LTMViT(**{**MINI, "use_rel_pos": False}).eval()
    weights = model.state_dict()
    plain.load_state_dict({key: weights[key] for key in plain.state_dict()})
    images = torch.randn(2, 3, 37, 50)
    with torch.no_grad():
        assert difference(model(images), plain(images)) < 1e-5


PUBLISHED = {
    "vit_small_patch16_224": dict(embed_dims=384, num_heads=6),
    "vit_base_patch16_224": dict(),
    "vit_large_patch16_224": dict(embed_dims=1024, depth=24, num_heads=16),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name, monkeypatch):
    """As many parameters as timm's, with its class token and final norm."""
    for init in ("trunc_normal_", "kaiming_uniform_"):  # which takes seconds
        monkeypatch.setattr(nn.init, init, lambda tensor, **_: tensor)
    options = dict(PUBLISHED[name], prefix_tokens=1, final_norm=True)
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False, num_classes=0)
    ours = LTMViT(merger=ltm(0.4), **options).eval().to("meta")
    known = [p.numel() for n, p in ours.named_parameters() if not n.startswith("mergers.")]
    # positions of the class token are added to it
    assert sum(known) + ours.blocks[0].norm1.bias.numel() == sum(
        p.numel() for p in theirs.parameters()
    )
    assert [merger.tokens for merger in ours.mergers.values()] == [81]
    (out,) = ours(torch.empty(1, 3, 100, 132, device="meta"))
    assert out.shape == (1, options.get("embed_dims", 768), 7, 9)

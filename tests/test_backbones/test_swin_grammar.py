"""LTMSwin in mmdet's grammar: arguments, errors, freezing, positions."""

import pytest
import torch
from mmdet.models.backbones import SwinTransformer
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from ltm_det.backbones import LTMSwin
from ltm_det.basics.errors import InputError
from ltm_det.merging import Pool
from tests.test_backbones.harness import (
    assert_images_are_independent,
    difference,
    mergers_of,
    randomise,
)
from tests.test_backbones.swin_cases import CUSTOM, MINI, ONE_STAGE, build, reference_of


@pytest.mark.parametrize(
    "merger, error, message",
    [
        (dict(type="LTM"), ValueError, r"\{'type': 'LTM'\} lacks \['compression_ratio'\]"),
        (dict(compression_ratio=0.5), ValueError, r"lacks \['type'\]"),
        (dict(type="LTN", compression_ratio=0.5), ValueError, "unknown merger type 'LTN'"),
        (dict(type="LTN", compression_ratio=1.0), ValueError, "unknown merger type 'LTN'"),
        (dict(type="LTM", compression_ratio=0), ValueError, r"\(0, 1\].*got 0"),
        (dict(type="LTM", compression_ratio=1.01), ValueError, r"\(0, 1\].*got 1.01"),
        (dict(type="LTM", compression_ratio=(0.5,) * 3), ValueError, "3 entries for 2 stages"),
        (dict(type="LTM", compression_ratio=0.5, scope="span"), ValueError, "scope 'span'.*block"),
        (dict(type="LTM", compression_ratio=1.0, mask="fuzzy"), ValueError, "unknown mask 'fuzzy'"),
        (dict(type="LTM", compression_ratio=0.5, temperature=0), ValueError, "above 0, got 0"),
        (dict(type="LTM", compression_ratio=1.0, ratio=0.5), InputError, "'ratio'"),
        (dict(type="Pool", compression_ratio=1.0, mask="soft"), InputError, "'mask'"),
        (dict(type="LTM", compression_ratio=0.5, dense_blocks=([2], 1)), ValueError, "block 2 of"),
    ],
    ids=str,
)
def test_errors_name_the_bad_value(merger, error, message):
    given = dict(merger)
    with pytest.raises(error, match=message):
        LTMSwin(merger=merger, **MINI)
    assert merger == given


def test_it_is_built_from_a_config():
    merger = ConfigDict(type="LTM", compression_ratio=(0.5, [0.5, 0.25, 1.0]), scope="block")
    model = MODELS.build(ConfigDict(type="LTMSwin", merger=merger, **MINI))
    assert isinstance(model, SwinTransformer) and len(mergers_of(model)) == 2
    assert merger.scope == "block"


def test_frozen_stages(scope):
    model = build(dict(type="LTM", mask="hard"), scope, frozen_stages=1)
    model.train()
    frozen = [model.patch_embed, model.stages[0], model.norm0, model.drop_after_pos]
    for part in frozen:
        assert not any(p.requires_grad for p in part.parameters())
        assert not any(module.training for module in part.modules())
    assert any(isinstance(m, Pool) or hasattr(m, "step") for m in model.stages[0].modules())
    for part in (model.stages[1], model.norm1):
        assert all(p.requires_grad for p in part.parameters())
        assert all(module.training for module in part.modules())
    images = torch.randn(2, 3, 37, 50)
    one, two = model(images), model(images)  # only what is not frozen is stochastic
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1], two[1])
    model.eval()
    assert not any(module.training for module in model.modules())


def test_only_the_patch_embedding_is_frozen_by_zero():
    model = build(dict(type="LTM"), frozen_stages=0).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith("patch_emb")}


@pytest.mark.parametrize("out_indices", [(0, 1, 2), (2,), (1, 2), (0,)])
def test_out_indices(out_indices):
    sizes = dict(CUSTOM, window_size=4)
    merger = dict(type="LTM", compression_ratio=0.5)
    model = randomise(LTMSwin(merger=merger, **{**sizes, "out_indices": out_indices}))
    whole = randomise(LTMSwin(merger=merger, **{**sizes, "out_indices": (0, 1, 2)}))
    own = model.state_dict()
    whole.load_state_dict({**whole.state_dict(), **own})
    images = torch.randn(2, 3, 37, 50)
    outs, every = model(images), whole(images)
    assert difference(outs, [every[i] for i in out_indices]) == 0
    assert all(map_.is_contiguous() for map_ in outs)
    assert [f"norm{i}.weight" in own for i in range(3)] == [i in out_indices for i in range(3)]


@pytest.mark.parametrize("pretrain", [32, (24, 40)])
def test_position_embedding_is_mmdets_at_its_own_size(pretrain):
    options = dict(use_abs_pos_embed=True, pretrain_img_size=pretrain)
    model = build(None, **options)
    assert model.absolute_pos_embed.abs().min() > 0
    images = torch.randn(2, 3, *((pretrain, pretrain) if isinstance(pretrain, int) else pretrain))
    with torch.no_grad():
        assert difference(model(images), reference_of(model, **options)(images)) < 1e-4


@pytest.mark.parametrize("size", [(1, 1), (33, 65), (24, 40), (40, 24), (8, 200)])
def test_position_embedding_at_other_sizes(float64, size):
    """One that is the same everywhere is a bias, at any size."""
    options = dict(use_abs_pos_embed=True, pretrain_img_size=(24, 40))
    model, plain = build(dict(type="LTM"), **options), build(dict(type="LTM"))
    plain.load_state_dict({key: model.state_dict()[key] for key in plain.state_dict()})
    bias = torch.randn(8)
    with torch.no_grad():
        model.absolute_pos_embed.copy_(bias.expand_as(model.absolute_pos_embed))
        plain.patch_embed.norm.bias.add_(bias)
        images = torch.randn(2, 3, *size)
        assert difference(model(images), plain(images)) < 1e-9


def test_position_embedding_keeps_its_axes(float64):
    """Seen by the first block's norm: an embedding that grows to the right still does."""
    options = dict(use_abs_pos_embed=True, pretrain_img_size=(24, 40))
    model, seen = build(None, **options), []
    with torch.no_grad():
        grow = torch.arange(10.0).expand(6, 10).reshape(1, 60, 1)
        model.absolute_pos_embed.copy_(grow.expand(-1, -1, 8))
        for parameter in model.patch_embed.parameters():
            parameter.zero_()
        model.drop_after_pos.register_forward_hook(lambda m, args, out: seen.append(out))
        model(torch.randn(1, 3, 52, 68))
    x = seen[0].reshape(13, 17, 8)
    assert (x - x[:1]).abs().max() < 1e-9 and (x.diff(dim=1) > 0).all()
    assert x.min() > -1 and x.max() < 10


def test_windows_of_twelve_as_in_swin_384(float64):
    sizes = dict(ONE_STAGE, window_size=12)
    model = build(dict(type="LTM"), "stage", 0.5, sizes)
    assert model.stages[0].kept == [144] + [64] * 4
    assert_images_are_independent(model, torch.randn(2, 3, 60, 100))

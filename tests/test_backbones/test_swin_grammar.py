"""LTMSwin in mmdet's grammar: arguments, errors, training, precision, copies."""

import pytest
import torch
from mmdet.models.backbones import SwinTransformer
from mmdet.registry import MODELS
from mmengine.config import ConfigDict

from ltm_det.backbones import LTMSwin
from ltm_det.backbones.windows import _shift_mask, _valid
from ltm_det.merging import Pool
from tests.test_backbones.harness import (
    MASKS,
    assert_can_be_copied,
    assert_images_are_independent,
    assert_learns_after_inference,
    assert_same_with_checkpoints,
    assert_works_in_half_precision,
    difference,
    merger_name,
    mergers_of,
    randomise,
)
from tests.test_backbones.swin_cases import CUSTOM, MINI, ONE_STAGE, build, chain_of, reference_of


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
        (dict(type="LTM", compression_ratio=1.0, ratio=0.5), TypeError, "'ratio'"),
        (dict(type="Pool", compression_ratio=1.0, mask="soft"), TypeError, "'mask'"),
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


def test_train_and_eval_return_the_model(scope):
    model = build(dict(type="LTM"), scope)
    assert model.train() is model and model.training
    assert model.train(False) is model and not model.training
    assert model.eval() is model


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


@pytest.mark.parametrize("dense_blocks", [0, ([1], [1])], ids=str)
def test_checkpointing_changes_nothing(float64, ltm, scope, dense_blocks):
    plain, checkpointed = (
        build(dict(ltm, dense_blocks=dense_blocks), scope, with_cp=cp, drop_path_rate=0.3)
        for cp in (False, True)
    )
    assert all(block.with_cp for stage in checkpointed.stages for block in stage.blocks)
    assert_same_with_checkpoints(plain, checkpointed, torch.randn(2, 3, 37, 50))


def test_checkpointing_keeps_less(scope):
    """Blocks really run anew in the backward pass."""
    runs = []
    model = build(dict(type="LTM", mask="hard"), scope, with_cp=True).train()
    model.stages[1].blocks[1].norm1.register_forward_pre_hook(lambda *_: runs.append(1))
    model(torch.randn(2, 3, 37, 50, requires_grad=True))[-1].sum().backward()
    assert len(runs) == 2


def test_drop_path_is_per_image(float64, merger, scope):
    """One block with a drop path, 24 equal images: attention and MLP are there or not, wholly."""
    sizes = dict(ONE_STAGE, depths=(2,))
    model = build(merger, scope, 0.5, sizes, drop_path_rate=0.5).train()
    ((start, _, _),) = chain_of(model.stages[0])
    assert start == 1
    for module in mergers_of(model).values():
        module.eval()  # no noise but the drop path's
    images = torch.randn(1, 3, 37, 50).expand(24, -1, -1, -1)
    (out,) = model(images)
    distinct = []
    for one in out:
        if not any((one - other).abs().max() < 1e-9 for other in distinct):
            distinct.append(one)
    assert 2 <= len(distinct) <= 4
    # kept updates are doubled, as the mean demands: with both dropped, block 0's output is left
    alone = build(None, sizes=dict(sizes, depths=(1,)))
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if k in alone.state_dict()})
    (expected,) = alone(images[:1])
    assert sum((one - expected[0]).abs().max() < 1e-9 for one in distinct) == 1


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


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (31, 33), (4, 4), (5, 100)], ids=str)
@pytest.mark.parametrize("window", [4, 7, 12])
def test_any_size(merger, scope, size, window):
    model = build(merger, scope, window_size=window)
    for batch in (1, 2):
        outs = model.train(batch == 2)(torch.randn(batch, 3, *size))
        h, w = -(-size[0] // 4), -(-size[1] // 4)
        assert [m.shape for m in outs] == [
            (batch, 8, h, w),
            (batch, 16, (h + 1) // 2, (w + 1) // 2),
        ]
        assert all(m.isfinite().all() for m in outs)
        sum(m.sum() for m in outs).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


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


@pytest.mark.parametrize("merger", [MASKS[0], dict(type="Pool")], ids=merger_name)
def test_half_precision(merger, scope):
    """Where nothing is chosen: a hard choice between near ties may turn over."""
    assert_works_in_half_precision(build(merger, scope), torch.randn(2, 3, 37, 50))


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_hard_masks_in_half_precision(scope, low, training):
    """Finite forward and backward, though many merged tokens are empty: 16 make do with few."""
    model = build(dict(type="LTM", mask="hard", dense_blocks=0), scope, 0.3).train(training)
    images = torch.randn(2, 3, 37, 50)
    with torch.autocast("cpu", low):
        outs = model(images)
    sum(m.float().sum() for m in outs).backward()
    assert all(m.isfinite().all() for m in outs)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        outs = model.to(low)(images.to(low))
    assert all(m.isfinite().all() and m.dtype == low for m in outs)


def test_copies(merger, scope):
    assert_can_be_copied(build(merger, scope), torch.randn(2, 3, 37, 50))


def test_training_after_inference(float64, merger, scope):
    _valid.cache_clear()
    _shift_mask.cache_clear()
    assert_learns_after_inference(build(merger, scope), torch.randn(2, 3, 37, 50))


def test_inference_mode_changes_nothing_in_other_dtypes():
    """Masks are cached by size alone, and serve models of every dtype."""
    model, images = build(dict(type="LTM")), torch.randn(2, 3, 37, 50)
    with torch.no_grad():
        low, full = model(images), model.double()(images.double())
        again = model.float()(images)
    assert difference(low, again) == 0
    assert max((a.double() - b).abs().max() for a, b in zip(low, full)) < 1e-4


def test_windows_of_twelve_as_in_swin_384(float64):
    sizes = dict(ONE_STAGE, window_size=12)
    model = build(dict(type="LTM"), "stage", 0.5, sizes)
    assert model.stages[0].kept == [144] + [64] * 4
    assert_images_are_independent(model, torch.randn(2, 3, 60, 100))

"""What every backbone with merged tokens must hold to, in whichever way it merges."""

import pytest
import torch

from ltm_det.backbones.common.windows import _shift_mask, _valid
from tests.test_backbones.harness import (
    MASKS,
    assert_can_be_copied,
    assert_further_padding_reaches_no_further,
    assert_gradients_reach_mergers,
    assert_images_are_independent,
    assert_learns_after_inference,
    assert_padded_tokens_are_not_read,
    assert_same_with_checkpoints,
    assert_works_in_half_precision,
    difference,
    merger_name,
    mergers_of,
)


def some_images(batch=2):
    """Of 10 x 13 tokens: windows of 4 x 4 are padded at the bottom and at the right."""
    return torch.randn(batch, 3, 37, 50)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("ratio", [0.06, 0.3, 0.7])
def test_image_of_one_colour_is_merged_without_loss(float64, family, merger, training, ratio):
    """Attention among equal tokens gives what one of them gives, so that in an unpadded map all
    tokens stay equal, and merging loses nothing."""
    model = family.build({**merger, **family.layouts["start"]}, ratio=ratio, **family.equal)
    dense = family.dense(model, **family.equal)
    images = torch.randn(2, 3, 1, 1).expand(-1, -1, 64, 32)
    with torch.no_grad():
        assert difference(model.train(training)(images), dense(images)) < 1e-9


def test_images_are_independent(float64, family, layout, merger):
    model = family.build({**merger, **family.layouts[layout]})
    assert_images_are_independent(model, some_images(3))


def test_padded_tokens_are_not_read(float64, family, layout, merger, monkeypatch):
    model = family.build({**merger, **family.layouts[layout]}, **family.unread)
    assert_padded_tokens_are_not_read(model, some_images(), monkeypatch)


def test_further_padding_reaches_no_further(float64, family, layout, merger):
    """A wide map of 16 windows, of which the last is cut off, in a batch of a wider one."""
    if family.local is None:
        pytest.skip("the family says why")
    model = family.build({**merger, **family.layouts[layout]}, **family.local)
    dense = family.dense(model, **family.local)
    images = torch.randn(1, 3, 30, 249)
    assert_further_padding_reaches_no_further(dense, model, images, (0, 60), 4)
    tall = torch.randn(1, 3, 249, 30)
    assert_further_padding_reaches_no_further(dense, model, tall, (60, 20), 4)


def test_gradients_reach_every_mask_module(float64, family, layout, ltm):
    model = family.build({**ltm, **family.layouts[layout]})
    assert_gradients_reach_mergers(model, some_images())


def test_gradients_reach_every_mask_module_from_its_own_start(family, layout, ltm):
    """U = 0, S_0 that pools: as training begins."""
    model = family.make({**ltm, **family.layouts[layout]})
    model.init_weights()
    assert all(merger.step.abs().max() == 0 for merger in mergers_of(model).values())
    assert_gradients_reach_mergers(model, some_images())


def test_every_parameter_takes_part(family, layout, ltm):
    """As distributed training demands."""
    model = family.build({**ltm, **family.layouts[layout]}).train()
    sum(m.sum() for m in model(some_images())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_train_and_eval_return_the_model(family):
    model = family.build(dict(type="LTM"))
    assert model.train() is model and model.training
    assert model.train(False) is model and not model.training
    assert model.eval() is model


def test_checkpointing_changes_nothing(float64, family, layout, ltm):
    plain, checkpointed = (
        family.build({**ltm, **family.layouts[layout]}, with_cp=cp, drop_path_rate=0.3)
        for cp in (False, True)
    )
    assert_same_with_checkpoints(plain, checkpointed, some_images())


def test_checkpointing_keeps_less(family, layout):
    """Blocks really run anew in the backward pass."""
    merger = dict(type="LTM", mask="hard", **family.layouts[layout])
    model, runs = family.build(merger, with_cp=True).train(), {}
    for name, module in model.named_modules():
        if name.endswith(family.once):  # of a block
            runs[name] = 0

            def count(*_, name=name):
                runs[name] += 1

            module.register_forward_pre_hook(count)
    model(some_images().requires_grad_())[-1].sum().backward()
    assert runs and set(runs.values()) == {2}


def test_drop_path_is_per_image(float64, family, merger):
    """One block with a drop path, 24 equal images: attention and MLP are there or not, wholly."""
    merger = {**merger, **family.layouts["later"]}
    if merger["type"] == "LTM":
        merger["detail"] = 0  # it is no block's, so that no block's drop path drops it
    model = family.build(merger, drop_path_rate=0.5, **family.depth(2)).train()
    (module,) = mergers_of(model).values()
    module.eval()  # no noise but the drop path's
    images = some_images(1)
    (out,) = model(images.expand(24, -1, -1, -1))
    distinct = []
    for one in out:
        if not any((one - other).abs().max() < 1e-9 for other in distinct):
            distinct.append(one)
    assert 2 <= len(distinct) <= 4
    # kept updates are doubled, as the mean demands: with both dropped, block 0's output is left
    (expected,) = family.dense(model, **family.depth(1))(images)
    assert sum((one - expected[0]).abs().max() < 1e-9 for one in distinct) == 1


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (31, 33), (4, 4), (5, 100)], ids=str)
@pytest.mark.parametrize("window", [4, 7, 12])
def test_any_size(family, merger, size, window):
    model = family.build(merger, window_size=window)
    for batch in (1, 2):
        outs = model.train(batch == 2)(torch.randn(batch, 3, *size))
        maps = family.maps(*map(family.tokens, size))
        assert [m.shape for m in outs] == [(batch, *shape) for shape in maps]
        assert all(m.isfinite().all() and m.is_contiguous() for m in outs)
        sum(m.sum() for m in outs).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("merger", [MASKS[0], dict(type="Pool")], ids=merger_name)
def test_half_precision(family, layout, merger):
    """Where nothing is chosen: a hard choice between near ties may turn over."""
    model = family.build({**merger, **family.layouts[layout]})
    assert_works_in_half_precision(model, some_images())


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_hard_masks_in_half_precision(family, low, training):
    """Finite forward and backward, though many merged tokens are empty: 16 make do with few."""
    merger = dict(type="LTM", mask="hard", **family.layouts["start"])
    model, images = family.build(merger, ratio=0.3).train(training), some_images()
    with torch.autocast("cpu", low):
        outs = model(images)
    sum(m.float().sum() for m in outs).backward()
    assert all(m.isfinite().all() for m in outs)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        outs = model.to(low)(images.to(low))
    assert all(m.isfinite().all() and m.dtype == low for m in outs)


def test_copies(family, layout, merger):
    assert_can_be_copied(family.build({**merger, **family.layouts[layout]}), some_images())


def test_training_after_inference(float64, family, layout, merger):
    _valid.cache_clear()
    _shift_mask.cache_clear()
    model = family.build({**merger, **family.layouts[layout]})
    assert_learns_after_inference(model, some_images())


def test_inference_mode_changes_nothing_in_other_dtypes(family):
    """Masks are cached by size alone, and serve models of every dtype."""
    model, images = family.build(dict(type="LTM")), some_images()
    with torch.no_grad():
        low, full = model(images), model.double()(images.double())
        again = model.float()(images)
    assert difference(low, again) == 0
    assert max((a.double() - b).abs().max() for a, b in zip(low, full)) < 1e-4


def test_no_image_at_all(family, merger):
    outs = family.build(merger)(some_images(0))
    assert [m.shape for m in outs] == [
        (0, *shape) for shape in family.maps(*map(family.tokens, (37, 50)))
    ]

"""What timm's scripts ask of a model: heads, layer-wise rates, weight decay, recomputation."""

import copy

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay

from ltm_det.basics.errors import InputError
from tests.test_backbones.harness import randomise

NAMES = [
    "ltm_mobilevit_xs",
    "ltm_efficientvit_b1",
    "ltm_vit_small_patch16_224",
    "ltm_swin_tiny_patch4_window7_224",
]


@pytest.fixture(params=NAMES)
def model(request):
    return timm.create_model(request.param, num_classes=7)


def images(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_heads_are_replaced(model):
    assert model.get_classifier().out_features == 7
    model.reset_classifier(3)
    assert model.num_classes == 3 and model.get_classifier().out_features == 3
    pooled = model.eval().forward_head(model.forward_features(images()), pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    assert model(images()).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images()).shape == (2, model.head_hidden_size)


def test_every_parameter_has_its_layer(model):
    for coarse in (False, True):
        layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert layers.keys() == dict(model.named_parameters()).keys()
        last = max(layers.values())
        assert all(layers[name] == last for name in layers if name.startswith("head."))
        first = {name for name, layer in layers.items() if layer == 0}
        starts = ("backbone.stem", "backbone.patch_embed", "backbone.p")
        assert first and all(name.startswith(starts) for name in first)
        if not coarse:
            assert last > 8 and all(
                name.startswith("head.") for name in layers if layers[name] == last
            )
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    assert max(group["lr_scale"] for group in groups) == 1


def test_mergers_and_positions_do_not_decay(model):
    names = model.no_weight_decay()
    own = {n for n, _ in model.named_parameters() if ".merger" in n}
    assert own and own <= names
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.named_parameters():
        if name in names:
            assert id(parameter) not in decayed


def test_recomputation_changes_nothing(model):
    randomise(model)
    if not model.recomputes:
        with pytest.raises(InputError, match="grad-checkpointing"):
            model.set_grad_checkpointing()
        return
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    for each in (model, other):
        each(images()).square().sum().backward()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        if one.grad is None:
            assert two.grad is None, name
        else:
            torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_batch_norms_learn_and_every_parameter_is_trained(model):
    x, before = images(), copy.deepcopy(model.state_dict())
    model.train()(x).square().sum().backward()
    after = model.state_dict()
    means = [name for name in before if name.endswith("running_mean")]
    assert all((before[name] != after[name]).any() for name in means)
    still = {name for name, p in model.named_parameters() if p.grad is None}
    assert not still

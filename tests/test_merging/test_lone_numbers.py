"""Learned numbers have one dimension, for FSDP; they had none in older checkpoints."""

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from ltm_det.backbones.common.weights import load_accounted
from ltm_det.merging import LTM, MERGERS, build_merger
from tests.test_backbones import swin_cases, vit_cases
from tests.test_backbones.harness import randomise

LONE = ("log_affinity", "merge_threshold", "prune_threshold", "step.rate")
KINDS = {name: dict(type=name) for name in MERGERS} | {
    "LTM-gradient": dict(type="LTM", update="gradient", clusters=4, classes=3)
}
HOW_MANY = {"LTM": 1, "LTM-gradient": 2, "LTMP": 2}  # the others have none
FAMILIES = {"swin": swin_cases.make, "vit": vit_cases.make}


@pytest.fixture(params=KINDS.items(), ids=KINDS)
def case(request):
    return request.param


def build(kind) -> nn.Module:
    return build_merger(dim=6, window=4, tokens=7, **kind)


def older(model: nn.Module) -> dict[str, torch.Tensor]:
    """Its state dict as it was saved before."""
    return {
        name: value.clone().squeeze() if name.endswith(LONE) else value.clone()
        for name, value in model.state_dict().items()
    }


def assert_same(model: nn.Module, other: nn.Module) -> None:
    own, others = model.state_dict(), other.state_dict()
    assert own.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in own.items())


def test_no_parameter_is_without_a_dimension(case):
    """FSDP shards the first one."""
    name, kind = case
    shapes = {key: tuple(value.shape) for key, value in build(kind).named_parameters()}
    assert () not in shapes.values()
    lone = [shape for key, shape in shapes.items() if key.endswith(LONE)]
    assert lone == [(1,)] * HOW_MANY.get(name, 0)


@pytest.mark.parametrize("load", [nn.Module.load_state_dict, load_state_dict])
def test_a_merger_loads_older_state(case, load):
    """By torch and by mmengine; what is handed over stays as it was."""
    name, kind = case
    saved, merger = randomise(build(kind)), build(kind)
    state = older(saved)
    assert sum(v.ndim == 0 for v in state.values()) == HOW_MANY.get(name, 0)
    before = {key: value.shape for key, value in state.items()}
    load(merger, state, strict=True)
    assert_same(merger, saved)
    assert before == {key: value.shape for key, value in state.items()}


def test_a_number_does_not_pass_for_a_table():
    state = LTM(6, 4, 7).state_dict() | {"step": torch.tensor(1.0)}
    with pytest.raises(RuntimeError, match="size mismatch for step"):
        LTM(6, 4, 7).load_state_dict(state)


@pytest.mark.parametrize("kind", [KINDS["LTM"], KINDS["LTMP"], KINDS["LTM-gradient"]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_backbone_loads_older_state_without_a_word(family, kind):
    """By its own accounting, of a file or within a detector; a number is nothing to resample."""
    saved = randomise(FAMILIES[family](kind))
    state = older(saved)
    assert any(v.ndim == 0 for name, v in state.items() if name.endswith(LONE))
    model = FAMILIES[family](kind)
    assert load_accounted(model.family, model, state) == ""
    assert_same(model, saved)
    detector = nn.ModuleDict(dict(backbone=FAMILIES[family](kind)))
    detector.load_state_dict({f"backbone.{name}": value for name, value in state.items()})
    assert_same(detector["backbone"], saved)


@pytest.mark.parametrize("family", FAMILIES)
def test_older_models_load_newer_state(family):
    """The accounting takes a number as a number either way."""
    saved, model = (randomise(FAMILIES[family](dict(type="LTM")), seed) for seed in (0, 1))
    for module in model.modules():
        if isinstance(module, LTM):
            module.log_affinity = nn.Parameter(module.log_affinity.detach().squeeze())
    assert load_accounted(model.family, model, saved.state_dict()) == ""
    values = {name: value.squeeze() for name, value in saved.state_dict().items()}
    assert all(torch.equal(v.squeeze(), values[name]) for name, v in model.state_dict().items())

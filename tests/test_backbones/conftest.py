"""Fixtures of the backbones' tests."""

import pytest
import torch

from ltm_det.merging import MERGERS as KINDS
from tests.test_backbones import (
    convnext_cases,
    efficientvit_cases,
    mobilevit_cases,
    pvt_cases,
    swin_cases,
    vit_cases,
)
from tests.test_backbones.checkpoints import randomise
from tests.test_backbones.harness import LAYOUTS, MASKS, MERGERS, Family, merger_name
from tests.test_backbones.swin_checkpoints import BACKBONES

CASES = (swin_cases, vit_cases, mobilevit_cases, efficientvit_cases, pvt_cases, convnext_cases)
FAMILIES = {name: family for cases in CASES for name, family in cases.FAMILIES.items()}


EXECUTED = {name: family for name, family in FAMILIES.items() if family.executed}


def pytest_collection_modifyitems(config, items):
    """What a family does not take is not asked of it; of a sampled one, the usual runs each time:
    one layout, soft masks or ToMe, windows of 4, evaluation mode."""
    left, out = [], []
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        family = given.get("family")
        merger = given.get("rival", given.get("merger", given.get("ltm", MASKS[0])))
        if not isinstance(family, Family):
            left.append(item)
        elif not family.gridless and not KINDS[merger["type"]].keeps_grid:
            out.append(item)
        else:
            usual = merger in (MASKS[0], dict(type="ToMe")) and given.get("layout") in USUAL
            usual = usual and given.get("window", 4) == 4 and not given.get("training")
            if family.sampled and not usual:
                item.add_marker(pytest.mark.slow)
            left.append(item)
    items[:] = left
    config.hook.pytest_deselected(items=out)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


USUAL = (None, "later")


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


@pytest.fixture(params=swin_cases.SCOPES)
def scope(request):
    return request.param


@pytest.fixture(params=MERGERS, ids=merger_name)
def merger(request):
    return request.param


@pytest.fixture(params=MASKS, ids=merger_name)
def ltm(request):
    return request.param


@pytest.fixture(scope="module")
def detector_state():
    """State dict of a dense mmdet backbone, with its relative_position_index buffers."""
    torch.manual_seed(0)
    return randomise(BACKBONES["mmdet"]()).state_dict()

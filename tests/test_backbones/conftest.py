"""Fixtures of the backbones' tests."""

import pytest
import torch

from tests.test_backbones import efficientvit_cases, mobilevit_cases, swin_cases, vit_cases
from tests.test_backbones.checkpoints import randomise
from tests.test_backbones.harness import LAYOUTS, MASKS, MERGERS, Family, merger_name
from tests.test_backbones.swin_checkpoints import BACKBONES

CASES = (swin_cases, vit_cases, mobilevit_cases, efficientvit_cases)
FAMILIES = {name: family for cases in CASES for name, family in cases.FAMILIES.items()}


def pytest_collection_modifyitems(items):
    """Of families with a long list of merges, one layout and the plain mergers run each time."""
    for item in items:
        given = getattr(item, "callspec", None)
        found = given.params.get("family") if given else None
        if not isinstance(found, Family) or not found.sampled:
            continue
        merger = given.params.get("merger", given.params.get("ltm", MASKS[0]))
        usual = merger == MASKS[0] and given.params.get("layout", "later") == "later"
        if not usual:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


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

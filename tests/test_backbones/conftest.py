"""Fixtures of the backbones' tests."""

import pytest
import torch

from tests.test_backbones import swin_cases, vit_cases
from tests.test_backbones.checkpoints import randomise
from tests.test_backbones.harness import LAYOUTS, MASKS, MERGERS, merger_name
from tests.test_backbones.swin_checkpoints import BACKBONES

FAMILIES = {**swin_cases.FAMILIES, **vit_cases.FAMILIES}


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

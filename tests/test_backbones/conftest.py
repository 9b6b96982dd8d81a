"""Fixtures of the backbones' tests."""

import pytest
import torch

from tests.test_backbones.harness import MASKS, MERGERS, merger_name
from tests.test_backbones.swin_cases import SCOPES


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=SCOPES)
def scope(request):
    return request.param


@pytest.fixture(params=MERGERS, ids=merger_name)
def merger(request):
    return request.param


@pytest.fixture(params=MASKS, ids=merger_name)
def ltm(request):
    return request.param

"""Fixtures of the mergers' tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _float64():
    """Oracles are compared in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)

"""Where an explosion comes from: the first module, the pictures."""

import pytest
import torch
from torch import Tensor, nn

from ltm_det.engine.explosion import first_bad_module, pictures


class Parts(nn.Module):
    """A model as the search for the first bad module takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.data_preprocessor = lambda batch, training: batch

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).sum()

    def _run_forward(self, batch: Tensor, mode: str) -> Tensor:
        return self(batch)


@pytest.mark.parametrize("name", ["first", "second"])
def test_the_first_bad_module_is_found(name: str) -> None:
    model = Parts()
    assert first_bad_module(model, torch.ones(1, 2)) is None
    model.get_submodule(name).weight.data[0, 0] = torch.inf
    assert first_bad_module(model, torch.ones(1, 2)) == (
        f"{name} (Linear), and not finite are its own weight"
    )


def test_an_error_on_the_way_does_not_hide_it() -> None:
    model = Parts()
    model.first.weight.data[0, 0] = torch.nan
    model.second.forward = None
    assert first_bad_module(model, torch.ones(1, 2)).startswith("first (Linear)")


def test_pictures_of_no_known_batch() -> None:
    assert pictures([torch.zeros(1)]) == pictures(None) == "unknown"

"""Every merger under ``torch.jit.trace``, alone and in small backbones, against the eager pass."""

import pytest
import torch
from torch import Tensor, nn

from ltm_det.merging import MERGERS, build_merger
from tests.test_backbones import swin_cases, vit_cases
from tests.test_backbones.harness import difference, randomise

DIM, WINDOW, TOKENS = 6, 4, 7
FAMILIES = {
    "swin-stage": lambda name: swin_cases.build(dict(type=name), scope="stage"),
    "swin-block": lambda name: swin_cases.build(dict(type=name), scope="block"),
    "vit": lambda name: vit_cases.build(dict(type=name)),
}
# what a trace says of every size that Python reads
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit")


class RoundTrip(nn.Module):
    """Merges tokens and restores a function of the merged ones."""

    def __init__(self, merger: nn.Module) -> None:
        super().__init__()
        self.merger = merger

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        merging, _ = self.merger(x, None, valid)
        merged = merging.merge(x)
        return merged, merging.update(x, torch.sin(merged))


def some_tokens() -> tuple[Tensor, Tensor]:
    """(2, 3, N, C), and which of them are real, (3, N): in each window some."""
    valid = torch.rand(3, WINDOW**2) < 0.6
    valid[:, 0] = True
    return torch.randn(2, 3, WINDOW**2, DIM), valid


@pytest.mark.parametrize("name", MERGERS)
def test_a_traced_merger_is_the_eager_one(name):
    merger = build_merger(name, dim=DIM, window=WINDOW, tokens=TOKENS)
    model = RoundTrip(randomise(merger)).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, some_tokens(), check_trace=False)
        for _ in range(3):
            tokens = some_tokens()
            assert difference(traced(*tokens), model(*tokens)) < 1e-12


@pytest.mark.parametrize("name", MERGERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_traced_backbone_is_the_eager_one(family, name):
    """Also for another image than was traced, of a size that is padded."""
    model = FAMILIES[family](name)
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(1, 3, 24, 44), check_trace=False)
        image = torch.randn(1, 3, 24, 44)
        assert difference(traced(image), model(image)) < 1e-12

"""Whatever a config says, it is refused by an error of ours, or gives finite maps of its sizes.

Seeds are kept: what a seed once found stays found.
"""

import pytest
import torch

from ltm_det.basics.errors import InputError
from tests.test_backbones.fuzz_cases import UNTIL, build, case, channels, finite, sizes

CASES, CHUNK = max(UNTIL), 50


def outcome(seed: int) -> bool:
    """Whether a seed's config can be built; then it is run."""
    cfg, shape, train = case(seed)
    torch.manual_seed(seed)
    try:
        model = build(cfg)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return False
    images = torch.randn(2, channels(cfg), *shape, requires_grad=train)
    model.train(train)
    with torch.set_grad_enabled(train):
        maps = model(images)
    assert [tuple(x.shape[1:]) for x in maps] == sizes(cfg, shape)
    assert finite(maps)
    if train:
        sum(x.square().mean() for x in maps).backward()
        assert finite([p.grad for p in model.parameters() if p.grad is not None])
    return True


@pytest.mark.parametrize("start", range(0, CASES, CHUNK))
def test_refused_or_finite(start: int) -> None:
    built = 0
    for seed in range(start, start + CHUNK):
        try:
            built += outcome(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {case(seed)}") from error
    assert CHUNK // 4 < built < CHUNK * 4 // 5  # neither of the two is rare

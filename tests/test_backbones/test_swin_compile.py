"""torch.compile makes one graph of LTMSwin, which gives what eager gives."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from ltm_det.merging import MERGERS
from tests.test_backbones.swin_cases import ONE_STAGE, build

TINY = dict(ONE_STAGE, depths=(3,), num_heads=(2,))  # padded, shifted and merged all the same
TINIEST = dict(TINY, depths=(2,))  # for a compiler that takes long: the second block shifts, merged
IMAGES = torch.randn(1, 3, 34, 50)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_same(model, compiled, images, train):
    """Features, and in training all gradients."""
    results = []
    for run in (model.train(train), compiled):
        torch.manual_seed(0)
        with torch.set_grad_enabled(train):
            outs = run(images)
        results.append(list(outs))
        if train:
            learned = [p for p in model.parameters() if p.requires_grad]
            loss = sum(m.square().mean() for m in outs)
            results[-1] += torch.autograd.grad(loss, learned, allow_unused=True)
    for eager, own in zip(*results, strict=True):
        assert (eager is None) == (own is None)
        assert eager is None or (eager - own).abs().max() <= 1e-4 * eager.abs().max().clamp(min=1)


def one_graph(model, backend="aot_eager", **options):
    return torch.compile(model, fullgraph=True, backend=backend, **options)


@pytest.mark.parametrize("merger", [None, *sorted(MERGERS)])
def test_one_graph(merger):
    model = build(None if merger is None else dict(type=merger), sizes=TINY)
    assert_same(model, one_graph(model, "eager", dynamic=False), IMAGES, train=False)


def test_one_graph_with_gradients():
    model = build(dict(type="LTM"), sizes=TINY)
    assert_same(model, one_graph(model, dynamic=False), IMAGES, train=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "merger, scope",
    [(None, "stage"), *((name, "stage") for name in sorted(MERGERS)), ("LTM", "block")],
)
def test_one_graph_of_every_merger_with_gradients(merger, scope):
    model = build(None if merger is None else dict(type=merger), scope, sizes=TINY)
    assert_same(model, one_graph(model, dynamic=False), IMAGES, train=True)


@pytest.mark.parametrize(
    "merger",
    [
        pytest.param(merger, marks=[pytest.mark.slow] * (merger not in (None, "LTM")))
        for merger in [None, *sorted(MERGERS)]
    ],
)
@pytest.mark.parametrize(
    "train", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eval", "train"]
)
def test_one_graph_for_all_sizes(merger, train):
    """Compiled once; padded windows on one side, on both, on none."""
    model = build(None if merger is None else dict(type=merger), sizes=TINIEST)
    graphs = CompileCounter()
    compiled = one_graph(model, graphs, dynamic=True)
    for height, width in ((36, 52), (32, 100), (64, 64), (28, 64)):
        assert_same(model, compiled, torch.randn(2, 3, height, width), train)
    assert graphs.frame_count == 1


@pytest.mark.slow
def test_sizes_that_are_no_multiple_of_the_patch():
    """mmdet's patch embedding pads them, in a graph of their own."""
    model = build(dict(type="LTM"), sizes=TINIEST)
    graphs = CompileCounter()
    compiled = one_graph(model, graphs, dynamic=True)
    for height, width in ((34, 50), (45, 61), (50, 33)):
        assert_same(model, compiled, torch.randn(2, 3, height, width), train=False)
    assert graphs.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_inductor(train):
    model = build(dict(type="LTM"), sizes=TINIEST)
    assert_same(model, one_graph(model, "inductor"), IMAGES, train)


@pytest.mark.slow
def test_inductor_for_all_sizes():
    model = build(dict(type="LTM"), sizes=TINIEST)
    compiled = one_graph(model, "inductor", dynamic=True)
    for height, width in ((36, 52), (44, 60)):
        assert_same(model, compiled, torch.randn(2, 3, height, width), train=False)

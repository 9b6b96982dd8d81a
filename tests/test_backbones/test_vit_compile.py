"""torch.compile makes one graph of LTMViT, in evaluation and in training, that changes nothing."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.test_backbones.harness import difference
from tests.test_backbones.vit_cases import build

MERGERS = {
    "dense": None,
    "LTM": dict(type="LTM", merge_at=1),
    "Pool": dict(type="Pool", merge_at=1),
    "ToMe": dict(type="ToMe", merge_at=1),
}
# of 10 x 13 and 16 x 9 tokens: windows of 4 x 4 are padded on one side or the other
SIZES = [(37, 50), (61, 34)]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# block 0 is global, block 1 attends in windows; block 3 is global and merged
SMALL = dict(depth=2, global_blocks=(0,))


SLOW = {*MERGERS} - {"dense", "LTM"}


@pytest.fixture(
    params=[pytest.param(own, marks=[pytest.mark.slow] * (own in SLOW)) for own in MERGERS]
)
def model(request):
    return build(MERGERS[request.param], depth=4)


def step(model, run, images):
    """Features and all gradients of a training step."""
    model.train().zero_grad()
    outs = run(images)
    outs[0].square().mean().backward()
    return [outs[0].detach(), *(p.grad.clone() for p in model.parameters())]


def assert_the_same(model, compiled, size, training):
    images = torch.randn(2, 3, *size)
    if training:
        assert difference(step(model, compiled, images), step(model, model, images)) < 1e-4
    else:
        with torch.no_grad():
            assert difference(compiled(images), model(images)) < 1e-4


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_one_graph(model, training):
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_the_same(model, compiled, SIZES[0], training)


@pytest.mark.slow
@pytest.mark.parametrize(
    "merger, training",
    [
        ("dense", True),
        ("ToMe", False),
        ("LTM", False),
        ("LTM", True),
    ],
)
def test_one_graph_for_all_sizes(merger, training):
    """Compiled once."""
    model = build(MERGERS[merger], depth=4)
    graphs = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    for size in [*SIZES, (64, 64)]:
        assert_the_same(model, compiled, size, training)
    assert graphs.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_inductor(training):
    model = build(MERGERS["LTM"], **SMALL)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    assert_the_same(model, compiled, SIZES[0], training)

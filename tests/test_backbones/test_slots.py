"""What stands in the place of a module that the fast way reads or passes over is called all the
same, also where it is of a class that the fast way knows elsewhere."""

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from torch import nn

from ltm_det.cpu import door, products
from tests.test_backbones.conftest import EXECUTED
from tests.test_backbones.harness import difference

pytestmark = pytest.mark.skipif(not products.HAS_ONEDNN, reason="torch was built without oneDNN")

MERGERS = {"dense": None, "LTM": dict(type="LTM"), "Pool": dict(type="Pool")}
# From a module to what takes its place.
OTHERS = {
    "with one more": lambda module: nn.Sequential(module, nn.GELU()),
    "wrapped": nn.Sequential,
    "identity": lambda module: nn.Identity(),
    "GELU": lambda module: nn.GELU(),
    "dropout": lambda module: nn.Dropout(0.5),
    "drop path": lambda module: DropPath(0.5),
}


def executed(model):
    """Paths of a block, and of a patch merging, that go the fast way, and of all inside them."""
    kinds = {}
    for name, module in model.named_modules():
        if type(module) in model.executors and [*module.children()]:
            kinds.setdefault(type(module), []).append(name)
    chosen = [names[-1] for names in kinds.values()]
    assert chosen
    return [
        f"{name}.{path}"
        for name in chosen
        for path, _ in model.get_submodule(name).named_modules()
        if path
    ]


def outcome(model, images):
    """The maps, or the kind of error."""
    torch.manual_seed(0)
    with torch.no_grad():
        try:
            return model(images)
        except Exception as error:
            return type(error)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("merger", MERGERS)
@pytest.mark.parametrize("name", EXECUTED)
def test_another_module_counts(name, merger, other, monkeypatch):
    family, kind = EXECUTED[name], MERGERS[merger]
    model = family.build(None if kind is None else {**kind, **family.layouts["later"]})
    model.train("drop" in other)
    images, known, changed = torch.randn(1, 3, 37, 50), door.DTYPES, 0
    before = outcome(model, images)
    for path in executed(model):
        parent, _, last = path.rpartition(".")
        owner = model.get_submodule(parent)
        own = owner._modules[last]
        owner._modules[last] = OTHERS[other](own).train(model.training)
        fast = outcome(model, images)
        monkeypatch.setattr(door, "DTYPES", {})
        plain = outcome(model, images)
        monkeypatch.setattr(door, "DTYPES", known)
        owner._modules[last] = own
        if isinstance(plain, type) or isinstance(fast, type):
            assert plain is fast, path
            continue
        assert difference(plain, fast) < 1e-4, path
        same = [m.shape for m in plain] == [m.shape for m in before]
        changed += not same or difference(plain, before) > 1e-3
    assert changed or other == "wrapped"


def test_methods_of_its_own_count(monkeypatch):
    """Of an instance, of a class, and of what torch.compile calls in its place."""

    def twice(self, x):
        return 2 * torch.nn.functional.linear(x, self.weight, self.bias)

    model = EXECUTED["swin-block"].build(None)
    block = model.stages[0].blocks[0]
    images = torch.randn(1, 3, 37, 50)
    before = outcome(model, images)
    with monkeypatch.context() as patch:
        patch.setattr(nn.Linear, "forward", twice)
        assert difference(outcome(model, images), before) > 1e-3
    assert difference(outcome(model, images), before) == 0
    with monkeypatch.context() as patch:
        patch.setattr(block, "_forward", lambda x, *args: (2 * x, None), raising=True)
        assert difference(outcome(model, images), before) > 1e-3
    called = []
    block.ffn._compiled_call_impl = lambda *args, **kw: (
        called.append(1),
        block.ffn.forward(*args, **kw),
    )[1]
    assert difference(outcome(model, images), before) < 1e-4 and called


def test_a_default_device_is_not_that_of_indices():
    """Which follow the tensors: no fast way where new tensors would be elsewhere."""
    x = torch.randn(2, 3)
    with torch.device("cpu"):
        assert door.fast(x)
    with torch.device("meta"):
        assert not door.fast(x)


@pytest.mark.parametrize("merger", MERGERS)
@pytest.mark.parametrize("name", EXECUTED)
def test_many_gradients_at_once(name, merger):
    """As a Jacobian's rows are computed."""
    family, kind = EXECUTED[name], MERGERS[merger]
    model = family.build(None if kind is None else {**kind, **family.layouts["later"]})
    x = torch.randn(1, 3, 37, 50, requires_grad=True)
    out = model(x)[-1]
    rows = torch.randn(3, *out.shape)
    (found,) = torch.autograd.grad(out, x, rows, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(out, x, row, retain_graph=True)[0] for row in rows]
    assert difference([found], [torch.stack(expected)]) < 1e-4

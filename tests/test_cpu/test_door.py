"""When the door to the fast way is shut: each case that needs the plain layers."""

from contextlib import contextmanager

import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from torch import nn
from torch.nn.modules import module as global_hooks
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ltm_det.cpu import door, products
from ltm_det.cpu.door import Executor, choose, fast, plain, untouched

pytestmark = pytest.mark.skipif(not products.HAS_ONEDNN, reason="torch was built without oneDNN")


class Looks(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Listens(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextmanager
def hook_on_all_modules():
    handle = global_hooks.register_module_forward_pre_hook(lambda *_: None)
    yield
    handle.remove()


OBSERVED = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a dispatch mode": Looks,
    "a function mode": Listens,
    "torch's counter of flops": lambda: FlopCounterMode(display=False),
    "a hook on all modules": hook_on_all_modules,
    "forward gradients": torch.autograd.forward_ad.dual_level,
}


def test_open_for_plain_images_on_the_cpu():
    x = torch.randn(2, 3)
    assert fast(x) and fast(nn.Parameter(x))
    assert fast(x.bfloat16()) == products.HAS_BFLOAT16
    with torch.inference_mode():
        assert fast(torch.randn(2, 3))
    with torch.device("cpu"):  # a function mode of torch's own
        assert fast(x)


@pytest.mark.parametrize("way", products.WAYS)
def test_in_training_only_where_it_pays(way, monkeypatch):
    monkeypatch.setenv(products.VARIABLE, way)
    x = torch.randn(2, 3)
    assert fast(x) == (way == products.ONEDNN)
    with torch.no_grad():
        assert fast(x)


@pytest.mark.parametrize("way", products.WAYS)
@torch.no_grad()
def test_small_parts_go_fast_only_where_torchs_products_are_slow(way, monkeypatch, two_threads):
    monkeypatch.setenv(products.VARIABLE, way)
    monkeypatch.setattr(door, "LEAST", 100)
    layer = nn.Linear(4, 4)
    executors = {nn.Linear: Executor(run=lambda module, x: "fast")}
    for tokens, goes in ((49, way == products.ONEDNN), (50, True)):  # 100 numbers a thread
        x = torch.randn(tokens, 4)
        assert isinstance(choose(executors, x)(layer, x), str) == goes
    half = {nn.Linear: executors[nn.Linear]._replace(least=0.5)}
    assert choose(half, x)(layer, torch.randn(25, 4)) == "fast"


@pytest.mark.parametrize("observer", OBSERVED.values(), ids=OBSERVED)
def test_shut_where_something_sees_all_operators(observer):
    x = torch.randn(2, 3)
    with observer():
        assert not fast(x)
    assert fast(x)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 3).double(),
        torch.randn(2, 3).half(),
        torch.randn(0, 3),
        torch.randn(2, 3, device="meta"),
    ],
    ids=["float64", "float16", "empty", "meta"],
)
def test_shut_for_other_tensors(x):
    assert not fast(x)


def test_shut_for_subclasses_and_inside_transforms():
    class Own(torch.Tensor):
        pass

    seen = []
    assert not fast(torch.randn(2, 3).as_subclass(Own))
    torch.func.vmap(lambda x: (seen.append(fast(x)), x)[1])(torch.randn(2, 3))
    torch.func.grad(lambda x: (seen.append(fast(x)), x.sum())[1])(torch.randn(2, 3))
    assert seen == [False, False]


def test_shut_while_a_graph_is_made():
    class Asks(nn.Module):
        def forward(self, x):
            seen.append(fast(x))
            return x + 1

    seen = []
    torch.jit.trace(Asks(), torch.randn(2, 3), check_trace=False)
    torch.export.export(Asks(), (torch.randn(2, 3),))
    assert seen and not any(seen)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


Scaled.__name__ = Scaled.__qualname__ = "Linear"


class Times(nn.Module):
    def forward(self, x):
        return 2 * x


class Subclass(nn.Parameter):
    pass


def replace_by_subclass(ffn):
    ffn.layers[1] = Scaled(16, 8)


def own_forward(ffn):
    layer = ffn.layers[1]
    layer.forward = lambda x, forward=layer.forward: 2 * forward(x)


def plain_tensor(ffn):
    """As FSDP 1 has them in a pass."""
    weight = ffn.layers[1]._parameters.pop("weight")
    ffn.layers[1].weight = weight.data


def other_parameter(ffn):
    """As sharded and quantised ones are."""
    ffn.layers[1].weight = Subclass(ffn.layers[1].weight.data)


TOUCHED = {
    "a forward hook": lambda ffn: ffn.layers[1].register_forward_hook(lambda *_: None),
    "a pre-hook": lambda ffn: ffn.layers[1].register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda ffn: ffn.layers[1].register_full_backward_hook(lambda *_: None),
    "a backward pre-hook": lambda ffn: ffn.layers[1].register_full_backward_pre_hook(
        lambda *_: None
    ),
    "a hook deep inside": lambda ffn: ffn.layers[0][1].register_forward_hook(lambda *_: None),
    "a hook on itself": lambda ffn: ffn.register_forward_hook(lambda *_: None),
    "pruning": lambda ffn: prune.random_unstructured(ffn.layers[1], "weight", 0.5),
    "weight norm": lambda ffn: parametrizations.weight_norm(ffn.layers[1]),
    "a parametrisation": lambda ffn: parametrize.register_parametrization(
        ffn.layers[1], "weight", Times()
    ),
    "a subclass of the same name": replace_by_subclass,
    "a wrapper": lambda ffn: ffn.layers.__setitem__(1, nn.Sequential(Times(), ffn.layers[1])),
    "a forward of its own": own_forward,
    "a weight that is no parameter": plain_tensor,
    "a parameter of its own kind": other_parameter,
}


@pytest.mark.parametrize("touch", TOUCHED.values(), ids=TOUCHED)
def test_touched_modules_are_called(touch):
    ffn = FFN(8, 16, act_cfg=dict(type="GELU"))
    assert untouched(ffn, torch.float32)
    called = []
    executors = {FFN: Executor(run=lambda module, x: called.append(module))}
    choose(executors, torch.randn(2, 8))(ffn, torch.randn(2, 8))
    assert called == [ffn]
    touch(ffn)
    assert not untouched(ffn, torch.float32)
    call = choose({FFN: Executor(run=lambda *_: pytest.fail("read"))}, torch.randn(2, 8))
    assert call(ffn, torch.randn(2, 8)).shape == (2, 8)


def test_weights_of_another_dtype_are_not_read():
    ffn = FFN(8, 16, act_cfg=dict(type="GELU"))
    assert not untouched(ffn, torch.bfloat16) and untouched(ffn)
    ffn.layers[1].double()
    assert not untouched(ffn, torch.float32)


def test_modules_that_are_called_anyway_may_be_anything():
    ffn = FFN(8, 16, act_cfg=dict(type="GELU"))
    ffn.layers[1].register_forward_hook(lambda *_: None)
    assert untouched(ffn, torch.float32, called=[ffn.layers[1]])
    assert not untouched(ffn, torch.float32, called=[ffn.layers[0]])


def test_options_that_an_executor_does_not_know():
    ffn = FFN(8, 16, act_cfg=dict(type="ReLU"))
    executors = {FFN: Executor(lambda *_: pytest.fail("read"), serves=lambda module: False)}
    assert choose(executors, torch.randn(2, 8))(ffn, torch.randn(2, 8)).shape == (2, 8)


def test_no_executor_for_a_subclass():
    class Own(FFN):
        pass

    call = choose({FFN: Executor(lambda *_: pytest.fail("read"))}, torch.randn(2, 8))
    assert call(Own(8, 16), torch.randn(2, 8)).shape == (2, 8)


def test_a_shut_door_calls_all(monkeypatch):
    monkeypatch.setattr(door, "DTYPES", {})
    assert choose({FFN: Executor(lambda *_: pytest.fail("read"))}, torch.randn(2, 8)) is plain

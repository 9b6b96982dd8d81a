"""The one door to the fast way on the CPU: whether a pass takes it, and which modules in it do.

A backbone asks once a pass for a function ``call`` and runs its parts by it. What it gives is that
of ``module(*args)``, or on the fast way what an :class:`Executor` makes of the same module. An
executor reads the weights of the modules inside instead of calling them, so that it is taken only
where nothing inside is wrapped, watched, parametrised, sharded or of an unknown kind. The layers
themselves know nothing of it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from ltm_det.cpu import pieces, threads
from ltm_det.cpu.products import HAS_BFLOAT16, HAS_ONEDNN, ONEDNN, way

# Modules that executors know, by the exact name of their class: what derives from one may do
# something else. Ours, under "ltm_det.", belong to them.
KNOWN = {
    "torch.nn.modules": (
        "Conv2d Dropout GELU Identity LayerNorm Linear ModuleList Sequential Unfold"
    ),
    "mmcv.cnn.bricks": "AdaptivePadding Conv2d DropPath FFN Linear PatchEmbed",
    "mmengine.model": "ModuleList Sequential",
    "mmdet.models.layers": "AdaptivePadding PatchEmbed",
    "timm.layers": "DropPath LayerScale Mlp",
}
OURS = "ltm_det."
ROOMS = (OURS, *KNOWN)
# Numbers in a part's input, for each of at most two threads, below which torch's own operators are
# faster where its BLAS is as fast as oneDNN: what pieces cost, and the weights that each of them
# reads, is not won back.
LEAST = 2 * pieces.PIECE
DTYPES = {torch.float32: HAS_ONEDNN, torch.bfloat16: HAS_BFLOAT16}

Call = Callable[..., Any]


class Executor(NamedTuple):
    """How modules of one class run on the fast way.

    Attributes:
        run: (module, *args) to what ``module(*args)`` gives.
        serves: Whether ``run`` knows the options of a module, in the present mode of gradients.
        called: The modules inside that ``run`` calls, as the module itself would.
        slots: Modules inside that ``run`` reads or passes over, by their paths: the names of the
            classes that each may be of.
        least: Share of `LEAST` from which on it pays.
    """

    run: Callable[..., Any]
    serves: Callable[[Any], bool] = lambda module: True
    called: Callable[[Any], Sequence[nn.Module]] = lambda module: ()
    slots: Mapping[str, str] = {}
    least: float = 1.0


def plain(module: nn.Module, *args: Any) -> Any:
    """Calls a module."""
    return module(*args)


def choose(executors: Mapping[type, Executor], x: Tensor) -> Call:
    """How the parts of a backbone are called in this pass, which ``x`` is the input of."""
    if not fast(x):
        return plain

    def call(module: nn.Module, *args: Any) -> Any:
        own = executors.get(type(module))
        if own is None or not large(args[0], own.least):
            return module(*args)
        # what wraps a part may lack what `serves` reads of it
        if not untouched(module, x.dtype, own.called(module)):
            return module(*args)
        known = filled(module, own.slots) and own.serves(module)
        return own.run(module, *args) if known else module(*args)

    return call


def large(x: Tensor, share: float = 1.0) -> bool:
    """Whether there is enough in ``x``, the input of a part, for the fast way to pay: this share of
    `LEAST`."""
    if torch.compiler.is_compiling() or way(x.dtype) == ONEDNN:
        return True
    return x.numel() >= share * LEAST * min(threads.shared(1), 2)


def fast(x: Tensor) -> bool:
    """Whether there is a fast way for a pass of ``x``: on the CPU in a dtype that oneDNN has, where
    it pays in training if there are gradients, and nobody there to see the operators: no graph that
    is traced or exported, no mode, no hook on all modules, none of torch.func's transforms."""
    if x.device.type != "cpu" or not DTYPES.get(x.dtype) or torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or x.numel() == 0:
        return False
    if torch.compiler.is_compiling():
        return not torch.is_grad_enabled()
    if type(x) not in (Tensor, nn.Parameter) or _observed():
        return False
    return not torch.is_grad_enabled() or way(x.dtype) == ONEDNN


def _observed() -> bool:
    """Whether something sees all operators, or all modules."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or not all(map(_makes_on_cpu, _get_current_function_mode_stack()))
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or hooks._has_any_global_hook()
    )


def _makes_on_cpu(mode: Any) -> bool:
    """Whether a mode does no more than to make tensors where they would be made anyway."""
    return isinstance(mode, DeviceContext) and torch.device(mode.device).type == "cpu"


def filled(module: nn.Module, slots: Mapping[str, str]) -> bool:
    """Whether the modules inside are of the classes that an :class:`Executor` names."""
    for path, names in slots.items():
        part: Any = module
        for name in path.split("."):
            part = part._modules.get(name) if isinstance(part, nn.Module) else None
        if type(part).__name__ not in names.split():
            return False
    return True


def untouched(
    module: nn.Module, dtype: torch.dtype | None = None, called: Sequence[nn.Module] = ()
) -> bool:
    """Whether a module and all in it are of known classes, and their weights what they seem.

    Nothing in it is :func:`altered` or has parameters of a kind or a dtype of their own; weights
    are where torch keeps them.

    Args:
        module: Whose weights are to be read.
        dtype: Of the weights. None: any.
        called: Modules inside that may be whatever they are.
    """
    if any(module is other for other in called):
        return True
    if not _known(type(module)) or altered(module):
        return False
    if isinstance(module, (nn.Linear, nn.LayerNorm)) and module._parameters.get("weight") is None:
        return False
    for parameter in module._parameters.values():
        if parameter is not None:
            if type(parameter) is not nn.Parameter or parameter.dtype != (dtype or parameter.dtype):
                return False
            if parameter.layout != torch.strided:
                return False
    return all(untouched(child, dtype, called) for child in module.children())


def _known(kind: type[nn.Module]) -> bool:
    """Also whether its forward comes from where such classes do: nobody has put another there."""
    room, name = kind.__module__, kind.__qualname__
    if not torch.compiler.is_compiling():
        home = getattr(kind.forward, "__module__", "")
        if not home.startswith(ROOMS):
            return False
    if room.startswith(OURS):
        return True
    return any(room.startswith(known) and name in names.split() for known, names in KNOWN.items())


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer whose weights may be read in the place of calling it."""
    return type(module).__name__ == "Linear" and untouched(module)


def altered(module: nn.Module) -> bool:
    """Whether hooks see a module's calls, or it has other methods than its class's, or another way
    to be called."""
    if torch.compiler.is_compiling():  # which follows no more than this
        return watched(module) or "forward" in module.__dict__
    own, kind = module.__dict__, cast(Any, type(module))
    return (
        watched(module)
        or hooks._has_any_global_hook()
        or own.get("_compiled_call_impl") is not None
        or not own.keys().isdisjoint(_methods(kind))
    )


@cache
def _methods(kind: Any) -> frozenset[str]:
    """The names of a class's methods, less those of every module but its forward."""
    names = {name for base in kind.__mro__ for name, value in vars(base).items() if callable(value)}
    return frozenset(names - (vars(nn.Module).keys() - {"forward"}))


def watched(module: nn.Module) -> bool:
    """Whether a module has hooks of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )

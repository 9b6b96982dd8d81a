"""The one door to the fast way on the CPU: whether a pass takes it, and which modules in it do.

A backbone asks once a pass for a function ``call`` and runs its parts by it. What it gives is that
of ``module(*args)``, or on the fast way what an :class:`Executor` makes of the same module. An
executor reads the weights of the modules inside instead of calling them, so that it is taken only
where nothing inside is wrapped, watched, parametrised, sharded or of an unknown kind. The layers
themselves know nothing of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from ltm_det.cpu.products import HAS_BFLOAT16, HAS_ONEDNN, ONEDNN, way

# Modules that executors know, by the exact name of their class: what derives from one may do
# something else. Ours, under "ltm_det.", belong to them.
KNOWN = {
    "torch.nn.modules": "Conv2d Dropout GELU Identity LayerNorm Linear ModuleList Sequential",
    "mmcv.cnn.bricks": "AdaptivePadding Conv2d DropPath FFN Linear PatchEmbed",
    "mmengine.model": "ModuleList Sequential",
    "mmdet.models.layers": "AdaptivePadding PatchEmbed",
    "timm.layers": "DropPath LayerScale Mlp",
}
OURS = "ltm_det."
DTYPES = {torch.float32: HAS_ONEDNN, torch.bfloat16: HAS_BFLOAT16}

Call = Callable[..., Any]


class Executor(NamedTuple):
    """How modules of one class run on the fast way.

    Attributes:
        run: (module, *args) to what ``module(*args)`` gives.
        serves: Whether ``run`` knows the options of a module, in the present mode of gradients.
        called: The modules inside that ``run`` calls, as the module itself would.
    """

    run: Callable[..., Any]
    serves: Callable[[Any], bool] = lambda module: True
    called: Callable[[Any], Sequence[nn.Module]] = lambda module: ()


def plain(module: nn.Module, *args: Any) -> Any:
    """Calls a module."""
    return module(*args)


def choose(executors: Mapping[type, Executor], x: Tensor) -> Call:
    """How the parts of a backbone are called in this pass, which ``x`` is the input of."""
    if not fast(x):
        return plain

    def call(module: nn.Module, *args: Any) -> Any:
        own = executors.get(type(module))
        # what wraps a part may lack what `serves` reads of it
        if own is None or not untouched(module, x.dtype, own.called(module)):
            return module(*args)
        return own.run(module, *args) if own.serves(module) else module(*args)

    return call


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
    if torch.is_grad_enabled() and way(x.dtype) != ONEDNN:
        return False
    return type(x) in (Tensor, nn.Parameter) and not _observed()


def _observed() -> bool:
    """Whether something sees all operators, or all modules."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or any(not isinstance(m, DeviceContext) for m in _get_current_function_mode_stack())
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or hooks._has_any_global_hook()
    )


def untouched(
    module: nn.Module, dtype: torch.dtype | None = None, called: Sequence[nn.Module] = ()
) -> bool:
    """Whether a module and all in it are of known classes, and their weights what they seem.

    Nothing in it has a hook, another forward than its class's, or parameters of a kind or a dtype
    of their own; weights are where torch keeps them.

    Args:
        module: Whose weights are to be read.
        dtype: Of the weights. None: any.
        called: Modules inside that may be whatever they are.
    """
    if any(module is other for other in called):
        return True
    if not _known(type(module)) or watched(module) or "forward" in module.__dict__:
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


def _known(kind: type) -> bool:
    room, name = kind.__module__, kind.__qualname__
    if room.startswith(OURS):
        return True
    return any(room.startswith(known) and name in names.split() for known, names in KNOWN.items())


def watched(module: nn.Module) -> bool:
    """Whether a module has hooks of its own."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )

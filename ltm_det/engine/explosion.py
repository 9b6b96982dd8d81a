"""Where an explosion comes from: which picture, which module, which tensor; and what the guard asks
of a run's optimiser and processes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ltm_det.basics.finite import is_finite, named, not_finite, tensors_in

PICTURES = 8  # that a message names


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of each tensor, (n,) in float32, without a wait for the device."""
    if not tensors:
        return torch.zeros(0)
    return torch.stack([norm.float() for norm in torch._foreach_norm(tensors)])


def samples_in(batch: Any) -> Iterator[Any]:
    """The data samples in a batch, as a data loader gives it."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        for part in batch:
            yield from samples_in(part)
    elif hasattr(batch, "metainfo"):
        yield batch


def picture(sample: Any) -> str:
    """A picture's id and path, as far as the data's pipeline kept them."""
    known = sample.metainfo
    number, path = known.get("img_id"), known.get("img_path")
    if number is None and path is None:
        return "a picture without img_id and img_path"
    return " ".join(str(part) for part in (number, path and f"({path})") if part is not None)


def pictures(batch: Any) -> str:
    """The pictures of a batch."""
    found = [picture(sample) for sample in samples_in(batch)]
    more = f" and {len(found) - PICTURES} more" if len(found) > PICTURES else ""
    return ", ".join(found[:PICTURES]) + more if found else "unknown"


def faults_of_data(batch: Any) -> list[str]:
    """What of a batch is not finite: pixels, or boxes of annotations, each with its picture."""
    faults = []
    if isinstance(batch, Mapping):
        inputs, samples = batch.get("inputs"), list(samples_in(batch.get("data_samples")))
        if inputs is None or len(inputs) != len(samples):  # several views of one picture, say
            return [fault for part in batch.values() for fault in faults_of_data(part)]
        for image, sample in zip(inputs, samples, strict=True):
            if not all(map(is_finite, tensors_in(image))):
                faults.append(f"pixels of picture {picture(sample)}")
            boxes = getattr(sample.get("gt_instances"), "bboxes", None)
            boxes = getattr(boxes, "tensor", boxes)
            if isinstance(boxes, Tensor) and not is_finite(boxes):
                faults.append(f"boxes in the annotations of picture {picture(sample)}")
    return faults


class _FoundError(Exception):
    """Ends a pass whose first fault has been found."""


def first_bad_module(
    model: nn.Module, batch: Any, optim_wrapper: OptimWrapper | None = None
) -> str | None:
    """The first module, in the order of the forward pass, with finite inputs and other outputs.

    The pass is one of training on the batch. Afterwards the model is not to be trained on, since
    statistics of its norms may have changed.

    Args:
        model: A detector.
        batch: As its data loader gives it.
        optim_wrapper: Whose precision the pass is to have.

    Returns:
        A sentence with its name; None where all outputs are finite.
    """
    found: list[str] = []

    def look(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if all(map(is_finite, tensors_in(output))):
            return
        if not all(map(is_finite, tensors_in([args, kwargs]))):
            return
        own = not_finite(dict(module.named_parameters()) | dict(module.named_buffers()))
        cause = f", and not finite are its own {named(own)}" if own else ""
        found.append(f"{name or 'the detector'} ({type(module).__name__}){cause}")
        raise _FoundError

    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.SyncBatchNorm):
                module.eval()  # which waits for no other process
            hook = _hook_of(look, name)
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        if optim_wrapper is not None:
            stack.enter_context(optim_wrapper.optim_context(model))
        # a pass over what is not finite may end anywhere; what was found by then counts
        with suppress(Exception):
            model._run_forward(model.data_preprocessor(batch, True), mode="loss")
    return found[0] if found else None


def _hook_of(look: Any, name: str) -> Any:
    return lambda module, args, kwargs, output: look(name, module, args, kwargs, output)


def gradients_told(names: Sequence[str], total: int) -> str:
    """Of which parameters gradients are not finite, given in the order of the forward pass.

    Gradients go from the losses backwards, so that the last one is where they broke.
    """
    if not names:
        return "the gradients' norm is too large for float32"
    return (
        f"gradients of {len(names)} of {total} tensors are not finite, nearest to the losses that "
        f"of {names[-1]}"
    )


def grown_most(
    names: Sequence[str], now: Iterable[float], at_start: Iterable[float]
) -> tuple[str, float, float]:
    """The tensor whose norm grew most since training began, its norm and that of the start."""
    rows = zip(names, now, at_start, strict=True)
    return max(rows, key=lambda row: row[1] / max(row[2], 1.0))


def wrappers(runner: Runner) -> Iterator[OptimWrapper]:
    wrapper = runner.optim_wrapper
    yield from wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]


def scales(wrapper: OptimWrapper) -> bool:
    """Whether it has a loss scaler, which looks at gradients and leaves updates out."""
    scaler = getattr(wrapper, "loss_scaler", None)
    return scaler is not None and scaler.is_enabled()


def clips_by_norm(wrapper: OptimWrapper) -> bool:
    """Whether it clips gradients by the norm that the guard reckons too."""
    given = wrapper.clip_grad_kwargs
    return bool(given) and wrapper.clip_func is clip_grad_norm_ and given.get("norm_type", 2) == 2


def start_of(runner: Runner) -> str:
    return str(runner._load_from or ("a checkpoint of this run" if runner._resume else "init_cfg"))


def of_all(verdict: int) -> int:
    """The gravest verdict of all processes."""
    if get_world_size() == 1:
        return int(verdict)
    worst = torch.tensor(int(verdict))
    all_reduce(worst, "max")
    return int(worst)

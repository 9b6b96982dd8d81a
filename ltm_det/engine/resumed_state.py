"""What a checkpoint says of an optimizer and of learning rates, looked at before a run goes on."""

from collections.abc import Mapping
from typing import Any

import torch

from ltm_det.basics.arguments import is_number
from ltm_det.basics.errors import InputError

KINDS = ("betas", "momentum", "alpha", "rho", "lr_decay")  # options that tell optimizers apart
MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
REMEDY = (
    "Resume an older checkpoint, or start anew from its weights with --cfg-options load_from=FILE"
)


def check_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Checks that the state is of such an optimizer; torch would find out in a step.

    Raises:
        InputError: It is another one's, or has no numbers where there have to be.
    """
    groups = [each["param_groups"] for each in (vars(optimizer), state)]
    sizes, others = ([len(group["params"]) for group in each] for each in groups)
    for own, theirs in zip(*groups):
        if odd := {key for key in KINDS if (key in own) != (key in theirs)}:
            kind = type(optimizer).__name__
            raise InputError(
                f"the checkpoint's optimizer is no {kind}: {sorted(odd)} differ\nResume with the "
                "config of its run, or start anew from its weights with --cfg-options "
                "load_from=FILE"
            )
        check_numbers("optimizer", own, theirs)
    if sizes != others:
        here, there = sum(sizes), sum(others)
        raise InputError(
            f"the checkpoint's optimizer has {there} parameters, this run's {here}: other ones are "
            "frozen\nResume with the frozen_stages of its run, or start anew from its weights "
            "with --cfg-options load_from=FILE"
        )


def check_moments(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Checks that what an optimizer has gathered is there, and of its parameters' shapes.

    Raises:
        InputError: It is not.
    """
    if not isinstance(state, Mapping):
        raise InputError(f"the checkpoint is damaged: its optimizer's state is {state!r}\n{REMEDY}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, gathered in state.items():
        if index not in range(len(parameters)) or not isinstance(gathered, Mapping):
            raise InputError(
                f"the checkpoint is damaged: its optimizer's state has {index!r}\n{REMEDY}"
            )
        for name in MOMENTS & gathered.keys():
            value, shape = gathered[name], parameters[index].shape
            if value is not None and value.shape not in (shape, torch.Size()):
                raise InputError(
                    f"the checkpoint is damaged: {name!r} of parameter {index} has the shape "
                    f"{tuple(value.shape)}, the parameter {tuple(shape)}\n{REMEDY}"
                )


def check_schedules(own: Any, state: Any) -> None:
    """Checks that what a checkpoint says of learning rates is of this run's schedules.

    Raises:
        InputError: There are more or fewer, or no numbers where there have to be.
    """
    if isinstance(own, Mapping) != isinstance(state, Mapping) or len(own) != len(state):
        raise InputError(
            f"the checkpoint has {len(state)} schedules of parameters (param_scheduler), the "
            f"config {len(own)}\nResume with the config of its run"
        )
    if isinstance(own, Mapping):
        for name, rows in own.items():
            check_schedules(rows, state.get(name) or ())
        return
    for scheduler, theirs in zip(own, state):
        known = scheduler.state_dict()
        if odd := sorted(map(str, theirs.keys() - known.keys())):
            raise InputError(
                f"the checkpoint's param_schedulers are no {type(scheduler).__name__}: they have "
                f"{odd}\nResume with the config of its run"
            )
        check_numbers("param_schedulers", known, theirs)


def check_numbers(what: str, own: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raises InputError where a checkpoint has something else in the place of a number."""
    for key, value in own.items():
        if isinstance(value, (list, tuple)) and all(map(is_number, value)):
            given = theirs.get(key, value)
            same = isinstance(given, (list, tuple)) and len(given) == len(value)
            if not same or not all(map(is_number, given)):
                raise InputError(
                    f"the checkpoint is damaged: {key!r} of its {what!r} is {given!r:.60}, not "
                    f"{len(value)} numbers\nResume an older one"
                )
        good = key not in theirs or is_number(theirs[key]) or isinstance(theirs[key], torch.Tensor)
        if is_number(value) and not good:
            raise InputError(
                f"the checkpoint is damaged: {key!r} of its {what!r} is {theirs[key]!r:.60}, no "
                f"number\n{REMEDY}"
            )

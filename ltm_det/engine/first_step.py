"""What goes wrong in the first steps of a run, told as the part of the config where it did.

What mmdet's classes take without a word may break in their first forward pass, from deep inside.
Later steps have shown that the config can be run: their errors stay what they are.
"""

from collections.abc import Mapping
from types import FrameType
from typing import Any

from mmengine.evaluator import Evaluator
from mmengine.runner import BaseLoop
from torch import nn

from ltm_det.basics.errors import frames_of
from ltm_det.engine.config_files import entries

# Steps; in the very first there may be no object, and so nothing that its loss is asked for.
FIRST = 10
# Where a runner keeps the iteration at which it started, see ProgressHook.
START = "started_at"
LOADER = "DataLoader worker process"


def failed_first(error: BaseException, cfg: Any) -> str | None:
    """Where one of the first steps failed.

    Args:
        error: That it was left by.
        cfg: The whole config.

    Returns:
        As 'model.neck (FPN) failed in training step 1'; None: it was a later step.
    """
    frames = [*frames_of(error)]
    own = [frame.f_locals.get("self") for frame in frames]
    loops = [frame for frame in frames if isinstance(frame.f_locals.get("self"), BaseLoop)]
    model = next((obj for obj in own if isinstance(obj, nn.Module)), None)
    part = part_of(loops[-1].f_locals["self"]) if loops else ""
    if any(isinstance(obj, Evaluator) for obj in own):
        step = "the evaluation"
    elif loops:
        if (done := steps_of(loops[-1])) >= FIRST:
            return None
        step = f"{'training' if part == 'train' else 'test'} step {done + 1}"
    elif model is not None:
        step = "the first forward pass"
    else:
        return None
    whole = getattr(cfg, "_cfg_dict", cfg)
    names = named(getattr(model, "module", model))  # of one that many processes train
    for obj in reversed(own):
        if isinstance(obj, (BaseLoop, Evaluator)):
            break
        if id(obj) in names:
            path = in_model(names[id(obj)], whole)
        else:
            path = by_type(type(obj).__name__, whole, part)
        if path is not None:
            return f"{path} ({type(obj).__name__}) failed in {step}"
    where = "a worker of the data loader" if LOADER in str(error) else "a part of the config"
    return f"{where} failed in {step}"


def part_of(loop: BaseLoop) -> str:
    """What the settings of a loop's data begin with."""
    return "train" if hasattr(loop, "max_iters") else type(loop).__name__[:-4].lower()


def steps_of(frame: FrameType) -> int:
    """Those that a loop has done since the start of this process; validation and test count them in
    their frames alone."""
    loop = frame.f_locals["self"]
    if hasattr(loop, "max_iters"):
        return loop.iter - getattr(loop.runner, START, 0)
    return frame.f_locals.get("idx", 0)


def named(model: nn.Module | None) -> dict[int, str]:
    """The names of a model's modules, and of what these hold, such as samplers, by ``id``."""
    names: dict[int, str] = {}
    for name, module in model.named_modules() if model is not None else ():
        prefix = f"{name}." if name else ""
        own = {key: value for key, value in vars(module).items() if hasattr(value, "__dict__")}
        names |= {id(value): f"{prefix}{key}" for key, value in own.items()}
        names[id(module)] = name
    return names


def in_model(name: str, cfg: Mapping) -> str:
    """The part of a config's model that a module belongs to, as deep as the config goes."""
    path, part = ["model"], cfg.get("model")
    for key in name.split("."):
        if isinstance(part, (list, tuple)) and key.isdigit() and int(key) < len(part):
            part = part[int(key)]
        elif isinstance(part, Mapping) and isinstance(part.get(key), (Mapping, list, tuple)):
            part = part[key]
        else:
            break
        path.append(key)
    return ".".join(path)


def by_type(kind: str, cfg: Any, first: str) -> str | None:
    """The path to the first part of a config that has a type, those that begin with ``first``
    before all others."""
    found = [
        path
        for path, value in entries(cfg)
        if isinstance(value, Mapping) and str(value.get("type")).rpartition(".")[2] == kind
    ]
    return next((path for path in found if path.startswith(first)), *found[:1] or [None])

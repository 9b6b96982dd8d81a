"""What goes wrong while something is built from a config, told as what is wrong in the config.

Registries raise whatever a class raises on its arguments, from deep inside, and name no field. The
frames of the error's traceback know which part of the config was being built.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import cv2
import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import build_functions
from mmengine.runner import runner as runners

from ltm_det.basics.arguments import arguments_of, nearest
from ltm_det.basics.errors import TRACEBACK, InputError, frames_of
from ltm_det.engine.config_files import entries
from ltm_det.engine.first_step import LOADER, failed_first

BUILD = build_functions.__file__
# Methods of mmengine's Runner that make parts of themselves, beside those named build_...
MAKES = ("__init__", "from_cfg", "wrap_model", "scale_lr", "setup_env")
# What a process sees of another one's end.
LOST = re.compile(r"connection (closed|reset)|broken pipe|connection was aborted", re.IGNORECASE)
# Errors that bad arguments lead to; what the disk or the network does is told elsewhere.
BAD_VALUES = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    NameError,
    ImportError,
    cv2.error,
)


@contextmanager
def building(cfg: Any) -> Iterator[None]:
    """Inside, an error of what is being built becomes one that names its place in the config.

    So does one of the first steps of a run; later ones stay what they are.

    Args:
        cfg: All that is built of, such as a whole config.

    Raises:
        InputError: Something could not be built, or failed in its first steps.
    """
    try:
        yield
    except BAD_VALUES as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        frames = build_frames(error)
        if frames is None and resumes(error):
            raise InputError(
                f"no run can go on from {cfg.get('load_from')}: {text_of(error)}\nResume an older "
                "checkpoint, or start anew from its weights with --cfg-options load_from=FILE"
            ) from error
        if frames is None:
            if isinstance(error, InputError):
                error.of_a_process = not of_a_hook(error)
                raise
            if (where := failed_first(error, cfg)) is None:
                raise
            words = f"{where}: {text_of(error)}\n{TRACEBACK}=1 shows where"
            if get_world_size() > 1 and LOST.search(str(error)):
                words = "another process of the run has ended: it says why"
            mine = InputError(words)
            mine.of_a_process = True
            raise mine from error
        raise InputError(told(error, cfg, frames)) from error


def build_frames(error: BaseException) -> list[FrameType] | None:
    """Frames of registries at work, the innermost last; None where nothing was being built."""
    frames, at_work = [], False
    for frame in frames_of(error):
        code = frame.f_code
        if code.co_filename == BUILD:
            at_work = True
            if code.co_name == "build_from_cfg":
                frames.append(frame)
        elif code.co_filename == runners.__file__:
            at_work = at_work or code.co_name in MAKES or code.co_name.startswith("build_")
        elif code.co_name == "_call_impl" and not at_work:  # a forward pass
            return None
    return frames if at_work else None


def resumes(error: BaseException) -> bool:
    """Whether it was raised while mmengine's runner read the state of a run."""
    codes = (frame.f_code for frame in frames_of(error))
    return any(c.co_filename == runners.__file__ and c.co_name == "resume" for c in codes)


def of_a_hook(error: BaseException) -> bool:
    """Whether a hook raised it: hooks see the same in all processes."""
    return any(isinstance(frame.f_locals.get("self"), Hook) for frame in frames_of(error))


def told(error: BaseException, cfg: Any, frames: list[FrameType]) -> str:
    """What is wrong, and where."""
    whole = getattr(cfg, "_cfg_dict", cfg)
    path, part = "", whole
    for frame in frames:
        own = frame.f_locals["cfg"]
        if (found := find(part, own)) is not None:
            path, part = ".".join(filter(None, (path, found))), own
        elif (found := find(whole, own)) is not None:  # a loop builds the data that it runs on
            path, part = found, own
    if not frames:  # the runner's own
        return f"the config cannot be run: {text_of(error)}"
    last = frames[-1].f_locals
    cls, own = last.get("obj_cls"), last["cfg"]
    kind = own.get("type") if isinstance(own, Mapping) else None
    where = path or "config"
    if isinstance(error, KeyError) and "registry" in text_of(error) and cls is None:
        return f"{where}.type={kind!r} is unknown: {nearest_types(str(kind), last['registry'])}"
    if not isinstance(own, Mapping) or "type" not in own:
        return f"{where}={short(own)}: give a dict with type"
    name = cls.__name__ if inspect.isclass(cls) else str(kind)
    return f"{where}: {remedy(error, cls, name)}"


def remedy(error: BaseException, cls: Any, name: str) -> str:
    """An error of a class's constructor, with the argument that it is about."""
    text = text_of(error)
    if isinstance(error, TypeError) and inspect.isclass(cls):
        if unknown := re.search(r"unexpected keyword argument '(\w+)'", text):
            return (
                f"{name} has no argument {unknown[1]!r}: {nearest(unknown[1], arguments_of(cls))}"
            )
        if missing := re.search(r"missing \d+ required .*arguments?: (.+)", text):
            return f"{name} lacks {missing[1]}: give a value"
    return text if text.startswith(name) else f"{name}: {text}"


def text_of(error: BaseException) -> str:
    """In one line; of a KeyError the key alone would say nothing."""
    text = str(error.args[0] if error.args else error)
    if "is killed by signal" in text:
        return (
            f"{text.splitlines()[0]} Too little memory? Take fewer num_workers, or a smaller batch"
        )
    if LOADER in text:  # its traceback and then the error
        return text.strip().rpartition("\n")[2]
    text = " ".join(text.split()) or "refused its arguments"
    if isinstance(error, InputError) or (isinstance(error, ValueError) and " " in text):
        return text
    return f"{type(error).__name__}: {text}"


def nearest_types(kind: str, registry: Any) -> str:
    """A remedy for a type that no registry knows."""
    root = registry.root
    known = {name for part in (root, *root.children.values()) for name in part.module_dict}
    near = nearest(kind.rpartition(".")[2], known)
    own = "import what registers it by custom_imports"
    return f"{near} Or {own}" if near.startswith("did") else own


def find(part: Any, own: Any) -> str | None:
    """The path within a part of a config to another one, which may be a copy with more in it."""
    for same in (is_same, is_copy, is_alike):
        for path, value in entries(part):
            if same(value, own):
                return path
    return None


def is_same(value: Any, own: Any) -> bool:
    return value is own


def is_copy(value: Any, own: Any) -> bool:
    """Whether what was built is a value of a config, or one to which more was added."""
    if not isinstance(value, Mapping) or not isinstance(own, Mapping):
        return type(value) is type(own) and value == own
    return is_alike(value, own) and all(own[key] == below for key, below in value.items())


def is_alike(value: Any, own: Any) -> bool:
    """Whether it is, with parts of it changed."""
    both = isinstance(value, Mapping) and isinstance(own, Mapping) and bool(value)
    return both and value.get("type") == own.get("type") and value.keys() <= own.keys()


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

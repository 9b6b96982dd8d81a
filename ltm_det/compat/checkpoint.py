"""Checkpoints of mmengine, loaded by torch's restricted unpickler (``weights_only=True``) alone.

mmengine's checkpoints hold more than tensors: ``HistoryBuffer`` objects with their numpy arrays,
and numpy scalars. Those of other projects' training scripts hold the script's arguments, an
``argparse.Namespace`` of plain values. torch >= 2.6 therefore refuses both. Here exactly those
classes are allow-listed. A checkpoint that names anything else, such as a function to run, is
refused.

With ``load_safely`` all of mmengine's loading is so restricted, on every supported torch and from
wherever a checkpoint comes: torch's own default is unrestricted for URLs, and for files before 2.6.
Files are read in :mod:`.weight_files`, safetensors too; what is wrong with them, and what does not
fit a model, is an InputError that names the file. State dicts are unwrapped in
:mod:`.state_dicts`. So every way in passes here: ``load_from``, ``resume``, ``init_cfg``, the
commands, and mmdet's own functions such as ``init_detector``.
"""

import codecs
import os
import pickle
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import nn

from ltm_det.basics.errors import InputError
from ltm_det.basics.words import brief, some
from ltm_det.compat.state_dicts import origin, under_own_names, weights_of
from ltm_det.compat.weight_files import read_file, read_url, unreadable

URLS = ("http://", "https://", "file://")
RESTRICTED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch reads it where weights_only is not given
WHOLE, BACKBONE = "whole", "backbone"
_part: ContextVar[str | None] = ContextVar("part", default=None)  # that has to fit
NO_MATTER = ("relative_position_index", "num_batches_tracked")  # made by the model, or counters
MISFIT = "The model and loaded state dict do not match exactly"  # mmengine's error, where strict
OTHER_MODEL = "Give the checkpoint of this config's model, or the config of this checkpoint's"

_mmengines_load = mmengine_checkpoint.load_state_dict
# The default statistics of HistoryBuffer, which its pickles name as getattr(HistoryBuffer, name).
_STATISTICS = ("min", "max", "current", "mean")
_DTYPES = ("bool", "int32", "int64", "float32", "float64")


def allow_mmengine_checkpoints() -> None:
    """Allow-list what such checkpoints hold, for ``torch.load(..., weights_only=True)``.

    A checkpoint with a user's own classes, or with a statistic added by
    ``HistoryBuffer.register_statistics``, still needs
    ``torch.serialization.add_safe_globals([...])`` by that user.
    """
    rebuild_array = np.zeros(0).__reduce__()[0]
    rebuild_scalar = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            Namespace,
            _named("builtins", "getattr", _history_buffer_statistic),
            codecs.encode,  # how pickles hold bytes; newer torch allows it itself
            np.ndarray,
            np.dtype,
            *(type(np.dtype(name)) for name in _DTYPES),
            # The same two functions under the names that numpy 1 and numpy 2 save.
            *(
                _named(f"numpy.{core}.multiarray", name, function)
                for core in ("core", "_core")
                for name, function in (("_reconstruct", rebuild_array), ("scalar", rebuild_scalar))
            ),
        ]
    )


def load_safely() -> None:
    """Make mmengine read, and load into models, in the way that stands at the top."""
    CheckpointLoader.register_scheme("", loader=load_from_local, force=True)
    CheckpointLoader.register_scheme(URLS, loader=load_from_http, force=True)
    mmengine_checkpoint.load_from_http = load_from_http  # torchvision:// and others call it
    CheckpointLoader.load_checkpoint = classmethod(_load_checkpoint)
    mmengine_checkpoint.load_state_dict = _load_state_dict


def load_from_local(filename: str, map_location: Any = None) -> Any:
    return read_file(os.path.expanduser(filename), map_location)


def load_from_http(filename: str, map_location: Any = None, *args: Any, **options: Any) -> Any:
    return read_url(filename, map_location)


def check_weights(file: str) -> None:
    """Looks, before the work, at what a local file holds; its weights themselves are not read.

    Raises:
        InputError: It holds no weights, or cannot be read.
    """
    glanced(file)


def glanced(file: str) -> dict[str, Any]:
    """What a local file holds, as mmengine knows it; its weights stay on the disk.

    Raises:
        InputError: See :func:`check_weights`.
    """
    try:
        return weights_of(read_file(os.path.expanduser(file), "cpu", glance=True), file)[0]
    except InputError:
        raise
    except ValueError as error:
        raise unreadable(file, str(error)) from error


@contextmanager
def _restricted() -> Iterator[None]:
    """Makes torch.load restricted where a loader leaves that open, as the one of s3:// does."""
    before = os.environ.get(RESTRICTED)
    os.environ[RESTRICTED] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[RESTRICTED]
        else:
            os.environ[RESTRICTED] = before


def _load_checkpoint(
    cls: type, filename: str, map_location: Any = None, logger: Any = "current"
) -> dict[str, Any]:
    """mmengine's ``CheckpointLoader.load_checkpoint``: safe, and with one kind of error."""
    filename = str(filename)
    loader = cls._get_checkpoint_loader(filename)
    print_log(f"Loads checkpoint by {loader.__name__[10:]} backend from path: {filename}", logger)
    try:
        with _restricted():
            content = loader(filename, map_location)
    except (InputError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # other loaders: an unknown name of a zoo, a missing client, ...
        raise unreadable(filename, brief(f"{type(error).__name__}: {error}", 3)) from error
    try:
        content, note = weights_of(content, filename)
    except ValueError as error:
        raise unreadable(filename, str(error)) from error
    if note:
        print_log(f"{filename}: {note}", logger)
    if isinstance(content.get("meta"), Mapping) and "config" in content["meta"]:
        # a config's text, of mmcv 1.x: to compare numbers of GPUs, mmengine would run it on resume
        content["meta"] = {k: v for k, v in content["meta"].items() if k != "config"}
    return content


@contextmanager
def fitting(part: str = WHOLE) -> Iterator[None]:
    """Where mmengine would load what fits and only warn of the rest, it is an InputError here.

    Args:
        part: `WHOLE`: all has to fit. `BACKBONE`: all of that has to, as where training goes on
            from a detector of other classes.
    """
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


def _load_state_dict(
    module: nn.Module, state_dict: dict[str, Any], strict: bool = False, logger: Any = None
) -> None:
    """mmengine's ``load_state_dict``: under the model's names, with errors that name the file.

    Raises:
        InputError: Something has to fit and does not, or no name is the model's.
    """
    file = origin(state_dict)
    module = module.module if is_model_wrapper(module) else module
    own = module.state_dict()
    try:
        state, note = under_own_names(own, state_dict)
        if note:
            print_log(f"{file}: {note}", logger or "current")
        _check_names(module, own, state)
        # mmdet's Swin makes them itself, and its checkpoints have them; ours do not
        made = {key: own[key] for key in own if key.endswith("relative_position_index")}
        complete = OrderedDict({**made, **state})
        if hasattr(module, BACKBONE) and not any(k.startswith(f"{BACKBONE}.") for k in own):
            # an exported file in the backbone's place has weights of its own
            for key in [k for k in complete if k.startswith(f"{BACKBONE}.")]:
                del complete[key]
        complete._metadata = getattr(state, "_metadata", None) or {}
        _mmengines_load(module, complete, strict or _part.get() == WHOLE, logger)
    except ValueError as error:
        raise InputError(f"{file} does not fit the model: {error}") from error
    except RuntimeError as error:
        if not str(error).startswith(MISFIT):
            raise
        why = brief(str(error).removeprefix(MISFIT))
        raise InputError(f"{file} does not fit the model\n{why}\n{OTHER_MODEL}") from error


def _check_names(module: nn.Module, own: dict[str, Any], state: dict[str, Any]) -> None:
    """Raises ValueError where mmengine would only warn. A backbone of ours says it all itself."""
    if own and set(own).isdisjoint(state) and not hasattr(module, "family"):
        raise ValueError(
            f"they have no name in common\n- checkpoint: {some(state)}\n- model: {some(own)}\n"
            "Weights of a backbone alone, a classifier's say, belong in its "
            "init_cfg=dict(type='Pretrained', checkpoint=...), not in load_from"
        )
    known = {key: value for key, value in own.items() if isinstance(state.get(key), torch.Tensor)}
    wrong = [k for k, v in known.items() if v.is_floating_point() > state[k].is_floating_point()]
    if wrong:
        raise ValueError(f"{some(wrong)} are {state[wrong[0]].dtype}, no numbers of such weights")
    backbone = getattr(module, BACKBONE, None)
    if _part.get() != BACKBONE or backbone is None or hasattr(backbone, "family"):
        return
    names = [k for k in own if k.startswith(f"{BACKBONE}.") and not k.endswith(NO_MATTER)]
    missing = [key for key in names if key not in state]
    misfits = [key for key in names if key in state and state[key].shape != own[key].shape]
    if missing or misfits:
        told = {"missing": missing, "of other sizes": misfits}
        lines = [f"- {len(keys)} {what}: {some(keys)}" for what, keys in told.items() if keys]
        raise ValueError("\n".join(["its backbone is another", *lines, OTHER_MODEL]))


def _history_buffer_statistic(owner: Any, name: str) -> Callable:
    """The only ``getattr`` a checkpoint may ask for; the real one would reach any object."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise pickle.UnpicklingError(
            f"a checkpoint asks for getattr({owner!r}, {name!r}); allowed are only the statistics "
            f"{_STATISTICS} of HistoryBuffer. Load it only if you trust its source."
        )
    return getattr(HistoryBuffer, name)


def _named(module: str, name: str, function: Callable) -> Callable:
    """``function`` as torch's allow-list, which goes by name, is to find it."""

    def wrapper(*args):
        return function(*args)

    wrapper.__module__, wrapper.__name__, wrapper.__qualname__ = module, name, name
    return wrapper

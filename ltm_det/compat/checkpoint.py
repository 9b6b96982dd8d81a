"""Checkpoints of mmengine, loaded by torch's restricted unpickler (``weights_only=True``) alone.

mmengine's checkpoints hold more than tensors: ``HistoryBuffer`` objects with their numpy arrays,
and numpy scalars. Those of other projects' training scripts hold the script's arguments, an
``argparse.Namespace`` of plain values. torch >= 2.6 therefore refuses both. Here exactly those
classes are allow-listed. A checkpoint that names anything else, such as a function to run, is
refused.

With ``load_safely``, mmengine's loading from a local path and from http(s), which includes the
``torchvision://``, ``modelzoo://`` and ``openmmlab://`` names that resolve to a URL, is restricted
on every supported torch: torch's own default is unrestricted for URLs, and for files before 2.6.
What stays at torch's default are the ``s3://``, ``petrel://`` and ``pavi://`` loaders, and
``openmmlab://`` names that resolve to a local file: restricted from torch 2.6 on, **not** on torch
2.4 and 2.5.
"""

import codecs
import os
import pickle
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

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
    """Make mmengine load local and downloaded checkpoints with ``weights_only=True``."""
    CheckpointLoader.register_scheme(prefixes="", loader=_load_from_local, force=True)
    load_url = torch.hub.load_state_dict_from_url
    mmengine_checkpoint.load_url = partial(load_url, weights_only=True)


def _load_from_local(filename: str, map_location: Any = None) -> dict:
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f"{filename} can not be found.")
    try:
        return torch.load(filename, map_location=map_location, weights_only=True)
    except (KeyError, IndexError, EOFError) as error:  # of a text, say, or of half a file
        raise ValueError(f"{filename} is no checkpoint, or a part of one: {error!r}") from error


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

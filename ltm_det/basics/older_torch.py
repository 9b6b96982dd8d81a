"""What torch 2.4 lacks of what is asked of it here."""

import collections.abc
import typing

import torch
from torch._library import infer_schema


def complete() -> None:
    """Puts in place what is missing; nothing where all is there."""
    know_sequences()
    if not hasattr(torch.compiler, "is_exporting"):
        # True while anything is traced, torch.export included
        torch.compiler.is_exporting = torch.compiler.is_compiling


def know_sequences() -> None:
    """Lets ``torch.library.custom_op`` read ``collections.abc.Sequence`` and ``list`` in the
    signatures of operators: torch 2.4 knows only their twins in ``typing``."""
    known = getattr(infer_schema, "SUPPORTED_PARAM_TYPES", {})
    for kind, schema in list(known.items()):
        origin = typing.get_origin(kind)
        if origin in (collections.abc.Sequence, list):
            known.setdefault(origin[typing.get_args(kind)], schema)

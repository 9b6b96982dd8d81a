"""torch 2.4 lacks two things; they are put in place without a change to what is there."""

import collections.abc
import typing

import pytest
import torch
from torch._library import infer_schema

from ltm_det.basics.older_torch import complete


def test_sequences_are_known_by_both_names(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = typing.Sequence[typing.Optional[torch.Tensor]]  # noqa: UP006, UP045  as torch has it
    known = {tensors: "Tensor?[]", int: "SymInt", typing.List[int]: "SymInt[]"}  # noqa: UP006
    monkeypatch.setattr(infer_schema, "SUPPORTED_PARAM_TYPES", known, raising=False)
    complete()
    assert known[collections.abc.Sequence[torch.Tensor | None]] == "Tensor?[]"
    assert known[list[int]] == "SymInt[]" and known[int] == "SymInt"


def test_is_exporting_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.compiler.is_exporting
    complete()
    assert torch.compiler.is_exporting is own
    monkeypatch.delattr(torch.compiler, "is_exporting")
    complete()
    assert torch.compiler.is_exporting is torch.compiler.is_compiling
    assert not torch.compiler.is_exporting()

"""The command, in this process."""

import sys
from collections.abc import Callable

import pytest

from ltm_det import cli


@pytest.fixture
def compress(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``ltm-det compress``; gives its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["ltm-det"])  # which the command sets
        return cli.main(["compress", *map(str, words)])

    return run

"""The command, in this process."""

import sys
from collections.abc import Callable

import pytest

from ltm_det import cli
from ltm_det.compression import costs


@pytest.fixture
def compress(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs ``ltm-det compress``; gives its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["ltm-det"])  # which the command sets
        for name in ("ROUNDS", "LEAST"):  # of timing
            monkeypatch.setattr(costs, name, 1)
        return cli.main(["compress", *map(str, words)])

    return run

"""Fixtures of the tests of IBHook: data, and runs that are over."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_engine.ib_runs import Trained, hook
from tests.test_engine.tiny_detector import write_data


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(root, tmp_path) -> Callable[..., Trained]:
    """Runs and forgets: ``train(*hooks, **options)``."""

    def run(*hooks: dict, work_dir: Path = tmp_path, **options) -> Trained:
        return Trained(root, work_dir, *hooks, **options)

    return run


@pytest.fixture(scope="session")
def weighed(root, tmp_path_factory) -> Trained:
    """Six iterations with weight=0.5, whose checkpoint of the third has samples left over."""
    hooks = [hook(weight=0.5, begin=0.0, background=1), dict(type="ExactResumeHook")]
    options = dict(default_hooks__checkpoint__interval=3)
    return Trained(root, tmp_path_factory.mktemp("weighed"), *hooks, **options)

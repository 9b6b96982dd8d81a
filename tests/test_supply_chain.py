"""What is installed is pinned by its hash; nothing here unpickles but torch, restricted."""

import ast
import re
import runpy
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", LOCK, re.M))
# Modules that run what a file says, or read pickles; by file what may be used there, and why.
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ALLOWED = {
    "ltm_det/compat/checkpoint.py": {"import pickle"},  # the error that its allow-list raises
}


def direct(monkeypatch: pytest.MonkeyPatch) -> list[Requirement]:
    """The requirements of setup.py that the lock is for."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    extras = given["extras_require"]
    return [Requirement(r) for r in given["install_requires"] + extras["lite"] + extras["dev"]]


def test_every_requirement_is_pinned_with_its_hash(monkeypatch) -> None:
    needed = direct(monkeypatch)
    assert len(needed) > 20
    for requirement in needed:
        name = requirement.name.lower().replace("_", "-")
        assert name in PINNED, f"{name} is not in requirements.lock: make lock"
        assert PINNED[name] in requirement.specifier, f"{name}: make lock"


def test_the_lock_is_nothing_but_pins() -> None:
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lines) == 2 * len(PINNED) > 200
    assert not re.search(r"://|index|find-links", LOCK)
    assert re.match(r"# Python 3\.\d+, \w+, \w+: ", LOCK)  # whose files these are


def unsafe(code: str) -> set[str]:
    """What in a program could unpickle, or leaves torch.load to its default."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {f"import {a.name}" for a in node.names if a.name.split(".")[0] in PICKLES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            found.add(f"from {node.module}")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if name in ("torch.load", "load_url") and given.get("weights_only") != "True":
                found.add(f"{name} without weights_only=True")
            if name.endswith(("load_state_dict_from_url", "hub.load", "torch.jit.load")):
                found.add(name)
            if name in ("np.load", "numpy.load") and given.get("allow_pickle") == "True":
                found.add(f"{name} of pickles")
            if name == "yaml.load" or name.endswith("read_pickle") or name in ("eval", "exec"):
                found.add(name)
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import load",
        "import torch\ntorch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.hub.load_state_dict_from_url(u)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "eval(text)",
    ],
)
def test_what_is_unsafe_is_seen(code: str) -> None:
    assert unsafe(code)
    assert not unsafe(
        "torch.load(f, weights_only=True)\nnp.load(f)\nyaml.safe_load(f)\nmodel.eval()"
    )


@pytest.mark.parametrize(
    "file",
    [file for room in ("ltm_det", "tools") for file in sorted((ROOT / room).rglob("*.py"))],
    ids=lambda file: file.relative_to(ROOT).as_posix(),
)
def test_nothing_unpickles(file: Path) -> None:
    name = file.relative_to(ROOT).as_posix()
    assert unsafe(file.read_text()) == ALLOWED.get(name, set())


def test_what_pickle_is_used_for() -> None:
    """Where it is allowed, its error is all that is used."""
    for name in ALLOWED:
        tree = ast.parse((ROOT / name).read_text())
        used = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        assert {u for u in used if u.startswith("pickle.")} == {"pickle.UnpicklingError"}

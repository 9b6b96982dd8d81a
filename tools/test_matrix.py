"""Try ltm-det beside several versions of Python, torch and mmdet: `make test-matrix`.

Each combination is installed from this checkout's wheel into an environment of its own, which is
deleted afterwards: one with torch takes up to 6 GB. In it the commands are run from another folder
as a user would, on data that they make, and then tests of this checkout. What came of it is
written into results/install.json after each; docs/install.md has the table (`make tables`).
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ltm_det.basics.files import write_text  # noqa: E402

RESULT = ROOT / "results/install.json"

# What is installed with a wheel of ltm-det, by what it is called in the table.
HOSTS = {
    "lite": ["{wheel}[lite]"],
    "mmcv-lite 2.2": ["{wheel}[mmdet]", "mmcv-lite==2.2.0"],
    "onedl": ["{wheel}[onedl]"],
    "full": ["{wheel}[full]", "--only-binary=mmcv"],
}
# Python, torch, hosts: the oldest and the newest of each, and what `make install` gives.
COMBINATIONS = (
    ("3.11", "2.14.1", ("lite", "mmcv-lite 2.2", "full")),
    ("3.10", "2.4.1", ("lite", "onedl")),
    ("3.12", "2.4.1", ("lite", "onedl")),
    ("3.12", "2.14.1", ("lite", "onedl")),
    ("3.13", "2.15.0", ("lite", "onedl")),
)
PACKAGES = (
    ["torch", "torchvision", "numpy", "timm", "opencv-python", "setuptools"]
    + ["mmdet", "mmengine", "mmcv", "mmcv-lite"]
    + ["onedl-mmdetection", "onedl-mmengine", "onedl-mmcv"]
)
# What the host could break: its operators, checkpoints, configs, and a step of both families.
TRAINS = "tests/test_configs/test_configs.py::test_config_trains_and_predicts"
TESTS = (
    ["tests/test_package.py", "tests/test_compat", "tests/test_necks"]
    + [f"{TRAINS}[demo_ltm_swin_maskrcnn]", f"{TRAINS}[demo_ltm_vit_maskrcnn]"]
    + ["tests/test_tools/test_predict.py"]
)
MINE = """
_base_ = "ltm_det::demo_ltm_swin_maskrcnn.py"
train_cfg = dict(max_iters=2, val_interval=2)
"""
# As a user: the configs are the wheel's, data and folders their own.
COMMANDS = (
    "demo-data --out data/demo --train 8 --val 4",
    "train mine.py --work-dir work",
    "test mine.py work/iter_2.pth --work-dir tested",
    "predict mine.py work/iter_2.pth --images data/demo/val --out found",
)


class Done(NamedTuple):
    """A command that ran."""

    code: int
    text: str  # all that it printed


def run(words: Sequence[object], cwd: Path, minutes: float, **env: str) -> Done:
    """Runs a command to its end, with nothing of this checkout on the path."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            [*map(str, words)],
            cwd=cwd,
            env=clean | {"OMP_NUM_THREADS": "1"} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60 * minutes,
        )
    except subprocess.TimeoutExpired:
        return Done(124, f"not done after {minutes} minutes")
    return Done(done.returncode, done.stdout)


def interpreter(version: str) -> str | None:
    """A Python of this version: on the path, pyenv's, or one that uv has or can get."""
    found = [shutil.which(f"python{version}")]
    found += sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    if uv := shutil.which("uv"):
        run([uv, "python", "install", version], ROOT, 10)
        found.append(run([uv, "python", "find", version], ROOT, 1).text.strip())
    for path in filter(None, found):
        try:
            told = run(
                [path, "-c", "import sys, ssl; print('%d.%d' % sys.version_info[:2])"], ROOT, 1
            )
        except OSError:
            continue
        if told == (0, f"{version}\n"):
            return str(path)
    return None


def install(python: Path, *words: str) -> str | None:
    """Installs packages; what went wrong, or nothing."""
    pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--prefer-binary"]
    done = run([*pip, *words], ROOT, 60)
    if done.code == 0:
        return None
    errors = [line for line in done.text.splitlines() if re.search("error", line, re.I)]
    return short(errors[-1] if errors else done.text or f"pip ended with {done.code}")


def short(text: str) -> str:
    """A line without addresses and folders of this machine."""
    line = " ".join(text.split())
    line = re.sub(r"\S+://\S+", "an index", line)
    return re.sub(r"(?<![\w.])/(?:[\w.@+-]+/)+", "", line)[:300]


@contextmanager
def folder(parent: Path | None) -> Iterator[Path]:
    """An empty one, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="ltm-matrix-", dir=parent) as path:
        yield Path(path)


def versions(python: Path) -> dict[str, str]:
    code = (
        "import json, sys; from importlib.metadata import version\n"
        "found = {'python': '%d.%d.%d' % sys.version_info[:3]}\n"
        "for name in sys.argv[1:]:\n"
        "    try: found[name] = version(name)\n"
        "    except Exception: pass\n"
        "print(json.dumps(found))"
    )
    return json.loads(run([python, "-c", code, *PACKAGES], ROOT, 1).text)


def commands(python: Path, place: Path) -> dict[str, Any]:
    """Those of a user, from data to predictions: how many ran, and what stopped them."""
    place.mkdir()
    (place / "mine.py").write_text(MINE)
    for i, command in enumerate(COMMANDS):
        done = run([python, "-m", "ltm_det.cli", *command.split()], place, 20)
        if done.code:
            last = done.text.strip().splitlines()[-1:] or ["nothing was printed"]
            return dict(commands=i, stopped=f"{command.split()[0]}: {short(last[0])}")
    return dict(commands=len(COMMANDS))


def tested(python: Path, place: Path, tests: Sequence[str]) -> dict[str, Any]:
    """Tests of this checkout in an environment: how many passed, and which did not."""
    report = place / "report.xml"
    words = ["-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--junitxml"]
    done = run([python, *words, report, *tests], ROOT, 60, PYTHONDONTWRITEBYTECODE="1")
    if not report.is_file():
        return dict(why=short(done.text[-300:]))
    counts, failures = dict(passed=0, failed=0, skipped=0), []
    for case in xml.parse(report).iter("testcase"):
        wrong = [child for child in case if child.tag in ("failure", "error")]
        kind = "failed" if wrong else "skipped" if case.find("skipped") is not None else "passed"
        counts[kind] += 1
        if wrong:
            name = f"{case.get('classname')}::{case.get('name')}"
            failures.append(f"{name}: {short(wrong[0].get('message') or '')}"[:300])
    return counts | (dict(failures=failures[:20]) if failures else {})


def tried(base: Path, host: str, wheel: Path, tests: Sequence[str]) -> dict[str, Any]:
    """A combination, in a copy of an environment that has torch."""
    with folder(base.parent) as place:
        env = place / "env"
        # Files are shared: pip replaces them, and changes none.
        shutil.copytree(base, env, symlinks=True, copy_function=os.link)
        python = env / "bin/python"
        words = [word.format(wheel=wheel) for word in HOSTS[host]]
        if wrong := install(python, *words, "pytest>=8"):
            return dict(why=f"pip install: {wrong}")
        headless(python)
        return versions(python) | commands(python, place / "user") | tested(python, place, tests)


def headless(python: Path) -> None:
    """OpenCV without windows where this machine lacks what those need, as `make install` does."""
    if run([python, "-c", "import cv2"], ROOT, 2).code:
        run([python, "-m", "pip", "uninstall", "--yes", "--quiet", "opencv-python"], ROOT, 5)
        install(python, "opencv-python-headless")


def key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["asked_python"], row["asked_torch"], row["host"]


def matrix(
    chosen: Sequence[tuple[str, str, Sequence[str]]], parent: Path | None, tests: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Each combination's row, one after the other."""
    with folder(parent) as place:
        wheels = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        done = run([*wheels, "--no-build-isolation", "-w", place, ROOT], ROOT, 10)
        if done.code:
            raise SystemExit(f"the wheel can't be built: {done.text}")
        (wheel,) = place.glob("*.whl")
        for version, torch, hosts in chosen:
            about = dict(asked_python=version, asked_torch=torch)
            with folder(parent) as here:
                base, wrong = here / "base", None
                if python := interpreter(version):
                    run([python, "-m", "venv", base], ROOT, 5)
                    # pip finds the torchvision that belongs to it
                    pair = [f"torch=={torch}", "torchvision", "--only-binary=torch,torchvision"]
                    wrong = install(base / "bin/python", *pair)
                else:
                    wrong = f"no Python {version} here"
                for host in hosts:
                    found = dict(why=wrong) if wrong else tried(base, host, wheel, tests)
                    yield about | dict(host=host) | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="PYTHON", help="such as 3.12 (default: all)")
    parser.add_argument("--torch", nargs="+", metavar="VERSION", help="such as 2.4.1")
    parser.add_argument("--host", nargs="+", choices=HOSTS, help="default: all")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="for pytest")
    parser.add_argument("--temp", type=Path, help="folder with 15 GB of room (default: the usual)")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    chosen = [
        (python, torch, [host for host in hosts if not args.host or host in args.host])
        for python, torch, hosts in COMBINATIONS
        if (not args.only or python in args.only) and (not args.torch or torch in args.torch)
    ]
    commit = run(["git", "rev-parse", "HEAD"], ROOT, 1).text.strip()
    rows = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    for row in matrix(chosen, args.temp, args.tests):
        row |= dict(commit=commit, date=str(date.today()))
        rows = [old for old in rows if key(old) != key(row)] + [row]
        rows.sort(key=key)
        result = dict(command="make test-matrix", tests=list(args.tests), rows=rows)
        write_text(args.out, json.dumps(result, indent=2) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""Processes of one machine go on, and end, with what the first of them found out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltm_det.basics.errors import InputError
from ltm_det.engine import alike
from ltm_det.engine.alike import told_by_main

# Processes of one parent, as a launcher's are; the second one is there before the first.
CHILD = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from ltm_det.basics.errors import InputError
from ltm_det.engine import alike
from ltm_det.engine.alike import told_by_main
def find_out():
    assert os.environ['LOCAL_RANK'] == '0', 'the others have to listen'
    time.sleep(1)
    if sys.argv[3] == 'fails':
        raise InputError('image 7 is gone')
    return [1, 'two']
try:
    print(told_by_main('pytorch', sys.argv[2], find_out))
except InputError as error:
    print(error)
    sys.exit(2)
"""
ROOT = Path(__file__).resolve().parents[2]


def test_a_single_process_leaves_nothing(tmp_path: Path) -> None:
    assert told_by_main("none", str(tmp_path), lambda: 3) == 3
    assert not list(tmp_path.iterdir())


def test_the_first_process_raises_what_it_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")

    def find_out() -> None:
        raise InputError("image 7 is gone")

    with pytest.raises(InputError, match="image 7"):
        told_by_main("pytorch", str(tmp_path), find_out)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code", "said"), [("works", 0, "two"), ("fails", 2, "image 7")])
def test_all_processes_end_alike(how: str, code: int, said: str, tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(ROOT), str(tmp_path), how],
            env={**os.environ, "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    for child in children:
        printed, _ = child.communicate(timeout=200)
        assert child.returncode == code and said in printed


def test_what_a_former_run_told_is_not_believed(tmp_path: Path, monkeypatch) -> None:
    """Nor is it waited for without end."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert told_by_main("pytorch", str(tmp_path), lambda: "old") == "old"
    (file,) = tmp_path.iterdir()
    told = json.loads(file.read_text())
    file.write_text(json.dumps(told | dict(at=alike.begun() - 1)))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(alike, "PATIENCE", 1)
    with pytest.raises(InputError, match="has written no"):
        told_by_main("pytorch", str(tmp_path), lambda: "new")
    file.write_text(json.dumps(told))
    assert told_by_main("pytorch", str(tmp_path), lambda: "new") == "old"


def test_jobs_are_told_apart(monkeypatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", alike.RESTARTS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "host.a")
    monkeypatch.setenv("MASTER_PORT", "29501")
    first = alike.job()
    monkeypatch.setenv(alike.RESTARTS, "1")
    assert alike.job() != first == "host_a_29501"

"""A compression that is killed goes on where it was, its fine-tuning from the last checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_compression import small

ITERATIONS = 40
PATIENCE = 600  # seconds, after which something hangs


def words(folder: Path) -> list[str]:
    data = small.data(folder / "data")
    cfg = small.mask_rcnn()
    cfg.default_hooks.checkpoint.interval = 4
    found = [*small.save(cfg, folder / "dense"), "--data", data, "--budget", "gmacs=0.9"]
    found += ["--out", folder / "out", "--export", "none", "--images", 2, "--calibrate", 0]
    found += ["--ratios", 0.33, "--pictures", 1, "--finetune", ITERATIONS, "--batch", 1]
    return [sys.executable, "-m", "ltm_det.cli", "compress", *map(str, found)]


def killed_when(command: list[str], ready: Path, pattern: str, log: Path) -> None:
    """Starts a command and kills it as soon as there is such a file."""
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    until = time.monotonic() + PATIENCE
    while not list(ready.glob(pattern)):
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_it_goes_on(tmp_path: Path) -> None:
    command, out, log = words(tmp_path), tmp_path / "out", tmp_path / "log"
    killed_when(command, out, "state.json", log)  # in the second step, or later
    first = json.loads((out / "state.json").read_text())["steps"]
    assert "dense AP" in first and "report" not in first
    killed_when(command, out, "work/finetune-*/iter_*.pth", log)
    again = json.loads((out / "state.json").read_text())["steps"]
    assert again["dense AP"] == first["dense AP"] and "AP converted" in again
    assert "fine-tune" not in again
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[AP converted] done before" in done.stdout and "[report]" in done.stdout
    (folder,) = (out / "work").glob("finetune-*")
    logs = sorted(folder.glob("*/vis_data/scalars.json"))
    started = [json.loads(log.read_text().splitlines()[0])["step"] for log in logs[-1:]]
    report = json.loads((out / "report.json").read_text())
    assert report["finetuning"]["iterations"] == ITERATIONS and started[0] > 1

"""The paired study, cut to two steps on a handful of images."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from ltm_det.datasets.demo import make_demo_data

ROOT = Path(__file__).parents[2]


def study(folder: Path, *options: str) -> str:
    data = folder / "data"
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
    changes = [f"{loader}.dataset.data_root={data}/" for loader in loaders]
    changes += [f"{loader}.num_workers=0" for loader in loaders]
    changes += [f"{loader}.persistent_workers=False" for loader in loaders]
    changes += [f"{e}_evaluator.ann_file={data}/annotations/val.json" for e in ("val", "test")]
    changes += ["train_cfg.max_iters=2", "train_cfg.val_interval=2"]
    command = [sys.executable, "tools/analysis/study.py", "--out", str(folder / "study.csv")]
    command += ["--work-dir", str(folder / "work"), "--extra", " ".join(changes), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_study_writes_every_run_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    make_demo_data(tmp_path / "data", train=16, val=4, size=112, seed=0)
    assert "0 runs" in study(tmp_path, "--variants", "pool")
    (row,) = csv.DictReader(open(tmp_path / "study.csv", newline=""))
    assert row["variant"] == "pool" and "merger.type=Pool" in row["command"] and row["commit"]
    assert -1 <= float(row["segm_mAP"]) <= 1

    first = (tmp_path / "study.csv").read_text()
    printed = study(tmp_path, "--variants", "dense", "pool")
    assert "1 runs" in printed and "1 to do" in printed
    rows = list(csv.DictReader(open(tmp_path / "study.csv", newline="")))
    assert [r["variant"] for r in rows] == ["dense", "pool"]
    assert first.splitlines()[1] in (tmp_path / "study.csv").read_text().splitlines()
    table = (tmp_path / "study.md").read_text()
    assert "| dense | 1 |" in table and "| pool | 1 |" in table and "| 0.81 |" in table

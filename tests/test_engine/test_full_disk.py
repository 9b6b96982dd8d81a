"""A disk that is really full: a memory disk of few bytes, in a namespace of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltm_det.cpu import products
from tests.test_engine.kills import losses, write_config

SCRIPT = """
mount -t tmpfs -o size={size} none {work} || exit 99
{train} > {out}/full.log 2>&1; echo $? > {out}/full
ls {work} > {out}/names
mount -o remount,size=1g none {work}
{train} --resume > {out}/freed.log 2>&1; echo $? > {out}/freed
cp -r {work} {out}/end
"""


def in_a_namespace(script: str, env: dict[str, str]) -> subprocess.CompletedProcess:
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None or in_a_namespace("mount -t tmpfs none /mnt", {}).returncode,
    reason="this machine lets nobody mount a memory disk",
)
def test_a_full_disk_loses_nothing(root: Path, tmp_path: Path) -> None:
    """The first checkpoint fits, no other fits beside it; with more room the run goes on."""
    env = os.environ | {products.VARIABLE: products.ONEDNN}  # as all runs that are to be equal
    config = write_config(root, tmp_path / "config.py", keep=1)

    def train(work: Path) -> list[str]:
        words = [sys.executable, "-m", "ltm_det.cli", "train", config, "--work-dir", work]
        options = ["train_cfg.max_iters=8", "default_hooks.logger.interval=1"]
        return [*map(str, words), "--cfg-options", *options]

    whole, work = tmp_path / "whole", tmp_path / "work"
    subprocess.run(train(whole), check=True, capture_output=True, env=env)
    size = (whole / "iter_8.pth").stat().st_size
    work.mkdir()
    words = dict(work=work, out=tmp_path, size=size + size // 2, train=" ".join(train(work)))
    assert in_a_namespace(SCRIPT.format(**words), env).returncode == 0
    log = (tmp_path / "full.log").read_text()
    assert (tmp_path / "full").read_text() == "2\n" and "Traceback" not in log
    assert "No space left" in log and "--resume" in log.splitlines()[-1]
    there = (tmp_path / "names").read_text().split()
    assert "iter_2.pth" in there and "last_checkpoint" in there and "iter_8.pth" not in there
    assert (tmp_path / "freed").read_text() == "0\n", (tmp_path / "freed.log").read_text()
    end = tmp_path / "end"
    assert {file.name for file in end.glob("*.pth")} == {"iter_8.pth"}
    assert dict(losses(end)) == dict(losses(whole))

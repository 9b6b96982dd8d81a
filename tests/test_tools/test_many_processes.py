"""Slurm's scripts with a stand-in for srun, and restarts of torchrun after a killed process."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ltm_det.cli import train

NO_VALIDATION = ["--cfg-options", "val_cfg=None", "val_dataloader=None", "val_evaluator=None"]

SRUN = """#!/usr/bin/env bash
# Prints its options, and starts as many tasks as they say.
while [[ $1 == --* ]]; do
    echo "srun $1"
    [[ $1 == --ntasks=* ]] && tasks=${1#*=}
    shift
done
export SLURM_NTASKS=$tasks SLURM_NODELIST=here MASTER_PORT=$PORT
for ((i = 1; i < tasks; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
done
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait
"""
SCONTROL = "#!/usr/bin/env bash\necho 127.0.0.1\n"
DIES = """
import os, signal
from mmdet.registry import HOOKS
from mmengine.hooks import Hook

@HOOKS.register_module()
class DiesOnce(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        once = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if once and runner.rank == 1 and runner.iter == 5:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def losses(work_dir: Path) -> list[dict[int, dict[str, float]]]:
    """Of each log, oldest first: iteration -> losses."""
    runs = []
    for log in sorted(work_dir.glob("*/vis_data/scalars.json")):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        rows = [row for row in rows if "loss" in row]  # the others are of evaluations
        runs.append({r["step"]: {k: v for k, v in r.items() if "loss" in k} for r in rows})
    return runs


@pytest.fixture
def slurm(tmp_path: Path, free_port: str) -> dict[str, str]:
    """An environment with stand-ins for Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return dict(PATH=f"{folder}{os.pathsep}{os.environ['PATH']}", PORT=free_port)


@pytest.mark.parametrize("script", ["slurm_train.sh", "slurm_test.sh"])
def test_slurm_scripts_without_arguments_say_how_to_call_them(tool: Callable, script: str) -> None:
    done = tool(script, "partition", "job", "config.py")
    assert done.returncode == 2
    assert f"tools/{script} PARTITION JOB_NAME CONFIG" in done.stderr


@pytest.mark.parametrize(
    ("gpus", "per_node", "wanted"),
    [
        ("16", "8", ["--ntasks=16", "--ntasks-per-node=8", "--gres=gpu:8"]),
        ("4", "8", ["--ntasks=4", "--ntasks-per-node=4", "--gres=gpu:4"]),
        ("2", "0", ["--ntasks=2", "--ntasks-per-node=2"]),
    ],
)
def test_slurm_is_asked_for_what_the_environment_says(
    tool: Callable, slurm: dict, tmp_path: Path, gpus: str, per_node: str, wanted: list[str]
) -> None:
    echo = tmp_path / "echo"
    echo.write_text('#!/bin/bash\n[ "$SLURM_PROCID" = 0 ] && echo "$@" || true\n')
    echo.chmod(0o755)
    slurm |= dict(PYTHON=str(echo), GPUS=gpus, GPUS_PER_NODE=per_node, SRUN_ARGS="--x=1 --y")
    words = ["part", "a job", "a config.py", tmp_path, "--resume"]
    done = tool("slurm_train.sh", *words, **slurm)
    assert done.returncode == 0, done.stderr
    options = [row.split()[1] for row in done.stdout.splitlines() if row.startswith("srun --")]
    assert {*wanted, "--partition=part", "--kill-on-bad-exit=1", "--x=1", "--y"} <= {*options}
    assert any(option.startswith("--gres") for option in options) == (per_node != "0")
    last = done.stdout.splitlines()[-1]
    assert last.endswith(f"train.py a config.py --work-dir {tmp_path} --launcher slurm --resume")


@pytest.mark.slow
def test_slurm_trains_and_tests_on_two_tasks(
    tool: Callable, slurm: dict, tiny_config: Path, tmp_path: Path
) -> None:
    slurm |= dict(GPUS="2", GPUS_PER_NODE="0")
    work_dir, few = tmp_path / "run", ["--cfg-options", "train_cfg.max_iters=2"]
    done = tool("slurm_train.sh", "part", "job", tiny_config, work_dir, *few, **slurm)
    assert done.returncode == 0, done.stderr
    (run,) = losses(work_dir)
    assert sorted(run) == [1, 2]
    words = ["part", "job", tiny_config, work_dir / "iter_2.pth", "--work-dir", tmp_path / "test"]
    done = tool("slurm_test.sh", *words, **slurm)
    assert done.returncode == 0, done.stderr
    assert "coco/segm_mAP" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_that_lost_a_process_restarts_from_its_last_checkpoint(
    tool: Callable, tiny_config: Path, tmp_path: Path, free_port: str
) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = '{tiny_config}'\n"
        "custom_imports = dict(imports=['ltm_det', 'dies'])\n"
        "custom_hooks = [dict(type='DiesOnce')]\n"
        "default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=1))\n"
        "train_dataloader = dict(num_workers=0, persistent_workers=False)\n"
        "train_cfg = dict(max_iters=8)\n"
    )
    way = dict(LTM_DET_CPU_PRODUCT="onednn", PORT=free_port)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def run(name: str, base: Path, **env: str) -> subprocess.CompletedProcess:
        words = [base, 2, "--work-dir", tmp_path / name, *NO_VALIDATION]
        return tool("dist_train.sh", *words, PYTHONPATH=path, **way, **env)

    whole = tmp_path / "whole.py"
    whole.write_text(f"_base_ = '{config}'\ncustom_hooks = []\n")
    done = run("whole", whole)
    assert done.returncode == 0, done.stderr
    done = run("killed", config, MAX_RESTARTS="1")
    assert done.returncode == 0, done.stderr
    assert "Restart 1 of 1: going on from" in done.stdout
    (wanted,), (first, second) = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert sorted(wanted) == list(range(1, 9))
    assert sorted(second) == [5, 6, 7, 8]
    assert first | second == wanted and max(first) == 5


@pytest.mark.parametrize("asked", [[], ["--resume", "a.pth"]])
def test_with_restarts_to_come_the_work_folder_holds_no_other_run(
    tiny_config: Path, tmp_path: Path, monkeypatch, capsys, asked: list[str]
) -> None:
    (tmp_path / "iter_2.pth").touch()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    words = [str(tiny_config), "--work-dir", str(tmp_path), "--launcher", "pytorch", *asked]
    assert train.main(words) == 2
    assert "--resume alone" in capsys.readouterr().err

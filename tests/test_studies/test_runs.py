"""Running tools, and the files that they leave."""

import copy
import json
from pathlib import Path

import pytest
from mmengine.config import Config

from ltm_det.engine.preflight import load_config
from ltm_det.studies import runs


def log(path: Path, *lines: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def metrics(value: float) -> dict[str, float]:
    return {f"coco/{name}": value for name in runs.METRICS}


def test_the_newest_evaluation_counts_be_it_of_a_training_or_of_a_test(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no evaluation is logged under {tmp_path}"):
        runs.last_metrics(tmp_path)
    name = "vis_data/scalars.json"
    log(tmp_path / "20260101_000000" / name, metrics(0.1), {"loss": 1.0}, metrics(0.2), {"loss": 2})
    assert runs.last_metrics(tmp_path) == dict.fromkeys(runs.METRICS, 0.2)
    log(tmp_path / "20260102_000000" / "20260102_000000.json", metrics(0.3))
    assert runs.last_metrics(tmp_path) == dict.fromkeys(runs.METRICS, 0.3)
    log(tmp_path / "20260103_000000" / name, {"loss": 1.0})  # it was interrupted
    assert runs.last_metrics(tmp_path) == dict.fromkeys(runs.METRICS, 0.3)


def test_a_checkpoint_is_found_in_a_folder_that_was_moved(tmp_path: Path) -> None:
    assert runs.last_checkpoint(tmp_path) is None
    (tmp_path / "last_checkpoint").write_text("/gone/iter_9.pth\n")
    assert runs.last_checkpoint(tmp_path) is None
    (tmp_path / "iter_9.pth").write_text("")
    assert runs.last_checkpoint(tmp_path) == tmp_path / "iter_9.pth"


def test_a_table_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    assert runs.read_rows(path) == []
    rows = [dict(a=1, b='x, "y"'), dict(a=2.5, b=json.dumps({"k": [1]}))]
    runs.write_rows(path, ("a", "b"), rows)
    assert runs.read_rows(path) == [{key: str(value) for key, value in r.items()} for r in rows]
    with pytest.raises(ValueError, match="c"):
        runs.write_rows(path, ("a", "b"), [*rows[:1], dict(c=1)])
    assert len(runs.read_rows(path)) == 2


def test_a_tool_that_fails_is_told_with_its_log(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log.txt"
    with pytest.raises(RuntimeError, match=r"ltm-det test failed: see .*logs/log.txt"):
        runs.run_tool(["test"], path)
    assert "the following arguments are required" in path.read_text()


@pytest.mark.slow
def test_a_tool_runs_in_the_root_with_one_thread(tmp_path: Path) -> None:
    tool = tmp_path / "tool.py"
    tool.write_text("import os; print(os.getcwd(), os.environ['OMP_NUM_THREADS'])")
    assert 0 <= runs.run_tool(["run", str(tool)], tmp_path / "log.txt") < 3
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].split() == [str(runs.ROOT), "1"]


def test_paths_are_as_seen_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert runs.from_root(runs.ROOT / "a/b") == runs.from_root(Path("a/b")) == "a/b"
    assert runs.from_root(tmp_path) == str(tmp_path)


@pytest.fixture
def cfg() -> Config:
    return load_config(str(runs.ROOT / "configs/demo_swin_maskrcnn.py"))


def leave(folder: Path, cfg: Config, *lines: dict) -> None:
    """What a training leaves in a folder's subfolder, up to its evaluation or not."""
    log(folder / "vis_data" / "scalars.json", *lines)
    cfg.dump(folder / "vis_data" / "config.py")
    (folder.parent / "last_checkpoint").write_text("iter_9.pth")
    (folder.parent / "iter_9.pth").write_text("")


def test_a_folder_has_a_training_if_its_last_run_came_to_its_evaluation(
    tmp_path: Path, cfg: Config
) -> None:
    assert not runs.trained(tmp_path, cfg)
    leave(tmp_path / "1", cfg, {"loss": 1.0})
    assert not runs.trained(tmp_path, cfg)
    leave(tmp_path / "2", cfg, {"loss": 1.0}, metrics(0.1))
    assert runs.trained(tmp_path, cfg)
    cfg.train_cfg.max_iters = 3
    leave(tmp_path / "3", cfg, {"loss": 1.0})  # interrupted, over the files of another training
    assert not runs.trained(tmp_path, cfg)
    leave(tmp_path / "4", cfg, metrics(0.1))
    assert runs.trained(tmp_path, cfg)
    (tmp_path / "iter_9.pth").unlink()
    assert not runs.trained(tmp_path, cfg)


def test_a_training_elsewhere_is_the_same_and_one_with_another_recipe_is_not(
    tmp_path: Path, cfg: Config
) -> None:
    cfg.load_from = "here/dense-seed0/iter_9.pth"
    moved = cfg.copy()
    moved.merge_from_dict(
        dict(
            data_root="elsewhere",
            work_dir="gone",
            load_from="/there/dense-seed0/iter_9.pth",
            custom_hooks=[dict(type="ExactResumeHook")],
        )
    )
    leave(tmp_path / "1", moved, metrics(0.1))
    assert runs.trained(tmp_path, cfg)
    for change in (
        {"model.backbone.drop_path_rate": 0.5},
        {"randomness.seed": 1},
        {"optim_wrapper.optimizer.lr": 1.0},
        {"custom_hooks": [dict(type="IBHook")]},
        {"train_dataloader.batch_size": 3},
        {"load_from": "here/dense-seed1/iter_9.pth"},
        {"load_from": None},
    ):
        other = copy.deepcopy(cfg)
        other.merge_from_dict(change)
        assert not runs.trained(tmp_path, other), change


def test_the_time_left_is_the_means_of_the_modes_shared_out_among_jobs() -> None:
    minutes = {"train": [2.0, 4.0], "convert": []}
    assert runs.time_left(minutes, ["train", "train", "convert"], 2) == "3 left, about 4 min"
    minutes["convert"].append(1.0)
    assert runs.time_left(minutes, ["train", "convert"], 1) == "2 left, about 4 min"
    assert runs.time_left({"train": []}, ["train"], 1) == "1 left"


def test_a_commit_is_marked_where_code_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not where results do, which a benchmark writes one after the other."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert runs.commit() == ""
    (tmp_path / "results").mkdir()
    files = [tmp_path / "code.py", tmp_path / "results" / "a.json"]
    for file in files:
        file.write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        runs.git(*words)
    clean = runs.commit()
    assert len(clean) == 12 and clean == runs.git("rev-parse", "--short=12", "HEAD")
    files[1].write_text("2")
    assert runs.commit() == clean
    files[0].write_text("2")
    assert runs.commit() == f"{clean}-dirty"

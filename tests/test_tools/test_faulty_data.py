"""Faulty data sets through check-data, train and test: named, never a traceback, never wrong."""

import json
import shutil
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from ltm_det.cli import check_data
from ltm_det.datasets.check.findings import REMEDIES
from tests.test_tools.faulty_data import Case
from tests.test_tools.faulty_pictures import CASES  # with those of faulty_data

SPLITS = dict(train="train", test="val")  # whose files they read
TABLE = [(name, split) for name in CASES for split in SPLITS]


@pytest.fixture(scope="session")
def good(tiny_config: Path) -> Path:
    """The tiny data, and its config in one file, which is read sooner."""
    Config.fromfile(tiny_config).dump(tiny_config.with_name("whole.py"))
    return tiny_config.parent


@pytest.fixture
def made(good: Path, tmp_path: Path, monkeypatch) -> Callable[[str, str], Path]:
    """Makes a faulty data set of its name for a split; gives the config."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(name: str, split: str) -> Path:
        root = tmp_path / "data"
        root.mkdir()
        for part in ("train", "val"):
            shutil.copytree(good / part, root / part)
            shutil.copy(good / f"{part}.json", root)
        file = root / f"{SPLITS[split]}.json"
        coco = json.loads(file.read_text())
        text = CASES[name].change(coco, root / SPLITS[split])
        text = json.dumps(coco) if text is None else text
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        config = root / "config.py"
        config.write_text((good / "whole.py").read_text().replace(str(good), str(root)))
        return config

    return make


def expected(name: str, split: str) -> tuple[Case, int]:
    return CASES[name], getattr(CASES[name], split)


def test_the_table_is_whole() -> None:
    faulty = [name for name, case in CASES.items() if 2 in (case.train, case.test)]
    assert len(faulty) >= 64
    assert {case.kind for case in CASES.values()} - {""} <= REMEDIES.keys()


@pytest.mark.parametrize(("name", "split"), TABLE)
def test_check_data(name: str, split: str, made: Callable, tmp_path: Path, capsys) -> None:
    case, code = expected(name, split)
    report = tmp_path / "report.json"
    words = [str(made(name, split)), "--split", split, "--json", str(report)]
    assert check_data.main(words) == code
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(report.read_text())
    assert bool(found["errors"]) == (code == 2)
    kinds = {group["kind"] for group in found["groups"]}
    if case.kind and not (split == "test" and case.test == 0 != case.train):
        assert case.kind in kinds and case.names in printed.out
    for group in found["groups"]:
        assert f"{group['kind']} ({group['count']})" in printed.out
        assert group["remedy"] in printed.out
        assert all(str(tmp_path) in row["file"] for row in group["found"])


def start(config: Path, split: str, **options: object) -> Config:
    """What ``train`` and ``test`` do with the data before anything is built."""
    cfg = Config.fromfile(config)
    cfg.work_dir = str(config.parents[1] / "work")
    given = dict(launcher="none", no_check_data=False, skip_bad=False, cfg_options=None)
    check_data.before_run(cfg, Namespace(config=str(config), **given | options), split)
    return cfg


def test_clean_data_are_looked_at_once(good: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "data"
    shutil.copytree(good, root)
    config = root / "config.py"
    config.write_text((good / "whole.py").read_text().replace(str(good), str(root)))
    looks = []
    look_at = check_data.look_at
    monkeypatch.setattr(check_data, "look_at", lambda *args: looks.append(args) or look_at(*args))
    start(config, "train")
    assert len(looks) == 1
    start(config, "train")
    assert len(looks) == 1
    start(config, "test")  # other data
    assert len(looks) == 2
    coco = json.loads((root / "train.json").read_text())
    (root / "train.json").write_text(json.dumps(coco, indent=1))  # the same in other bytes
    start(config, "train")
    start(config, "train")
    assert len(looks) == 3
    (root / "train" / coco["images"][0]["file_name"]).write_text("no picture")
    with pytest.raises(check_data.InputError, match="the data have 1 error"):
        start(config, "train")
    with pytest.raises(check_data.InputError):  # what is faulty is never noted
        start(config, "train")


def names_of(data: Config) -> dict[tuple[str, tuple], str]:
    """Class of each object that a data set gives, by its picture and box; loads all pictures."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build(data)
    found = {}
    for index in range(len(dataset)):
        sample = dataset[index]["data_samples"]
        assert len(sample.gt_instances.masks) == len(sample.gt_instances.labels)
        info = dataset.get_data_info(index)
        for thing in info["instances"]:
            box = tuple(np.round(thing["bbox"], 3).tolist())
            found[Path(info["img_path"]).stem, box] = dataset.metainfo["classes"][
                thing["bbox_label"]
            ]
    return found


@pytest.fixture(scope="module")
def truth(good: Path) -> dict[str, dict[tuple[str, tuple], str]]:
    """The same of the good data, by hand."""
    found: dict = dict(train={}, test={})
    for split, part in SPLITS.items():
        coco = json.loads((good / f"{part}.json").read_text())
        names = {entry["id"]: entry["name"] for entry in coco["categories"]}
        files = {entry["id"]: Path(entry["file_name"]).stem for entry in coco["images"]}
        for entry in coco["annotations"]:
            x, y, w, h = entry["bbox"]
            key = files[entry["image_id"]], (x, y, x + w, y + h)
            found[split][key] = names[entry["category_id"]]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "split"), TABLE)
def test_the_start_stops_or_leaves_out(
    name: str, split: str, made: Callable, truth: dict, capsys
) -> None:
    """And what it goes on with is loaded, object for object with its right class."""
    case, code = expected(name, split)
    config = made(name, split)
    before = {file: file.read_bytes() for file in config.parent.rglob("*") if file.is_file()}
    options = {}
    if code == 2:
        with pytest.raises(check_data.InputError, match="check-data .*config.py"):
            start(config, split)
        assert case.kind in capsys.readouterr().err
        if not case.mends:
            with pytest.raises(check_data.InputError, match="can't be"):
                start(config, split, skip_bad=True)
            return
        options = dict(skip_bad=True)
    cfg = start(config, split, **options)
    assert ("mended_data" in cfg) == (code == 2)
    data = cfg[f"{split}_dataloader"].dataset
    metric = cfg.test_evaluator if split == "test" else {}
    if code == 2:
        assert Path(data.ann_file).parent == config.parents[1] / "work/mended_data"
        assert metric.get("ann_file", data.ann_file) == data.ann_file
    assert before == {file: file.read_bytes() for file in before}
    found = names_of(data)
    assert {key: truth[split].get(key, name) for key, name in found.items()} == found
    learnt = case.kind != "nothing to learn from"
    whole = [key for key, name in truth[split].items() if learnt and name != case.lost]
    assert len(found.keys() & set(whole)) >= len(whole) - 2  # an image has two objects


@pytest.mark.slow
@pytest.mark.parametrize("name", ["picture missing", "segmentation of two points"])
def test_training_and_testing_without_what_is_bad(
    name: str, made: Callable, main: Callable, tmp_path: Path, capsys
) -> None:
    """The commands themselves: they stop before the first step, or go the whole way."""
    time.sleep(1)  # a run that begins in the second of another goes on with its log file
    config = made(name, "train")
    shutil.copy(config.parent / "train.json", config.parent / "val.json")
    shutil.rmtree(config.parent / "val")
    shutil.copytree(config.parent / "train", config.parent / "val")
    work = tmp_path / "work"
    options = ["train_cfg.max_iters=2", "train_dataloader.num_workers=0"]
    options += ["train_dataloader.persistent_workers=False", "train_cfg.val_interval=2"]
    options += ["default_hooks.checkpoint.interval=2"]
    words = [config, "--work-dir", work, "--cfg-options", *options]
    assert main("train.py", *words) == 2
    stopped = capsys.readouterr().err
    assert CASES[name].names in stopped and "--skip-bad" in stopped and "Traceback" not in stopped
    assert not work.exists()
    assert main("train.py", *words, "--skip-bad") == 0
    (log,) = work.glob("*/*.log")
    assert "mended_data" in log.read_text() and "left out" in log.read_text()
    checkpoint = work / "iter_2.pth"
    words = [config, checkpoint, "--work-dir", tmp_path / "test"]
    assert main("test.py", *words) == 2
    assert main("test.py", *words, "--skip-bad") == 0
    capsys.readouterr()

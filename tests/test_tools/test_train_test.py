"""tools/train.py and tools/test.py on tiny data, killed, resumed, on one process and on two."""

import ast
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco

from ltm_det.studies.runs import last_metrics
from tests.test_tools.detectors import SWIN, saved_detector

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
NO_VALIDATION = ["--cfg-options", "val_cfg=None", "val_dataloader=None", "val_evaluator=None"]


def losses(work_dir: Path) -> list[dict[int, dict[str, float]]]:
    """Of each run logged in a work folder, oldest first: iteration -> its losses."""
    runs = []
    for log in sorted(work_dir.glob("*/vis_data/scalars.json")):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        runs.append(
            {
                row["iter"]: {k: v for k, v in row.items() if "loss" in k}
                for row in rows
                if "loss" in row
            }
        )
    return runs


@pytest.fixture(scope="module")
def trained(tool: Callable, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Work folder of an uninterrupted run."""
    work_dir = tmp_path_factory.mktemp("trained")
    done = tool("train.py", tiny_config, "--work-dir", work_dir, *NO_VALIDATION)
    assert done.returncode == 0, done.stderr
    return work_dir


@pytest.mark.slow
def test_train_logs_every_iteration_and_keeps_checkpoints(trained: Path) -> None:
    (run,) = losses(trained)
    assert sorted(run) == list(range(1, STEPS + 1))
    assert run[STEPS]["loss"] < run[1]["loss"]
    assert {p.name for p in trained.glob("*.pth")} == {"iter_30.pth", "iter_40.pth"}


@pytest.mark.slow
def test_a_killed_and_resumed_run_repeats_the_uninterrupted_one(
    trained: Path, tool: Callable, tiny_config: Path, tmp_path: Path
) -> None:
    command = [sys.executable, ROOT / "tools/train.py", tiny_config, "--work-dir", tmp_path]
    command += NO_VALIDATION
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        last, deadline = tmp_path / "last_checkpoint", time.monotonic() + 200
        while not (last.exists() and last.read_text().endswith("iter_20.pth")):
            assert process.poll() is None and time.monotonic() < deadline, (
                tmp_path / "log"
            ).read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "iter_40.pth").exists()
    # The number of workers is no part of the randomness.
    alone = ["train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False"]
    done = tool("train.py", tiny_config, "--work-dir", tmp_path, "--resume", *NO_VALIDATION, *alone)
    assert done.returncode == 0, done.stderr

    (whole,), (killed, resumed) = losses(trained), losses(tmp_path)
    assert max(killed) < STEPS
    assert {min(resumed) - 1, max(resumed)} <= {20, 30, STEPS}
    for run in (killed, resumed):
        assert run == {step: whole[step] for step in run}


@pytest.mark.slow
def test_test_evaluates_dumps_and_paints(
    trained: Path, main: Callable, tiny_config: Path, tmp_path: Path
) -> None:
    out, seed = tmp_path / "out.pkl", ["--cfg-options", "model.test_cfg.rcnn.score_thr=0.01"]
    options = ["--work-dir", tmp_path, "--out", out, "--show-dir", "painted", *seed]
    assert main("test.py", tiny_config, trained / "iter_40.pth", *options) == 0
    predictions = pickle.loads(out.read_bytes())
    assert [p["img_id"] for p in predictions] == [1, 2, 3, 4]
    (scalars,) = tmp_path.glob("*/*.json")
    metrics = json.loads(scalars.read_text())
    assert 0 <= metrics["coco/bbox_mAP"] <= 1
    assert 0 <= metrics["coco/segm_mAP"] <= 1
    assert len(list(tmp_path.glob("*/painted/*.png"))) == 4


@pytest.mark.slow
def test_fast_heads_find_what_mmdets_find_with_trained_weights(
    trained: Path, main: Callable, tiny_config: Path, tmp_path: Path
) -> None:
    """And masks are the same pixels; without --out they are run lengths, which evaluate alike."""
    found, metrics = {}, {}
    least = "model.test_cfg.rcnn.score_thr=0.01"
    for kind in ("MaskRCNN", "FastMaskRCNN"):
        words = [tiny_config, trained / "iter_40.pth", "--cfg-options", least, f"model.type={kind}"]
        out = tmp_path / f"{kind}.pkl"
        assert main("test.py", *words, "--work-dir", tmp_path / "out", "--out", out) == 0
        found[kind] = [image["pred_instances"] for image in pickle.loads(out.read_bytes())]
        assert main("test.py", *words, "--work-dir", tmp_path / kind) == 0
        metrics[kind] = last_metrics(tmp_path / kind)
    for name, value in metrics["MaskRCNN"].items():
        assert abs(metrics["FastMaskRCNN"][name] - value) <= 1e-3
    for own, fast in zip(*found.values(), strict=True):
        clear = own["scores"] > 0.01 + 1e-4  # of the rest, rounding decides
        apart = (own["bboxes"][:, None] - fast["bboxes"]).abs().amax(-1)
        apart += 1e6 * (own["labels"][:, None] != fast["labels"])
        near, at = apart.min(1)
        assert clear.any() and (near[clear] < 0.01).float().mean() > 0.9
        pixels = [coco.decode(list(image["masks"])) for image in (own, fast)]
        same = clear & (near < 0.01)
        differ = pixels[0][..., same.numpy()] != pixels[1][..., at[same].numpy()]
        assert differ.mean() < 1e-3


@pytest.mark.slow
def test_draw_predictions(trained: Path, main: Callable, tiny_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "sheet.png"
    options = ["--out", out, "--num", 3, "--score-thr", 0.05]
    assert main("analysis/draw_predictions.py", tiny_config, trained / "iter_40.pth", *options) == 0
    assert out.stat().st_size > 10_000


@pytest.mark.slow
def test_dist_train_and_dist_test_on_two_processes(
    tool: Callable, tiny_config: Path, tmp_path: Path, free_port: str
) -> None:
    options = ["--work-dir", tmp_path, "--cfg-options", "env_cfg.dist_cfg.backend=gloo"]
    few = ["train_cfg.max_iters=3", "randomness.seed=7"]
    done = tool("dist_train.sh", tiny_config, 2, *options, *few, PORT=free_port)
    assert done.returncode == 0, done.stderr
    (run,) = losses(tmp_path)
    assert sorted(run) == [1, 2, 3]
    checkpoint = tmp_path / "iter_3.pth"
    done = tool("dist_test.sh", tiny_config, checkpoint, 2, *options, PORT=free_port)
    assert done.returncode == 0, done.stderr
    assert "coco/segm_mAP" in done.stdout + done.stderr


def test_classes_in_another_order_are_refused(
    main: Callable, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, checkpoint = saved_detector(tiny_config, "swapped", SWIN)
    content = torch.load(checkpoint, weights_only=True)
    content["meta"]["dataset_meta"] = dict(classes=("slab", "box"))
    torch.save(content, checkpoint)
    assert main("test.py", config, checkpoint, "--work-dir", tmp_path) == 2
    assert "classes in another order than the config" in capsys.readouterr().err


def as_checkpoint(file: Path, **meta: object) -> None:
    """Makes weights into something that a run could go on from, with words of its own."""
    content = torch.load(file, weights_only=True)
    content["meta"] = dict(content.get("meta") or {}, iter=1, epoch=0) | meta
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    content |= dict(optimizer={}, message_hub=hub)
    torch.save(content, file)


def test_more_classes_than_the_model_has_are_refused(
    main: Callable, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, checkpoint = saved_detector(tiny_config, "three", SWIN)
    as_checkpoint(checkpoint, dataset_meta=dict(classes=("box", "slab", "third")))
    assert main("test.py", config, checkpoint, "--work-dir", tmp_path) == 2
    told = capsys.readouterr().err
    assert "it has 3 classes, (box, slab, third)" in told and "num_classes is 2" in told


def test_more_classes_than_the_data_have_are_refused(
    main: Callable, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """COCO's metric would find no category for a label, after all forward passes."""
    config, checkpoint = saved_detector(tiny_config, "fewer", SWIN)
    as_checkpoint(checkpoint, dataset_meta=dict(classes=("box", "slab")))
    less = [
        f"{name}_dataloader.dataset.metainfo.classes=[box]" for name in ("train", "val", "test")
    ]
    words = [config, checkpoint, "--work-dir", tmp_path, "--cfg-options", *less]
    assert main("test.py", *words) == 2
    assert "finds 2 classes, (box, slab), of which test_dataloader has 1" in capsys.readouterr().err


def test_pictures_do_not_show_other_labels(
    main: Callable, tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, checkpoint = saved_detector(tiny_config, "drawn", SWIN)
    as_checkpoint(checkpoint, dataset_meta=dict(classes=("slab", "box")))
    out = tmp_path / "sheet.png"
    assert main("analysis/draw_predictions.py", config, checkpoint, "--out", out) == 2
    assert "classes in another order than the config" in capsys.readouterr().err


def test_no_text_in_a_checkpoint_is_run(main: Callable, tiny_config: Path, tmp_path: Path) -> None:
    """mmengine runs ``meta['config']``, the text of a config, where a run is resumed."""
    config, checkpoint = saved_detector(tiny_config, "config_text", SWIN)
    ran = tmp_path / "ran"
    as_checkpoint(checkpoint, config=f"open({str(ran)!r}, 'w').close()\n")
    content = torch.load(checkpoint, weights_only=True)
    del content["optimizer"]  # so that the resumed run needs no state of one
    torch.save(content, checkpoint)
    few = ["train_cfg.max_iters=2", "default_hooks.checkpoint.save_optimizer=False"]
    words = [config, "--work-dir", tmp_path / "w", "--resume", checkpoint, "--cfg-options", *few]
    assert main("train.py", *words) == 0
    assert not ran.exists()


MOVED = {
    "exchanged": ("slab", "box"),
    "another before": ("other", "box"),
    "one renamed, one moved": ("slab", "other"),
}


@pytest.mark.parametrize("classes", MOVED.values(), ids=MOVED)
@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_a_class_of_another_label_is_refused(
    script: str, classes: tuple, main: Callable, tiny_config: Path, tmp_path: Path, capsys
) -> None:
    """Also where a run is resumed, whose data would teach other labels from then on."""
    config, checkpoint = saved_detector(tiny_config, "moved", SWIN)
    as_checkpoint(checkpoint, dataset_meta=dict(classes=classes))
    words = [config, "--resume", checkpoint] if script == "train.py" else [config, checkpoint]
    assert main(script, *words, "--work-dir", tmp_path / "work") == 2
    assert "classes in another order than the config" in capsys.readouterr().err


@pytest.mark.parametrize("meta", ["x", dict(dataset_meta="x"), dict(dataset_meta=dict(classes=7))])
def test_classes_that_are_no_names_are_named(
    meta: object, main: Callable, tiny_config: Path, tmp_path: Path, capsys
) -> None:
    config, checkpoint = saved_detector(tiny_config, "nameless", SWIN)
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | dict(meta=meta), checkpoint)
    assert main("test.py", config, checkpoint, "--work-dir", tmp_path) == 2
    error = capsys.readouterr().err
    assert "names of classes" in error and str(checkpoint) in error


@pytest.mark.parametrize("script", ["dist_train.sh", "dist_test.sh"])
def test_dist_scripts_without_arguments_say_how_to_call_them(tool: Callable, script: str) -> None:
    done = tool(script)
    assert done.returncode == 2
    assert f"tools/{script} CONFIG" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "tools").rglob("*.py")), ids=lambda p: p.name)
def test_tools_import_ltm_det_before_what_it_makes_importable(path: Path) -> None:
    names = [
        getattr(node, "module", None) or node.names[0].name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    ours = [i for i, name in enumerate(names) if name.startswith("ltm_det")]
    theirs = [i for i, name in enumerate(names) if name.startswith(("mmdet", "mmcv"))]
    assert not theirs or min(ours) < min(theirs)

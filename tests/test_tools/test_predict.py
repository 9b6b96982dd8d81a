"""From pictures, folders and videos to objects, by a checkpoint and by its exported file."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from ltm_det import Detector
from ltm_det.basics.errors import InputError
from ltm_det.cli.export import main as export
from ltm_det.cli.predict import main as predict
from ltm_det.prediction.detector import as_array
from ltm_det.prediction.sources import names_of
from tests.test_tools.detectors import SWIN, saved_detector

ANY = ["--score-thr", "0.0"]


@pytest.fixture(scope="module")
def detector(tiny_config: Path) -> tuple[Path, Path]:
    return saved_detector(tiny_config, "predicts", SWIN)


@pytest.fixture(scope="module")
def pictures(tiny_config: Path) -> Path:
    return tiny_config.parent / "val"


def test_a_call_gives_what_a_batch_gives(detector: tuple[Path, Path], pictures: Path) -> None:
    model = Detector(*detector, score=0.0)
    assert model.classes == ["box", "slab"]
    files = sorted(pictures.iterdir())[:2]  # one is high, one is wide
    alone = [model(file) for file in files]
    together = model([cv2.imread(str(file)) for file in files])
    for one, other, file in zip(alone, together, files, strict=True):
        assert one.size == other.size == cv2.imread(str(file)).shape[:2]
        assert len(one) == len(other) > 0 and one.bitmaps().shape == (len(one), *one.size)
        assert (np.diff(one.scores) <= 0).all() and set(one.names) <= {"box", "slab"}
        np.testing.assert_allclose(one.scores[0], other.scores[0], atol=1e-4)
    assert model([]) == []
    some = Detector(*detector, score=float(alone[0].scores[0]))(files[0])
    assert 1 <= len(some) < len(alone[0])


def test_all_forms_are_written(
    detector: tuple[Path, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = tmp_path / "in"
    shutil.copytree(pictures, images / "deep")
    shutil.copy(pictures / "1.png", images / "1.png")
    out = tmp_path / "out"
    forms = ["--save", "pictures", "coco", "yolo"]
    words = [*map(str, detector), "--images", str(images), "--out", str(out), "--batch", "2"]
    assert predict([*words, *forms, *ANY]) == 0
    names = {"1", "1_2", "2", "3", "4"}
    assert {file.stem for file in out.glob("*.jpg")} == names
    assert {file.stem for file in (out / "labels").iterdir()} == names
    assert (out / "classes.txt").read_text() == "box\nslab\n"
    written = COCO(str(out / "detections.json"))
    assert len(written.imgs) == 5 and written.anns
    assert f"{len(written.anns)} objects on 5 pictures" in capsys.readouterr().out
    drawn = cv2.imread(str(out / "1.jpg"))
    plain = cv2.imread(str(images / "1.png"))
    assert drawn.shape == plain.shape and (drawn.astype(int) - plain).max() > 60


def test_a_video_becomes_a_video(
    detector: tuple[Path, Path], pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "street.avi"
    video = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        video.write(cv2.imread(str(pictures / "2.png")))
    video.release()
    words = [*map(str, detector), "--images", str(file), "--out", str(tmp_path / "out")]
    assert predict([*words, "--save", "pictures", "coco", *ANY]) == 0
    drawn = cv2.VideoCapture(str(tmp_path / "out" / "street.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 3 and drawn.get(cv2.CAP_PROP_FPS) == 10
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["file_name"] for row in written["images"]][0] == "street_000000"


@pytest.mark.slow
def test_an_exported_file_finds_the_same(
    detector: tuple[Path, Path], pictures: Path, tmp_path: Path
) -> None:
    file = tmp_path / "whole.onnx"
    words = [*map(str, detector), "--part", "detector", "--shape", "64", "64", "--out", str(file)]
    assert export(words) == 0
    picture = pictures / "2.png"
    one = Detector(file, score=0.0, threads=1)(picture)
    other = Detector(*detector, score=0.0)(picture)
    np.testing.assert_allclose(one.scores[:3], other.scores[:3], atol=0.02)  # one is padded
    assert predict([str(file), "--images", str(picture), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("gone.jpg", "no picture, folder or video at gone.jpg"),
        ("empty", "no picture or video in empty"),
        ("notes.txt", "notes.txt ends in none of"),
        ("broken.jpg", "broken.jpg is no picture that OpenCV can read"),
        ("broken.mp4", "broken.mp4 is no video that OpenCV can read"),
    ],
)
def test_what_is_no_picture_is_named(
    detector: tuple[Path, Path],
    images: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("notes.txt", "broken.jpg", "broken.mp4"):
        Path(name).write_text("no picture")
    assert predict([*map(str, detector), "--images", images, "--out", "out"]) == 2
    assert message in capsys.readouterr().err


def test_what_was_found_before_a_broken_picture_is_kept(
    detector: tuple[Path, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    words = [*map(str, detector), "--images", str(pictures / "1.png"), str(broken)]
    assert predict([*words, "--out", str(tmp_path / "out"), "--save", "coco"]) == 2
    assert len(COCO(str(tmp_path / "out" / "detections.json")).imgs) == 1
    assert "broken.png" in capsys.readouterr().err


def test_wrong_arguments_are_named(detector: tuple[Path, Path], tmp_path: Path) -> None:
    config, checkpoint = detector
    with pytest.raises(InputError, match="score=2"):
        Detector(config, checkpoint, score=2)
    with pytest.raises(InputError, match="give the checkpoint"):
        Detector(config)
    with pytest.raises(InputError, match="no checkpoint at"):
        Detector(config, tmp_path / "gone.pth")
    with pytest.raises(InputError, match=r"gone\.onnx"):
        Detector(tmp_path / "gone.onnx")
    with pytest.raises(InputError, match="give no checkpoint"):
        Detector(tmp_path / "gone.onnx", checkpoint)
    with pytest.raises(InputError, match=r"array \(h, w, 3\) of uint8, not \(4, 4\) of float64"):
        Detector(config, checkpoint)(np.zeros((4, 4)))


def nameless(content: dict, name: str) -> None:
    content["meta"] = dict(dataset_meta=dict(classes=7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content, name: content["state_dict"][name].fill_(torch.nan),
            "NaN or infinite weights",
        ),
        (lambda content, name: content["state_dict"].pop(name), "does not fit"),
        (nameless, "its 'meta' says no names of classes"),
    ],
)
def test_weights_that_cannot_be_right_are_named(
    detector: tuple[Path, Path],
    pictures: Path,
    change: Callable,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    content = torch.load(detector[1], weights_only=True)
    change(content, "neck.lateral_convs.0.conv.weight")
    torch.save(content, tmp_path / "wrong.pth")
    words = [str(detector[0]), str(tmp_path / "wrong.pth"), "--images", str(pictures)]
    assert predict([*words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_frames_and_pictures_have_names_of_their_own() -> None:
    files = [Path(name) for name in ("clip.mp4", "clip_000000.png", "b/clip.mp4", "clip.png")]
    assert names_of(files) == ["clip", "clip_000000_2", "clip_2", "clip_3"]


def test_nothing_that_is_read_is_written_over(
    detector: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "own"
    (folder / "images").mkdir(parents=True)
    cv2.imwrite(str(folder / "images/a.jpg"), np.zeros((8, 8, 3), np.uint8))
    for out in (folder, folder / "images"):
        words = [*map(str, detector), "--images", str(folder / "images"), "--out", str(out)]
        assert predict(words) == 2
        assert "a.jpg lies in" in capsys.readouterr().err


def test_names_that_are_no_text_are_refused(detector: tuple[Path, Path], tmp_path: Path) -> None:
    """OpenCV would end the process."""
    name = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(name)).write_bytes(b"")
    with pytest.raises(InputError, match=r"udcff.png' is no text in UTF-8"):
        as_array(os.fsdecode(name))
    words = [*map(str, detector), "--images", str(tmp_path), "--out", str(tmp_path / "out")]
    assert predict(words) == 2


def test_help_names_an_example(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        predict(["--help"])
    assert "detector.onnx --images" in capsys.readouterr().out

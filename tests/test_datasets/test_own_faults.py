"""Own data that cannot be used: what is wrong is named before anything is made of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ltm_det.basics.errors import InputError
from ltm_det.conversion.own_config import same_pictures
from ltm_det.datasets.own import own_data
from tests.test_datasets.test_own import coco_folder, voc_folder, yolo_folder


def broken(root: Path, file: str, text: str | bytes) -> Path:
    (root / file).write_bytes(text.encode() if isinstance(text, str) else text)
    return root


TRAIN, YAML = "train: images/train\n", "names: [a, b, c]\ntrain: images/train\n"
RENAMED = (
    "<annotation><filename>0.png</filename><size><width>9</width><height>9</height></size>"
    "<object><name>a</name></object></annotation>"
)
JSON = "annotations/instances_train2017.json"
ROWS = '{"images": [%s], "annotations": [%s], "categories": [%s]}'


@pytest.mark.parametrize(
    ("make", "file", "text", "message"),
    [
        (yolo_folder, "labels/train/1.txt", "0 0.5 0.5\n", "neither a box nor a polygon"),
        (yolo_folder, "labels/train/1.txt", "\n7 0.5 0.5 0.1 0.1\n", "line 2: there is no class 7"),
        (yolo_folder, "labels/train/1.txt", "a b\n", "is not all numbers"),
        (yolo_folder, "images/train/1.png", "text", "1.png, a picture of"),
        (yolo_folder, "data.yaml", "train: images/train", "must have 'names'"),
        (yolo_folder, "data.yaml", "names: [a]\ntrain: gone", "there is no picture at train: gone"),
        (yolo_folder, "data.yaml", "names: {1: a}\ntrain: images/train", "count them from 0"),
        (yolo_folder, "data.yaml", "names: [", "is no YAML"),
        (coco_folder, "annotations/instances_train2017.json", "{", "is no json"),
        (coco_folder, "annotations/instances_train2017.json", "[]", "has no images, annotations"),
        (coco_folder, "annotations/train.json", "{}", "it has no images"),
        (yolo_folder, "labels/train/1.txt", "nan .5 .5 .3 .3\n", "more than shares"),
        (yolo_folder, "labels/train/1.txt", "0 1e9 .1 .2 1e9 .3 .3\n", "more than shares"),
        (yolo_folder, "labels/train/1.txt", b"\xff\xfe", "1.txt is no text in UTF-8"),
        (yolo_folder, "data.yaml", b"names: [\xff]", "data.yaml is no text in UTF-8"),
        (yolo_folder, "data.yaml", "x: 2024-99-99", "no YAML that can be used"),
        (yolo_folder, "data.yaml", "names: " + "[" * 3000, "no YAML that can be used"),
        (yolo_folder, "data.yaml", "names: {0: a, 0: b}\n" + TRAIN, "the key 0 stands there twice"),
        (yolo_folder, "data.yaml", "names: [yes, no]\n" + TRAIN, "the name True is no text"),
        (yolo_folder, "data.yaml", "nc: 5\nnames: [a, b]\n" + TRAIN, "nc=5, but there are 2 names"),
        (yolo_folder, "data.yaml", YAML + "val: gone", "there is no picture at val: gone"),
        (yolo_folder, "data.yaml", YAML + "val: [gone, images/val]", "there is no gone of"),
        (coco_folder, JSON, '{"images": {}, "annotations": [], "categories": []}', "no list"),
        (coco_folder, JSON, ROWS % ('"x"', "", ""), "images[0] is 'x', no object"),
        (coco_folder, JSON, ROWS % ("", '{"image_id": [1]}', ""), "has image_id=[1]"),
        (coco_folder, JSON, ROWS % ('{"width": "160"}', "", ""), "has width='160'"),
        (coco_folder, JSON, ROWS % ("", "", '{"name": "\\ud800"}'), "has name='\\ud800'"),
        (coco_folder, JSON, ROWS % ("", "", '{"id": 1}, {"id": "a"}'), "numbers and texts"),
        (coco_folder, JSON, "[" * 100_000, "lie too deep in each other"),
        (voc_folder, "Annotations/1.xml", '<?xml version="1.0" encoding="gbk"?><a/>', "is no XML"),
        (voc_folder, "ImageSets/Main/train.txt", b"\xff", "train.txt is no text in UTF-8"),
        (yolo_folder, "data.yaml", "kpt_shape: [4, 2]\n" + YAML, "labels are of key points"),
        (voc_folder, "Annotations/1.xml", RENAMED, "names the picture '0.png', but 1.png is there"),
        (voc_folder, "Annotations/1.xml", "<a>", "1.xml is no XML"),
        (voc_folder, "Annotations/1.xml", "<a></a>", "lacks a size, a name or a box"),
        (voc_folder, "ImageSets/Main/train.txt", "9\n", "names ['9.xml'], which are not in"),
    ],
)
def test_what_is_wrong_is_named(
    make: Callable, file: str, text: str, message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    if file == "annotations/train.json":
        (tmp_path / "annotations/instances_train2017.json").unlink()
        (tmp_path / "annotations/captions_train2017.json").unlink()
    with pytest.raises(InputError) as error:
        own_data(broken(tmp_path, file, text))
    assert message in str(error.value)


def test_pictures_of_a_part_come_from_its_folder(tmp_path: Path) -> None:
    """Not from another one that has the word in its name; of several none is taken."""
    coco_folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / "train2017")
    shutil.copytree(tmp_path / "train2017", tmp_path / "a_train_old")
    with pytest.raises(InputError, match="a_train_old and in .*train2017: call the right one 'tr"):
        own_data(tmp_path)
    (tmp_path / "train2017").rename(tmp_path / "train")
    assert own_data(tmp_path).train.images == tmp_path / "train"


def test_a_byte_order_mark_is_no_number(tmp_path: Path) -> None:
    yolo_folder(tmp_path)
    label = tmp_path / "labels" / "train" / "1.txt"
    before = own_data(tmp_path).train.coco["annotations"]
    label.write_bytes(b"\xef\xbb\xbf" + label.read_bytes())
    assert own_data(tmp_path).train.coco["annotations"] == before


def test_pictures_of_both_parts_are_seen(tmp_path: Path) -> None:
    yolo_folder(tmp_path)
    data = own_data(tmp_path)
    assert data.val is not None and not same_pictures(data.train, data.val)
    data = own_data(broken(tmp_path, "data.yaml", YAML + "val: images/train"))
    assert data.val is not None and same_pictures(data.train, data.val)

"""One set of pictures in all forms: the same objects come out, and what is wrong is named."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from ltm_det.basics.errors import InputError
from ltm_det.datasets.own import OwnData, own_data

CLASSES = ["cat", "dog", "owl"]
SIZES = [(40, 60), (64, 48), (50, 50)]  # height, width of the pictures of a part
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "coco200"


def objects(i: int) -> list[tuple[int, list[float]]]:
    """Classes and boxes (x1, y1, x2, y2) on picture i."""
    return [(i % 3, [4.0, 6.0, 24.0, 30.0]), ((i + 1) % 3, [10.0, 10.0, 40.0, 36.0])][: 1 + i % 2]


def pictures(folder: Path) -> list[tuple[str, int, int]]:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (height, width) in enumerate(SIZES):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((height, width, 3), 90, np.uint8))
        rows.append((f"{i}.png", height, width))
    return rows


def corners(box: list[float]) -> list[float]:
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def coco_json(images: Path, masked: bool) -> dict:
    """With category ids that have gaps, and are not in the order of the list."""
    ids = {0: 17, 1: 3, 2: 90}
    rows, annotations = [], []
    for i, (name, height, width) in enumerate(pictures(images)):
        rows.append(dict(id=10 * i + 5, file_name=name, height=height, width=width))
        for label, (x1, y1, x2, y2) in objects(i):
            row = dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), iscrowd=0)
            if masked:
                row["segmentation"] = [corners([x1, y1, x2, y2])]
            number = len(annotations) + 1
            annotations.append(dict(row, id=number, image_id=10 * i + 5, category_id=ids[label]))
    categories = [dict(id=ids[label], name=CLASSES[label]) for label in (2, 0, 1)]
    return dict(images=rows, annotations=annotations, categories=categories)


def coco_folder(root: Path, masked: bool = True) -> None:
    (root / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        text = json.dumps(coco_json(root / part, masked))
        (root / "annotations" / f"instances_{part}2017.json").write_text(text)
    (root / "annotations" / "captions_train2017.json").write_text("{}")


def roboflow_folder(root: Path, masked: bool = True) -> None:
    for part in ("train", "valid", "test"):
        coco = coco_json(root / part, masked)
        (root / part / "_annotations.coco.json").write_text(json.dumps(coco))


def yolo_folder(root: Path, masked: bool = True, names: object = CLASSES) -> None:
    for part in ("train", "val"):
        (root / "labels" / part).mkdir(parents=True)
        for i, (name, height, width) in enumerate(pictures(root / "images" / part)):
            lines = []
            for label, box in objects(i):
                x1, y1, x2, y2 = box
                numbers = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
                numbers = corners(box) if masked else numbers
                shares = [n / (height if k % 2 else width) for k, n in enumerate(numbers)]
                lines.append(" ".join(map(str, [label, *shares])))
            text = "\n".join(lines) + "\n"
            (root / "labels" / part / Path(name).with_suffix(".txt")).write_text(text)
    about = dict(path="/where/it/was/made", train="images/train", val="images/val", names=names)
    (root / "data.yaml").write_text(json.dumps(about))  # JSON is YAML too


def voc_folder(root: Path, masked: bool = False) -> None:
    assert not masked
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for i, (name, height, width) in enumerate(pictures(root / "JPEGImages")):
        things = "".join(
            f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox>"
            f"<xmin>{box[0] + 1}</xmin><ymin>{box[1] + 1}</ymin>"
            f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
            for label, box in objects(i)
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}</filename>{size}{things}</annotation>"
        (root / "Annotations" / f"{i}.xml").write_text(text)
    for part in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("0\n1\n2\n")


MAKERS: dict[str, Callable[[Path], None]] = {
    "COCO": coco_folder,
    "Roboflow": roboflow_folder,
    "YOLO": yolo_folder,
    "COCO boxes": lambda root: coco_folder(root, masked=False),
    "YOLO boxes": lambda root: yolo_folder(root, masked=False),
    "VOC": voc_folder,
}


def seen(data: OwnData) -> list[tuple[str, str, list[float]]]:
    """Picture, class and box of all objects of both parts, whose pictures are there."""
    rows = []
    for part in (data.train, data.val):
        names = {row["id"]: row["name"] for row in part.coco["categories"]}
        files = {row["id"]: row for row in part.coco["images"]}
        for row in part.coco["annotations"]:
            image = files[row["image_id"]]
            file = part.images / image["file_name"]
            assert cv2.imread(str(file)).shape[:2] == (image["height"], image["width"])
            rows.append((file.stem, names[row["category_id"]], [round(x, 3) for x in row["bbox"]]))
    return rows


@pytest.mark.parametrize("form", MAKERS)
def test_all_forms_say_the_same(form: str, tmp_path: Path) -> None:
    MAKERS[form](tmp_path / "data")
    data = own_data(tmp_path / "data")
    expected = [
        (str(i), CLASSES[label], [x1, y1, x2 - x1, y2 - y1])
        for _ in range(2)
        for i in range(3)
        for label, (x1, y1, x2, y2) in objects(i)
    ]
    assert seen(data) == expected
    assert set(data.classes) == set(CLASSES) and data.form.lower() in (
        form.split()[0].lower(),
        "coco",
    )
    assert data.masked == (form in ("COCO", "Roboflow", "YOLO"))
    assert data.size() == (60, 48)


def test_areas_of_polygons_are_those_of_masks(tmp_path: Path) -> None:
    yolo_folder(tmp_path)
    for row in own_data(tmp_path).train.coco["annotations"]:
        _, _, width, height = row["bbox"]
        assert row["area"] == pytest.approx(width * height, rel=0.1)


def test_what_is_in_coco_s_form_is_not_written_again(tmp_path: Path) -> None:
    coco_folder(tmp_path / "coco")
    yolo_folder(tmp_path / "yolo")
    own, new = (own_data(tmp_path / form) for form in ("coco", "yolo"))
    assert own.write(tmp_path / "out")[0] == tmp_path / "coco/annotations/instances_train2017.json"
    assert not (tmp_path / "out").exists()
    train, val = new.write(tmp_path / "out")
    written = json.loads(train.read_text())
    assert written.pop("info") and written == new.train.coco and val.is_file()
    new.write(tmp_path / "out")  # once more
    train.write_text(json.dumps(new.train.coco))
    with pytest.raises(InputError, match="train.json is there, and is not of this command"):
        new.write(tmp_path / "out")


def test_pictures_without_a_part_are_parted(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    rows = [dict(id=i, file_name="0.png", height=8, width=8) for i in range(25)]
    found = [dict(id=i, image_id=i, category_id=1, bbox=[0, 0, 1, 1]) for i in range(25)]
    coco = dict(images=rows, annotations=found, categories=[dict(id=1, name="cat")])
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((8, 8, 3), np.uint8))
    file.write_text(json.dumps(coco))
    data = own_data(file)
    train, val = ({row["id"] for row in part.coco["images"]} for part in (data.train, data.val))
    assert len(train) == 20 and len(val) == 5 and not train & val
    assert {row["image_id"] for row in data.val.coco["annotations"]} == val
    assert data.train.file is None  # so that write() writes the part alone
    file.write_text(json.dumps(dict(coco, images=rows[:9])))
    with pytest.raises(InputError, match="9 pictures without a part for validation are too few"):
        own_data(file)


def test_names_of_yolo_may_be_numbered(tmp_path: Path) -> None:
    yolo_folder(tmp_path, names=dict(enumerate(CLASSES)))
    assert own_data(tmp_path / "data.yaml").classes == tuple(CLASSES)


def test_data_of_no_known_form(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone"):
        with pytest.raises(InputError, match=r"(?s)(no known form|no data at).*YOLO.*VOC"):
            own_data(path)


def test_coco_without_its_pictures(tmp_path: Path) -> None:
    coco_folder(tmp_path)
    (tmp_path / "train/0.png").unlink()
    with pytest.raises(
        InputError, match=r"0\.png, the first picture of .*instances_train2017\.json"
    ):
        own_data(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared pictures are not here")
def test_a_real_set_in_two_forms(tmp_path: Path) -> None:
    """COCO's ids have gaps; boxes of rounded polygons differ by a pixel at most."""
    yolo, coco = own_data(SHARED), own_data(SHARED / "annotations")
    assert yolo.classes == coco.classes and len(coco.classes) == 80
    for one, other in ((yolo.train, coco.train), (yolo.val, coco.val)):
        rows = []
        for part in (one, other):
            names = {row["id"]: row["name"] for row in part.coco["categories"]}
            files = {row["id"]: Path(row["file_name"]).name for row in part.coco["images"]}
            rows.append(
                sorted(
                    (files[row["image_id"]], names[row["category_id"]])
                    for row in part.coco["annotations"]
                )
            )
        assert rows[0] == rows[1] and len(rows[0]) > 700


def test_entries_without_names_and_sizes_are_left_to_the_check(tmp_path: Path) -> None:
    coco_folder(tmp_path)
    file = tmp_path / "annotations/instances_train2017.json"
    coco = json.loads(file.read_text())
    del coco["images"][0]["width"], coco["categories"][0]["name"]
    coco["categories"].append(coco["categories"][1] | dict(id=200))
    file.write_text(json.dumps(coco))
    data = own_data(tmp_path)
    assert data.size() == (57, 49) and len(data.classes) == 2
    for image in coco["images"]:
        image.pop("width", None)
    file.write_text(json.dumps(coco))
    with pytest.raises(InputError, match="has width and height"):
        own_data(tmp_path).size()

"""Categories of COCO files are found by name, in whatever order and number the file has them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from pycocotools import mask as masks

from ltm_det.basics.errors import InputError

CLASSES = ("box", "slab", "rod", "ball")
SIDE = 64
Coco = dict[str, Any]


def whole() -> Coco:
    """Eight images, each with an object of each class, the first of all having id 0."""
    coco: Coco = dict(images=[], annotations=[], categories=[])
    coco["categories"] = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    for image in range(8):
        coco["images"].append(dict(id=image, file_name=f"{image}.png", height=SIDE, width=SIDE))
        for number in range(len(CLASSES)):
            x, y, w, h = 2 + 14 * number, 3 + 2 * image, 10 + number, 20 - number
            coco["annotations"].append(
                dict(
                    id=len(coco["annotations"]),
                    image_id=image,
                    category_id=number + 1,
                    bbox=[x, y, w, h],
                    area=w * h,
                    iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                )
            )
    return coco


def renumbered(coco: Coco, ids: dict[int, int]) -> None:
    for entry in coco["categories"]:
        entry["id"] = ids[entry["id"]]
    for entry in coco["annotations"]:
        entry["category_id"] = ids[entry["category_id"]]


def lacking(*names: str) -> Callable[[Coco], None]:
    def change(coco: Coco) -> None:
        gone = {entry["id"] for entry in coco["categories"] if entry["name"] in names}
        coco["categories"] = [c for c in coco["categories"] if c["id"] not in gone]
        coco["annotations"] = [a for a in coco["annotations"] if a["category_id"] not in gone]

    return change


def extra(coco: Coco) -> None:
    """Two categories that are no class, one of them with an object."""
    coco["categories"].insert(0, dict(id=50, name="else"))
    coco["categories"].append(dict(id=5, name="nothing"))
    coco["annotations"].append(dict(coco["annotations"][0], id=99, category_id=50))


CHANGES: dict[str, Callable[[Coco], Any]] = {
    "as it is": lambda coco: None,
    "turned round": lambda coco: coco["categories"].reverse(),
    "first lacks": lacking("box"),
    "middle lacks": lacking("slab"),
    "last lacks": lacking("ball"),
    "two lack, turned round": lambda coco: (lacking("box", "rod")(coco), coco["categories"].sort(
        key=lambda entry: -entry["id"]
    )),
    "extra": extra,
    "gaps": lambda coco: renumbered(coco, {1: 90, 2: 0, 3: 17, 4: 5}),
}  # fmt: skip


@pytest.fixture(params=CHANGES)
def coco(request: pytest.FixtureRequest) -> Coco:
    changed = whole()
    CHANGES[request.param](changed)
    return changed


@pytest.fixture
def file(coco: Coco, tmp_path: Path) -> Path:
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(coco))
    return path


def truth(coco: Coco) -> dict[int, list[tuple[list, str]]]:
    """Boxes and class names of each image, as the file says."""
    names = {entry["id"]: entry["name"] for entry in coco["categories"]}
    found: dict[int, list] = {entry["id"]: [] for entry in coco["images"]}
    for entry in coco["annotations"]:
        if names[entry["category_id"]] in CLASSES:
            x, y, w, h = entry["bbox"]
            found[entry["image_id"]].append(([x, y, x + w, y + h], names[entry["category_id"]]))
    return found


def test_labels_are_those_of_the_names(coco: Coco, file: Path) -> None:
    dataset = CocoDataset(
        ann_file=str(file), metainfo=dict(classes=CLASSES), pipeline=[], data_prefix=dict(img="")
    )
    assert len(dataset) == 8
    for index in range(8):
        info = dataset.get_data_info(index)
        got = [(thing["bbox"], CLASSES[thing["bbox_label"]]) for thing in info["instances"]]
        assert got == truth(coco)[info["img_id"]]


def test_training_keeps_images_of_the_classes(coco: Coco, file: Path) -> None:
    dataset = CocoDataset(
        ann_file=str(file),
        metainfo=dict(classes=CLASSES),
        pipeline=[],
        data_prefix=dict(img=""),
        filter_cfg=dict(filter_empty_gt=True),
    )
    assert len(dataset) == 8


@pytest.mark.parametrize("own_file", [True, False], ids=["from the file", "from the samples"])
def test_perfect_predictions_have_ap_1(coco: Coco, file: Path, own_file: bool) -> None:
    """Of boxes and masks, of each class that there is, and nothing for the others."""
    metric = CocoMetric(
        ann_file=str(file) if own_file else None, metric=["bbox", "segm"], classwise=True
    )
    metric.dataset_meta = dict(classes=CLASSES)
    given = truth(coco)
    for image, things in given.items():
        boxes = torch.tensor([box for box, _ in things], dtype=torch.float32)
        labels = torch.tensor([CLASSES.index(name) for _, name in things])
        polygons = [[[x, y, u, y, u, v, x, v]] for (x, y, u, v), _ in things]
        runs = [masks.merge(masks.frPyObjects(polygon, SIDE, SIDE)) for polygon in polygons]
        predicted = dict(bboxes=boxes, labels=labels, scores=torch.ones(len(labels)), masks=runs)
        instances = [
            dict(bbox=box, bbox_label=CLASSES.index(name), mask=polygon, ignore_flag=0)
            for (box, name), polygon in zip(things, polygons, strict=True)
        ]
        sample = dict(img_id=image, ori_shape=(SIDE, SIDE), pred_instances=predicted)
        metric.process({}, [dict(sample, instances=instances)])
    found = metric.evaluate(len(given))
    assert found["coco/bbox_mAP"] == found["coco/segm_mAP"] == 1
    there = {name for things in given.values() for _, name in things}
    for name in CLASSES:
        value = found[f"coco/{name}_precision"]
        assert value == 1 if name in there else value != value  # NaN: there is no such object


def test_ids_are_the_same_whenever_they_are_asked_for(coco: Coco, file: Path) -> None:
    api = COCO(str(file))
    ids = api.get_cat_ids(cat_names=CLASSES)
    assert len(set(ids)) == 4 and api.get_cat_ids(cat_names=CLASSES) == ids
    assert [api.load_cats(number)[0]["name"] for number in ids] == list(CLASSES)
    assert api.get_cat_ids(cat_names="rod") == [ids[2]]
    assert api.get_cat_ids(cat_names=["ball", "box"]) == [ids[3], ids[0]]
    absent = {*ids} - {entry["id"] for entry in coco["categories"]}
    assert not absent & {entry["category_id"] for entry in coco["annotations"]}


def test_other_questions_are_answered_as_before(tmp_path: Path) -> None:
    coco = whole()
    (tmp_path / "a.json").write_text(json.dumps(coco))
    api = COCO(str(tmp_path / "a.json"))
    assert api.get_cat_ids() == [1, 2, 3, 4]
    assert api.get_cat_ids(cat_ids=[2, 9]) == [2]
    assert api.get_cat_ids(["box", "rod"], cat_ids=[3]) == [3]


@pytest.mark.parametrize("found", CLASSES)
def test_the_table_of_classes_names_the_right_one(found: str, coco: Coco, file: Path) -> None:
    """Where one class alone is found, it alone has an AP above 0."""
    metric = CocoMetric(ann_file=str(file), classwise=True)
    metric.dataset_meta = dict(classes=CLASSES)
    given = truth(coco)
    for image, things in given.items():
        own = [box for box, name in things if name == found] or [[0, 0, 1, 1]]
        labels = torch.full((len(own),), CLASSES.index(found))
        boxes = torch.tensor(own, dtype=torch.float32)
        predicted = dict(bboxes=boxes, labels=labels, scores=torch.ones(len(own)))
        metric.process({}, [dict(img_id=image, ori_shape=(SIDE, SIDE), pred_instances=predicted)])
    table = metric.evaluate(len(given))
    there = {name for things in given.values() for _, name in things}
    right = {name: float(name == found) for name in there}
    assert {name: table[f"coco/{name}_precision"] for name in there} == right


@pytest.mark.parametrize("where", ["file", "classes"])
def test_a_name_twice_is_an_error(where: str, tmp_path: Path) -> None:
    coco, classes = copy.deepcopy(whole()), CLASSES
    if where == "file":
        coco["categories"].append(dict(id=9, name="rod"))
    else:
        classes = (*CLASSES, "rod")
    (tmp_path / "a.json").write_text(json.dumps(coco))
    with pytest.raises(InputError, match="names twice: 'rod'"):
        COCO(str(tmp_path / "a.json")).get_cat_ids(cat_names=classes)


def test_no_categories_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(dict(images=[], annotations=[])))
    with pytest.raises(InputError, match="no list of categories"):
        COCO(str(tmp_path / "a.json")).get_cat_ids(cat_names=CLASSES)

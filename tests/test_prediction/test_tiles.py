"""Large pictures in tiles: what the tiles' borders cut comes out once, whole, and in its place."""

import json
import sys

import numpy as np
import pytest
from pycocotools import mask as coco

from ltm_det.basics.errors import InputError
from ltm_det.cli.predict import parse
from ltm_det.datasets.demo import make_demo_data
from ltm_det.deploy import Detections
from ltm_det.prediction import Tiles
from ltm_det.prediction.tiles import (
    Find,
    cut_by_borders,
    find_in_tiles,
    groups,
    joined,
    laid,
    placed_mask,
)

SIDE, ACROSS = 128, 3  # pixels of a demo picture, and how many stand beside each other
TILE = (112, 112)

pytest.importorskip("sahi", reason="SAHI lays the tiles: pip install 'ltm_det[tiles]'")


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Demo pictures beside and below each other; instead of colours, objects' numbers from 1 and
    their labels: what is to be found can be read off every part of it."""
    folder = tmp_path_factory.mktemp("mosaic") / "demo"
    make_demo_data(folder, train=1, val=ACROSS**2, size=SIDE, seed=0)
    truth = json.loads((folder / "annotations/val.json").read_text())
    picture = np.zeros((ACROSS * SIDE, ACROSS * SIDE, 3), np.uint8)
    at = {image["id"]: divmod(i, ACROSS) for i, image in enumerate(truth["images"])}
    for number, row in enumerate(truth["annotations"], start=1):
        y, x = (SIDE * place for place in at[row["image_id"]])
        segmentation = row["segmentation"]
        if isinstance(segmentation, list):
            segmentation = coco.merge(coco.frPyObjects(segmentation, SIDE, SIDE))
        elif isinstance(segmentation["counts"], list):
            segmentation = coco.frPyObjects(segmentation, SIDE, SIDE)
        inside = coco.decode(segmentation).astype(bool)
        picture[y : y + SIDE, x : x + SIDE][inside] = number, row["category_id"], 0
    return picture


def detections(picture: np.ndarray, scores: dict[int, float], cut_label: int | None) -> Detections:
    """All that is on a part of the mosaic, as a faultless detector finds it; but it takes for
    ``cut_label`` what touches the border."""
    boxes, found, labels, masks = [], [], [], []
    for number in sorted({*np.unique(picture[..., 0]).tolist()} - {0}):
        mask = picture[..., 0] == number
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        touches = 0 in box[:2] or box[2] == mask.shape[1] or box[3] == mask.shape[0]
        label = int(picture[ys[0], xs[0], 1])
        boxes.append(box)
        labels.append(cut_label if touches and cut_label is not None else label)
        found.append(scores.get(number, 0.5) + 0.4 * touches)  # parts are surer of themselves
        masks.append(coco.encode(np.asfortranarray(mask.astype(np.uint8))))
    names = [f"name {label}" for label in labels]
    array = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(
        array, np.array(found), np.array(labels, int), names, masks, picture.shape[:2]
    )


def faultless(cut_label: int | None = None) -> Find:
    return lambda pictures: [detections(picture, {}, cut_label) for picture in pictures]


def numbers_of(found: Detections, mosaic: np.ndarray) -> list[int]:
    """Which of the mosaic's objects was found, of each: that of most of its pixels."""
    return [int(np.bincount(mosaic[..., 0][mask]).argmax()) for mask in found.bitmaps()]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("cut_label", [None, 77])
@pytest.mark.parametrize("overlap", [0.2, 0.5])
def test_every_object_comes_out_once(
    mosaic: np.ndarray, whole: bool, cut_label: int | None, overlap: float
) -> None:
    tiles = Tiles(TILE, overlap, whole, batch=3)
    found = find_in_tiles(faultless(cut_label), mosaic, tiles, None, score=0.1)
    there = np.unique(mosaic[..., 0])[1:].tolist()
    assert len(there) > 20
    assert sorted(numbers_of(found, mosaic)) == there
    assert found.size == mosaic.shape[:2] and (np.diff(found.scores) <= 0).all()
    truth = detections(mosaic, {}, None)
    order = np.argsort(numbers_of(found, mosaic))
    uncut = found.labels[order] != 77
    assert uncut.all() if whole or cut_label is None else uncut.any()
    np.testing.assert_array_equal(found.bitmaps()[order], truth.bitmaps())
    np.testing.assert_array_equal(found.boxes[order], truth.boxes)
    np.testing.assert_array_equal(found.labels[order][uncut], truth.labels[uncut])
    assert found.names == [f"name {label}" for label in found.labels]


def test_without_joining_they_would_come_twice(mosaic: np.ndarray) -> None:
    """The mosaic does have objects at the tiles' borders."""
    boxes = laid(mosaic.shape[:2], TILE, 0.2)
    several = sum(len(np.unique(mosaic[y1:y2, x1:x2, 0])) - 1 for x1, y1, x2, y2 in boxes)
    assert several > 1.3 * len(np.unique(mosaic[..., 0]))


def test_an_object_larger_than_a_tile_is_joined_of_its_parts() -> None:
    picture = np.zeros((300, 420, 3), np.uint8)
    picture[40:260, 30:400] = 1, 3, 0
    picture[120:160, 200:230] = 0  # a hole
    found = find_in_tiles(faultless(), picture, Tiles(100, 0.6, whole=False), None, 0.0)
    assert len(found) == 1 and found.labels[0] == 3
    np.testing.assert_array_equal(found.bitmaps()[0], picture[..., 0] == 1)
    np.testing.assert_array_equal(found.boxes, [[30, 40, 400, 260]])


def test_neighbours_of_one_view_are_never_joined() -> None:
    """A small one before a large one of its class, and both at a border."""
    large, small = [10, 10, 90, 90], [30, 30, 50, 50]
    one = boxes_alone([large, small], [0.9, 0.8])
    other = boxes_alone([[12, 10, 90, 90], [30, 31, 50, 50]], [0.7, 0.85])
    found = joined([one, other], [(0, 0, 100, 100), (5, 0, 105, 100)], match=0.5)
    np.testing.assert_array_equal(found.boxes, [large, [30, 31, 50, 50]])
    assert found.masks is None and found.names is None


def boxes_alone(boxes: list, scores: list) -> Detections:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), int)
    return Detections(array, np.array(scores), labels, None, None, (100, 110))


def test_nothing_found_is_nothing() -> None:
    none = boxes_alone([], [])
    assert len(joined([none, none], [(0, 0, 60, 100), (50, 0, 110, 100)], 0.5)) == 0


def test_groups_take_the_nearest_first() -> None:
    shares = np.array([[0, 0.6, 0.9], [0.6, 0, 0], [0.9, 0, 0]])
    found = groups(shares, np.array([0, 1, 1]), 0.5)
    assert [sorted(group.tolist()) for group in found] == [[0, 2], [1]]


def test_cut_is_what_goes_on_beyond_a_tile() -> None:
    views = np.array([[0, 0, 50, 50], [0, 0, 50, 50], [40, 0, 90, 50], [40, 0, 90, 50]])
    boxes = np.array([[0, 0, 9, 9], [20, 9, 49, 30], [41, 9, 60, 30], [70, 9, 90, 50]])
    assert cut_by_borders(boxes, views, (50, 90)).tolist() == [False, True, True, False]


@pytest.mark.parametrize("at", [(0, 0), (7, 3), (20, 30)])
def test_a_mask_is_placed_as_its_pixels_are(at: tuple[int, int]) -> None:
    x, y = at
    rng = np.random.default_rng(0)
    full = rng.random((20, 30)) < 0.6
    full[:, 4:6] = True  # runs that go on in the next column, where the tile is as high as all
    for mask in (full, full & False, full | True):
        large = np.zeros((20 + y, 50), np.uint8)
        large[y : y + 20, x : x + 30][:, : 50 - x] = mask[:, : 50 - x]
        tile = coco.encode(np.asfortranarray(mask[:, : 50 - x].astype(np.uint8)))
        placed = placed_mask(tile, x, y, large.shape)
        assert placed["size"] == list(large.shape)
        np.testing.assert_array_equal(coco.decode(placed), large)
        assert placed["counts"] == coco.encode(np.asfortranarray(large))["counts"]


def test_small_pictures_are_not_cut() -> None:
    assert laid((100, 80), (100, 100), 0.2) == [(0, 0, 80, 100)]
    tiles = laid((250, 100), (100, 100), 0.2)
    assert tiles == [(0, 0, 100, 100), (0, 80, 100, 180), (0, 150, 100, 250)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=4), "16 pixels"),
        (dict(size=(64, 64, 3)), "16 pixels"),
        (dict(overlap=1.0), "0 to 0.9"),
        (dict(batch=0), "at least 1"),
        (dict(match=0.0), "up to 1"),
    ],
)
def test_wrong_settings_are_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tiles(**options)


def test_a_detector_of_any_size_needs_the_tiles_size() -> None:
    with pytest.raises(InputError, match="give the tiles' size"):
        find_in_tiles(faultless(), np.zeros((80, 80, 3), np.uint8), Tiles(), None, 0.0)


def test_options_of_tiles_without_tiles_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(["a.onnx", "--images", "a.jpg", "--out", "out", "--tile-size", "640"])
    assert "give it too" in capsys.readouterr().err


def test_without_sahi_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sahi.slicing", None)
    with pytest.raises(ImportError, match=r"ltm_det\[tiles\]"):
        laid((300, 300), (100, 100), 0.2)
    assert laid((90, 90), (100, 100), 0.2) == [(0, 0, 90, 90)]

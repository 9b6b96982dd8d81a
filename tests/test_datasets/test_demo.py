"""The demo dataset: the same bytes everywhere, exact masks, disjoint digits, no file harmed."""

import hashlib
import json
import runpy
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from ltm_det.datasets import DemoDataError, make_demo_data
from ltm_det.datasets.demo import MARKER, split_digits
from ltm_det.datasets.png import encode_png
from ltm_det.datasets.scene import MAX_HEIGHT, MIN_VISIBLE, Draw, draw_scene, enlarge, visible

coco = pytest.importorskip("pycocotools.coco")
cv2 = pytest.importorskip("cv2")
TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_demo_data.py"
SMALL = {"train": 6, "val": 4, "size": 128, "seed": 3}
# Of every file of SMALL. A change of these bytes must raise VERSION in ltm_det/datasets/demo.py.
SMALL_SHA256 = "af88b817d26a188c5543d9c0d152fa5df84df9da05d0da96013ea76b76632f74"
SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "small"
    assert make_demo_data(out, **SMALL)
    return out


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = pytest.importorskip("sklearn.datasets").load_digits()
    return data.images.astype(np.int64), data.target


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return total.hexdigest()


def run_tool(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the tool; in this process, since imports take seconds."""
    tool = runpy.run_path(str(TOOL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(TOOL), *arguments])
        code = tool["main"]()
    return code, *capsys.readouterr()


def load(folder: Path, split: str) -> "coco.COCO":
    return coco.COCO(str(folder / "annotations" / f"{split}.json"))


def scenes(digits, count: int, size: int = 128):
    """Scenes on a background of one colour that no object has."""
    ground = np.zeros((300, 300, 3), np.uint8)
    for i in range(count):
        yield draw_scene(Draw(9, i), [ground], *digits, np.arange(len(digits[0])), size)


def test_bytes_are_the_recorded_ones(small):
    assert digest(small) == SMALL_SHA256


def test_two_runs_agree_and_seeds_differ(small, tmp_path):
    make_demo_data(tmp_path / "again", **SMALL)
    assert digest(tmp_path / "again") == digest(small)
    make_demo_data(tmp_path / "other", **{**SMALL, "seed": 4})
    names = [path.name for path in sorted((small / "train").iterdir())]
    assert names == [f"{i:06d}.png" for i in range(SMALL["train"])]
    for name in names:
        other = (tmp_path / "other" / "train" / name).read_bytes()
        assert (small / "train" / name).read_bytes() != other


def test_larger_set_begins_with_the_smaller(small, tmp_path):
    make_demo_data(tmp_path / "more", **{**SMALL, "train": 8})
    for path in (small / "train").iterdir():
        assert path.read_bytes() == (tmp_path / "more" / "train" / path.name).read_bytes()


@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_api_reads_it(small, split):
    data = load(small, split)
    assert len(data.imgs) == SMALL[split]
    assert [c["name"] for c in data.loadCats(data.getCatIds())] == list("0123456789")
    for row in data.imgs.values():
        image = cv2.imread(str(small / split / row["file_name"]))
        assert image.shape == (row["height"], row["width"], 3) == (128, 128, 3)
        assert data.getAnnIds(row["id"])


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_are_tight_and_masks_disjoint(small, split):
    data = load(small, split)
    for image_id in data.imgs:
        owners = np.zeros((128, 128), np.int64)
        for row in data.loadAnns(data.getAnnIds(image_id)):
            mask = data.annToMask(row)
            ys, xs = np.nonzero(mask)
            x, y, w, h = row["bbox"]
            assert (x, y) == (xs.min(), ys.min())
            assert (x + w, y + h) == (xs.max() + 1, ys.max() + 1)
            assert row["area"] == mask.sum() and row["iscrowd"] == 0
            owners += mask
        assert owners.max() == 1


def test_splits_share_no_digit(small, digits):
    pools = {split: set(pool.tolist()) for split, pool in split_digits(len(digits[0])).items()}
    assert not pools["train"] & pools["val"]
    assert pools["train"] | pools["val"] == set(range(len(digits[0])))
    for split in SPLITS:
        for row in load(small, split).anns.values():
            assert row["digit"] in pools[split]
            assert row["category_id"] == digits[1][row["digit"]]


def test_masks_are_the_visible_pixels(digits):
    """Oracle: paint one object after the other, pixel by pixel, on a black ground."""
    for scene in scenes(digits, 30):
        owner = np.full(scene.image.shape[:2], -1)
        painted = np.zeros_like(scene.image)
        for i, thing in enumerate(scene.things):
            for y, x in zip(*np.nonzero(thing.ink), strict=True):
                owner[thing.top + y, thing.left + x] = i
                shade = [int(thing.ink[y, x]) * channel // 255 for channel in thing.colour]
                painted[thing.top + y, thing.left + x] = shade
        np.testing.assert_array_equal(scene.image, painted)
        np.testing.assert_array_equal(np.any(scene.masks, axis=0), scene.image.any(-1))
        for i, mask in enumerate(scene.masks):
            np.testing.assert_array_equal(mask, owner == i)


def test_no_object_is_mostly_hidden_and_occlusion_happens(digits):
    covered = 0
    for scene in scenes(digits, 60):
        assert scene.things
        for thing, mask in zip(scene.things, scene.masks, strict=True):
            whole = int((thing.ink > 0).sum())
            assert 100 * int(mask.sum()) >= MIN_VISIBLE * whole
            covered += mask.sum() < whole
            assert thing.ink[0].any() and thing.ink[:, 0].any()
    assert covered > 5


def test_objects_are_24_to_96_pixels(digits):
    longest = [max(t.ink.shape) for s in scenes(digits, 150, size=160) for t in s.things]
    assert 24 <= min(longest) < 32
    assert MAX_HEIGHT * 0.9 < max(longest) <= 96


def test_visible_on_a_hand_made_case(digits):
    first, second = next(s for s in scenes(digits, 50) if len(s.things) > 1).things[:2]
    below, above = visible([first, second], 128)
    assert above.sum() == (second.ink > 0).sum()
    assert not (below & above).any()
    alone = visible([first], 128)[0]
    np.testing.assert_array_equal(alone & ~above, below)


@pytest.mark.parametrize(("h", "w"), [(8, 8), (24, 31), (97, 40), (5, 3), (1, 1)])
def test_enlarge_against_float_oracle(h, w):
    digit = np.random.default_rng(0).integers(0, 17, (8, 8))
    ys = np.clip((np.arange(h) + 0.5) * 8 / h - 0.5, 0, 7)
    xs = np.clip((np.arange(w) + 0.5) * 8 / w - 0.5, 0, 7)
    rows = np.stack([np.interp(ys, np.arange(8), column) for column in digit.T], 1)
    expected = np.stack([np.interp(xs, np.arange(8), row) for row in rows])
    got = enlarge(digit, h, w)
    assert got.dtype == np.int64
    np.testing.assert_allclose(got / (4 * h * w), expected, atol=1e-12)


def test_draw_is_uniform_repeatable_and_inclusive():
    draw = Draw(1, 2)
    values = [draw(-1, 3) for _ in range(5000)]
    counts = [values.count(v) for v in range(-1, 4)]
    assert sum(counts) == 5000 and min(counts) > 850
    again = Draw(1, 2)
    assert [again(-1, 3) for _ in range(100)] == values[:100]
    assert [Draw(0, 0, 0)(0, 10**6), Draw(5, 1, 7)(0, 10**6)] == [593352, 120027]  # as recorded


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (160, 160), (31, 300)])
def test_png_is_lossless_in_two_readers(shape):
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    data = encode_png(image)
    read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(read[..., ::-1], image)
    start = data.index(b"IDAT")
    length = int.from_bytes(data[start - 4 : start], "big")
    raw = zlib.decompress(data[start + 4 : start + 4 + length])
    rows = np.frombuffer(raw, np.uint8).reshape(shape[0], -1)
    np.testing.assert_array_equal(rows[:, 1:].reshape(*shape, 3), image)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_png_refuses_what_is_not_an_rgb_image(image):
    with pytest.raises(ValueError, match="uint8, not"):
        encode_png(image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 0}, "train must be at least 1, not 0"),
        ({"val": -2}, "val must be at least 1, not -2"),
        ({"size": 95}, "size must be at least 96, not 95"),
        ({"size": 428}, "size must be at most 427"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ],
)
def test_bad_arguments(tmp_path, change, message):
    with pytest.raises(DemoDataError, match=message):
        make_demo_data(tmp_path / "out", **{**SMALL, **change})
    assert not (tmp_path / "out").exists()


def test_same_arguments_do_nothing_and_others_are_refused(small):
    before = {path: path.stat().st_mtime_ns for path in small.rglob("*")}
    assert make_demo_data(small, **SMALL) is False
    with pytest.raises(DemoDataError, match="was made with"):
        make_demo_data(small, **{**SMALL, "seed": 5})
    assert before == {path: path.stat().st_mtime_ns for path in small.rglob("*")}


def test_interrupted_run_is_finished(small, tmp_path):
    def interrupt(items, split):
        for i in items:
            if i == 2:
                raise KeyboardInterrupt
            yield i

    out = tmp_path / "half"
    with pytest.raises(KeyboardInterrupt):
        make_demo_data(out, **SMALL, progress=interrupt)
    assert json.loads((out / MARKER).read_text())["complete"] is False
    assert make_demo_data(out, **SMALL)
    assert digest(out) == digest(small)


@pytest.mark.parametrize("marker", ["not json", "[]", "{}"])
def test_damaged_marker_is_refused(tmp_path, marker):
    (tmp_path / MARKER).write_text(marker)
    with pytest.raises(DemoDataError, match="damaged"):
        make_demo_data(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [MARKER]


def test_command(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    arguments = ["--out", str(out), "--train", "2", "--val", "1", "--size", "96", "--seed", "0"]
    code, shown, progress = run_tool(capsys, *arguments)
    assert (code, shown) == (0, f"{out}: written\n")
    assert "2/2" in progress
    code, shown, _ = run_tool(capsys, *arguments)
    assert (code, shown) == (0, f"{out}: complete already, nothing to do\n")


def test_command_refuses_a_folder_of_someone_else(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, error = run_tool(capsys, "--out", str(tmp_path), "--train", "2", "--val", "1")
    assert code == 2 and "holds files that are not this tool's" in error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(SystemExit) as stop:
        run_tool(capsys, "--out", str(tmp_path / "notes.txt"))
    assert stop.value.code == 2 and "is a file" in capsys.readouterr().err


def test_command_refuses_bad_arguments(tmp_path, capsys):
    code, _, error = run_tool(capsys, "--out", str(tmp_path / "out"), "--size", "95")
    assert code == 2 and "at least 96, not 95" in error
    assert not (tmp_path / "out").exists()

"""Whole detectors' times: who takes part, with which weights, and which part takes what."""

import copy
import json
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from mmdet.models import MaskRCNN
from mmengine.config import Config

from ltm_det.detectors import LEAN, FastMaskRCNN
from ltm_det.measure import detectors
from ltm_det.measure.benchmark_tables import detector_rows, detector_table
from ltm_det.measure.detector_forms import FORMS, batch_of

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs/demo_ltm_swin_maskrcnn.py"
OWN = ["mmdet", "torchvision", "dense", "merged", "dense+mmdet", "merged+mmdet"]
NAMES = [*OWN, "dense+lean", "merged+lean"]


@pytest.fixture(scope="module")
def cfg() -> Config:
    return Config.fromfile(DEMO)


@pytest.fixture(scope="module")
def built(cfg: Config) -> dict[str, torch.nn.Module]:
    return detectors.build_detectors(cfg, NAMES, "cpu")


def test_names(cfg: Config) -> None:
    assert detectors.known_detectors(cfg) == NAMES
    vit = Config.fromfile(ROOT / "configs/vit_s_cascade.py")
    assert detectors.known_detectors(vit) == ["timm", "dense", "dense+mmdet", "dense+lean"]
    with pytest.raises(ValueError, match="unknown detector 'fast': choose from"):
        detectors.build_detectors(cfg, ["fast"], "cpu")
    other = Config(dict(model=dict(type="RetinaNet", backbone=cfg.model.backbone)))
    with pytest.raises(ValueError, match="a RetinaNet: give one of"):
        detectors.known_detectors(other)


@torch.no_grad()
def test_all_have_the_same_weights_and_find_the_same(built) -> None:
    """Dense ones, whatever their backbone's and heads' form."""
    assert [type(model) is FastMaskRCNN for model in built.values()] == [0, 0, 1, 1, 0, 0, 1, 1]
    images = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8)
    maps = {
        name: model.extract_feat(images / 255)[0]
        for name, model in built.items()
        if name != "torchvision"
    }
    for name in ("mmdet", "dense+mmdet"):  # lean heads have other maps
        assert (maps[name] - maps["dense"]).abs().max() < 1e-3 * maps["dense"].abs().max()
    assert (maps["merged+mmdet"] - maps["merged"]).abs().max() < 1e-3 * maps["merged"].abs().max()
    assert (maps["merged"] - maps["dense"]).abs().max() > 1e-3 * maps["dense"].abs().max()


@torch.no_grad()
def test_torchvision_finds_the_same_where_its_regions_lie_the_same(built, monkeypatch) -> None:
    """Its RoIAlign is half a cell beside mmdet's, and its Swin shifts no window as large as the
    map; less that, all is equal."""
    images = torch.randint(0, 256, (1, 3, 448, 448), dtype=torch.uint8)
    align = torchvision.ops.poolers.roi_align
    monkeypatch.setattr(torchvision.ops.poolers, "roi_align", partial(align, aligned=True))
    threshold = detectors.find_threshold(built["mmdet"], images, 7)
    found = []
    for name in ("mmdet", "torchvision"):
        before = 0.05
        detectors.set_threshold(built[name], threshold)
        found.append([own.pred_instances for own in built[name].test_step(batch_of(images))])
        detectors.set_threshold(built[name], before)
    for ours, theirs in zip(*found):
        count = min(len(ours), len(theirs), 5)  # the last may lie at the threshold
        assert count > 0 and abs(len(ours) - len(theirs)) <= 1
        for key, near in dict(bboxes=0.02, scores=1e-4, labels=0).items():
            torch.testing.assert_close(theirs[key][:count], ours[key][:count], atol=near, rtol=0)
        assert theirs.masks.shape[1:] == ours.masks.shape[1:]
    ours, theirs = built["mmdet"].roi_head.mask_head, built["torchvision"].model.roi_heads
    cells = torch.randn(3, ours.in_channels, 14, 14)
    found = theirs.mask_predictor(theirs.mask_head(cells))[:, 1:]  # less background
    torch.testing.assert_close(found, ours(cells).expand_as(found), atol=1e-5, rtol=1e-4)


def test_torchvision_takes_part_where_it_has_the_detector(cfg: Config) -> None:
    cascade = Config.fromfile(ROOT / "configs/ltm_swin_t_cascade.py")
    assert "torchvision" not in detectors.known_detectors(cascade)
    fast = copy.deepcopy(cfg)
    fast.model.type = "FastMaskRCNN"
    assert "torchvision" in detectors.known_detectors(fast)
    boxes = copy.deepcopy(cfg)
    boxes.model.type = "FasterRCNN"
    for name in ("mask_head", "mask_roi_extractor"):
        boxes.model.roi_head.pop(name)
    (model,) = detectors.build_detectors(boxes, ["torchvision"], "cpu").values()
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        (found,) = model.test_step(batch_of(images))
    assert "masks" not in found.pred_instances and len(found.pred_instances.bboxes) > 0


def test_the_threshold_leaves_so_many_objects(built) -> None:
    images = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8)
    model = built["dense"]
    before = model.roi_head.test_cfg.score_thr
    model.roi_head.test_cfg.score_thr = detectors.find_threshold(model, images, 7)
    with torch.no_grad():
        (found,) = model.test_step(batch_of(images))
    model.roi_head.test_cfg.score_thr = before
    assert len(found.pred_instances) == 7


def test_parts_make_up_the_whole(built) -> None:
    images = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    models = {name: built[name] for name in ("mmdet", "merged")}
    (found,) = detectors.time_detectors(models, images, "float32", "cpu", 2, 0).values()
    for own in found.values():
        assert set(own["parts"]) <= set(detectors.PARTS) and min(own["parts"].values()) >= 0
        assert len(own["seconds"]) == 2 and own["proposals"] > 0
    rows = detector_rows(found, "mmdet")
    assert rows[0]["ratio"] == 1 and rows[1]["model"] == "merged"
    printed = detector_table(rows)
    assert all(part in printed for part in rows[0]["parts"])
    assert not any("forward" in vars(model.backbone) for model in models.values())


def test_lean_heads_are_the_configs_own_or_the_common_ones(cfg: Config, built) -> None:
    """And no others: a config's recipe is not that of its exact heads."""
    assert built["merged+lean"].test_cfg.rcnn.mask_score == LEAN.mask_score
    own = copy.deepcopy(cfg)
    own.model.update(type="FastMaskRCNN", lean=dict(masks=3))
    found = detectors.build_detectors(own, ["mmdet", "merged", "merged+lean"], "cpu")
    counts = [model.roi_head.test_cfg.get("masks") for model in found.values()]
    assert counts == [None, None, 3] and type(found["mmdet"]) is MaskRCNN


@pytest.mark.slow
def test_forms_of_a_detector_find_the_same(built) -> None:
    """From images on: compiled, and as a file, int8 about."""
    images = torch.randint(0, 256, (1, 3, 112, 112), dtype=torch.uint8)
    model = built["merged"]
    forms = ["eager", "compiled", "openvino", "openvino_int8"]
    found = {}
    with torch.no_grad():
        for how in forms:
            run = FORMS[how](model, images)
            found[how] = getattr(run(images)[0], "pred_instances", run(images)[0])
    scores = {how: torch.as_tensor(own.scores)[:5] for how, own in found.items()}
    for how in forms[1:3]:
        torch.testing.assert_close(scores[how], scores["eager"], atol=1e-3, rtol=0)
    assert all(len(own) > 0 for own in found.values())
    (own,) = detectors.time_detectors(
        dict(merged=model), images, "float32", "cpu", 2, 0, forms=forms[:2]
    ).values()
    assert list(own) == ["merged", "merged compiled"]
    assert [row["how"] for row in own.values()] == forms[:2]
    assert "parts" in own["merged"] and "parts" not in own["merged compiled"]
    printed = detector_table(detector_rows(own, "merged"))
    assert "merged compiled" in printed


def test_sums_of_calls_by_pass() -> None:
    assert detectors.sums([1, 2, 3, 4], 2) == [3, 7]
    assert detectors.sums([], 2) == [0.0]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    main = runpy.run_path(str(ROOT / "tools/analysis/benchmark.py"), run_name="tool")["main"]

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, words)])
        return main()

    return run


def test_the_tool_on_a_checkpoint(tool, built, tmp_path: Path, capsys) -> None:
    torch.save(dict(state_dict=built["merged"].state_dict()), tmp_path / "own.pth")
    words = [DEMO, "--part", "detector", "--models", "mmdet", "merged", "--shape", 96, 112]
    words += ["--rounds", 1, "--warm-up", 0, "--objects", 5, "--checkpoint", tmp_path / "own.pth"]
    words += ["--device", "cpu", "--json", tmp_path / "a.json", "--plot", tmp_path / "a.png"]
    assert tool(*words) == 0
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["mmdet", "merged"] and rows[0]["objects"] == 5
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert "RoIAlign" in capsys.readouterr().out


def test_another_detectors_checkpoint_is_refused(tool, tmp_path: Path, capsys) -> None:
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), tmp_path / "other.pth")
    words = [DEMO, "--part", "detector", "--checkpoint", tmp_path / "other.pth"]
    assert tool(*words, "--device", "cpu") == 2
    assert "other.pth is of another detector: backbone." in capsys.readouterr().err


@pytest.mark.parametrize(
    "how, message",
    [
        (["eager", "frozen"], "--how ['frozen'] is of backbones: a detector's is of"),
        (["compiled"], "--how of detectors starts with eager"),
    ],
)
def test_forms_of_backbones_are_refused(tool, how: list[str], message: str, capsys) -> None:
    assert tool(DEMO, "--part", "detector", "--device", "cpu", "--how", *how) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (["--part", "detector", "--mode", "training"], "--part detector is timed in inference"),
        (["--how", "openvino_int8"], "--how ['openvino_int8'] is for --part detector"),
        (["--part", "detector", "--objects", 0], "--objects must be at least 1"),
        (["--checkpoint", "a.pth"], "--checkpoint is for --part detector"),
    ],
)
def test_bad_words(tool, words, message, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        tool(DEMO, *words)
    assert stop.value.code == 2 and message in capsys.readouterr().err

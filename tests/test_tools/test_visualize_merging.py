"""tools/analysis/visualize_merging.py on tiny detectors: pictures, or one message."""

from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import save_checkpoint

from ltm_det.pictures import merging as merging_pictures

TOOL = "analysis/visualize_merging.py"
# Images of 64 x 48 and 48 x 64 pixels are read at 1.5 times their size and padded to 96 x 96.
SWIN = """
_base_ = '{base}'
model = dict(
    data_preprocessor=dict(pad_size_divisor=96),
    backbone=dict(type='LTMSwin', merger=dict(
        type='LTM', compression_ratio=[0.5, 1.0, 0.5, 1.0], dense_blocks=0, scope='stage')))
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=('img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))
"""
VIT = """
_base_ = '{base}'
model = dict(
    backbone=dict(
        _delete_=True, type='LTMViT', embed_dims=16, depth=4, num_heads=2, patch_size=8,
        window_size=4, pretrain_img_size=64,
        merger=dict(type='LTM', merge_at=[1, 2], compression_ratio=[0.5, 0.25])),
    neck=dict(
        _delete_=True, type='SimpleFPN', in_channels=16, out_channels=16,
        scales=(2.0, 1.0, 0.5, 0.25), num_outs=5))
"""


def derive(text: str, name: str, base: Path, folder: Path) -> list[Path]:
    """A config and a checkpoint of random weights."""
    config, checkpoint = folder / f"{name}.py", folder / f"{name}.pth"
    config.write_text(text.replace("{base}", str(base)))
    model = MODELS.build(Config.fromfile(config).model)
    meta = dict(dataset_meta=dict(classes=("box", "slab")))
    save_checkpoint(dict(state_dict=model.state_dict(), meta=meta), str(checkpoint))
    return [config, checkpoint]


@pytest.fixture(scope="module")
def swin(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return derive(SWIN, "ltm_swin", tiny_config, tmp_path_factory.mktemp("swin"))


@pytest.fixture(scope="module")
def vit(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return derive(VIT, "ltm_vit", tiny_config, tmp_path_factory.mktemp("vit"))


@pytest.fixture
def image(tiny_config: Path) -> Callable[[int], Path]:
    """The first validation image has 48 x 64 pixels, the second 64 x 48."""
    return lambda number: tiny_config.parent / "val" / f"{number}.png"


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list:
    """What the tool hands to merging_figure."""
    calls, draw = [], merging_pictures.merging_figure
    monkeypatch.setattr(
        merging_pictures, "merging_figure", lambda *args: calls.append(args) or draw(*args)
    )
    return calls


def test_each_image_has_its_picture(
    main: Callable, swin: list, image: Callable, drawn: list, tmp_path: Path
) -> None:
    options = ["--out-dir", tmp_path / "new", "--score-thr", 0.01, "--targets", 2]
    assert main(TOOL, *swin, image(1), image(2), *options) == 0
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"1_merging.png", "2_merging.png"}
    for number, (picture, detections, views, targets, titles) in enumerate(drawn, start=1):
        on_disk = cv2.imread(str(image(number)))
        assert (picture == on_disk[..., ::-1]).all()
        assert detections.shape[:2] == tuple(5 * side for side in picture.shape[:2])
        assert [view.name for view in views] == ["stages.0.blocks.0", "stages.2.blocks.0"]
        for view, stride in zip(views, (4, 16)):
            assert view.pitch == pytest.approx((stride / 1.5, stride / 1.5))
            assert view.extent == pytest.approx((0, 64, 64, 0))  # 96 pixels, padding included
        assert len(targets) == 2 and titles[0] == f"{number}.png"
        assert "detections over 0.01" in titles[1]
        sheet = cv2.imread(str(tmp_path / "new" / f"{number}_merging.png"))
        assert min(sheet.shape[:2]) > 900 and sheet.std() > 20


def test_both_merge_points_of_a_vit_at_chosen_pixels(
    main: Callable, vit: list, image: Callable, drawn: list, tmp_path: Path
) -> None:
    options = ["--out-dir", tmp_path, "--at", 10.5, 63, "--at", 0, 0, "--score-thr", 1]
    assert main(TOOL, *vit, image(1), *options) == 0
    ((_, _, views, targets, titles),) = drawn
    assert [view.name for view in views] == ["blocks.1", "blocks.2"]
    assert [list(target) for target in targets] == [[10.5, 63], [0, 0]]
    assert views[1].pitch == pytest.approx((32 / 3, 32 / 3))
    assert titles[1] == "no detections over 1"
    assert all(view.features.std() > 0.1 for view in views)
    assert (tmp_path / "1_merging.png").stat().st_size > 10_000


def test_merge_points_can_be_chosen(
    main: Callable, tiny_config: Path, image: Callable, drawn: list, tmp_path: Path
) -> None:
    """In block scope the blocks' MLPs are the merge points."""
    block = derive(SWIN.replace("'stage'", "'block'"), "block", tiny_config, tmp_path)
    options = ["--out-dir", tmp_path, "--at", 1, 1, "--points", "stages.0.blocks.0.ffn"]
    assert main(TOOL, *block, image(1), *options) == 0
    assert [view.name for view in drawn[0][2]] == ["stages.0.blocks.0.ffn"]


@pytest.fixture
def fails(main: Callable, capsys: pytest.CaptureFixture, tmp_path: Path) -> Callable:
    """Runs the tool, which is to fail and leave nothing behind; gives its message."""

    def run(*options: object) -> str:
        assert main(TOOL, *options, "--out-dir", tmp_path / "new") == 2
        assert not (tmp_path / "new").exists()
        error = capsys.readouterr().err
        assert "visualize_merging.py: " in error and "Traceback" not in error
        return error

    return run


def test_a_dense_backbone_is_named_with_the_remedy(
    fails: Callable, tiny_config: Path, image: Callable, tmp_path: Path
) -> None:
    dense = derive(
        SWIN.split("test_data")[0].replace("'LTM'", "'Pool'"), "a", tiny_config, tmp_path
    )
    error = fails(*dense, image(1), "--cfg-options", "model.backbone.merger=None")
    assert "LTMSwin merges nothing" in error and "configs/demo_ltm_swin_maskrcnn.py" in error
    error = fails(tiny_config, dense[1], image(1))
    assert "SwinTransformer merges nothing" in error


def test_what_is_missing_or_outside_is_named_before_anything_is_drawn(
    fails: Callable, swin: list, image: Callable, tmp_path: Path
) -> None:
    assert "no config file at no.py" in fails("no.py", swin[1], image(1))
    assert "no checkpoint at no.pth" in fails(swin[0], "no.pth", image(1))
    assert "no readable image at no.png" in fails(*swin, image(1), "no.png")
    assert "point 50 3 lies outside" in fails(*swin, image(2), image(1), "--at", 50, 3)
    assert "no merge point 'stages.1'" in fails(*swin, image(1), "--points", "stages.1")
    (tmp_path / "b").mkdir()
    same = tmp_path / "b" / "1.jpg"
    same.write_bytes(image(1).read_bytes())
    assert "1_merging.png" in fails(*swin, image(1), same)


def test_at_least_one_target(main: Callable, swin: list, image: Callable, capsys) -> None:
    with pytest.raises(SystemExit) as exit:
        main(TOOL, *swin, image(1), "--out-dir", "new", "--targets", 0)
    assert exit.value.code == 2
    assert "--targets must be at least 1, but is 0" in capsys.readouterr().err

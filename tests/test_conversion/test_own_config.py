"""A config on one's own data: what the data say is said everywhere, and it trains."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hub import get_config
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner

from ltm_det.basics.errors import InputError
from ltm_det.conversion.own_config import fitted, nodes, on_own_data, set_classes
from ltm_det.conversion.own_schedule import most_pictures, set_schedule
from ltm_det.datasets.own import OwnData, own_data
from ltm_det.engine.preflight import load_config
from tests.test_datasets.test_own import CLASSES, coco_folder, voc_folder, yolo_folder

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = str(CONFIGS / "demo_ltm_swin_maskrcnn.py")


def of(make, folder: Path, **options) -> tuple[OwnData, tuple[Path, Path]]:
    make(folder / "data", **options)
    data = own_data(folder / "data")
    return data, data.write(folder / "written")


def adapted(config: str, make, folder: Path, **options) -> tuple[Config, list[str]]:
    said: list[str] = []
    data, files = of(make, folder)
    return on_own_data(load_config(config), data, files, say=said.append, **options), said


def test_all_that_the_data_say_is_set(tmp_path: Path) -> None:
    cfg, said = adapted(DEMO, coco_folder, tmp_path, epochs=10, batch=2)
    model = cfg.model
    assert model.roi_head.bbox_head.num_classes == model.roi_head.mask_head.num_classes == 3
    assert model.rpn_head.get("num_classes", 1) == 1
    for name in ("train", "val", "test"):
        dataset = cfg[f"{name}_dataloader"].dataset
        assert dataset.metainfo.classes == tuple(CLASSES[i] for i in (1, 0, 2))  # by their ids
        assert Path(dataset.ann_file).is_file() and Path(dataset.data_prefix.img).is_dir()
    assert cfg.test_evaluator.metric == ["bbox", "segm"]
    assert cfg.train_cfg.max_iters == 20 and cfg.train_dataloader.batch_size == 2
    assert cfg.param_scheduler[-1].end == 20 and cfg.default_hooks.checkpoint.by_epoch is False
    assert said[:2] == [
        "COCO data, classes: 3 (dog, cat, owl)",
        "3 pictures with 4 objects to train on, 3 pictures with 4 objects to validate on",
    ]
    assert "pictures of about 60 x 48 pixels, trained on at up to 64 x 64" in said[2]
    assert said[3].startswith("2 pictures a step, --epochs 10: 20 steps, learning rate ")


def test_a_short_set_is_gone_through_more_often(tmp_path: Path) -> None:
    cfg, _ = adapted(DEMO, coco_folder, tmp_path, batch=1)
    assert cfg.train_cfg.max_iters >= 2000


@pytest.mark.parametrize("name", ["ltm_swin_t_maskrcnn.py", "ltm_vit_s_maskrcnn.py"])
def test_small_pictures_stay_small(name: str, tmp_path: Path) -> None:
    cfg, _ = adapted(str(CONFIGS / name), coco_folder, tmp_path)
    sizes = [
        side
        for part in ("train", "val")
        for node in nodes(cfg[f"{part}_dataloader"].dataset.pipeline)
        for key in ("scale", "scales", "crop_size")
        if key in node
        for scale in (node[key] if isinstance(node[key][0], (list, tuple)) else [node[key]])
        for side in scale
    ]
    assert len(sizes) >= 4 and max(sizes) == 64
    init_default_scope("mmdet")
    for part in ("train", "val"):
        Compose(cfg[f"{part}_dataloader"].dataset.pipeline)  # as crops' ranges have to be
    assert cfg.model.data_preprocessor.pad_size_divisor <= 64


@pytest.mark.parametrize(("make", "kind"), [(yolo_folder, "MaskRCNN"), (voc_folder, "FasterRCNN")])
def test_two_iterations_and_ap(make, kind: str, tmp_path: Path) -> None:
    cfg, said = adapted(DEMO, make, tmp_path, epochs=1, batch=2)
    assert cfg.model.type == kind and any("boxes alone" in line for line in said) == (
        kind == "FasterRCNN"
    )
    cfg.work_dir, cfg.experiment_name, cfg.log_level = str(tmp_path / "w"), kind, "ERROR"
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
    scalars = set(runner.message_hub.log_scalars)
    assert "val/coco/bbox_mAP" in scalars
    assert ("val/coco/segm_mAP" in scalars) == (kind == "MaskRCNN")


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("retinanet/retinanet_r50_fpn_1x_coco.py", 1),
        ("atss/atss_r50_fpn_1x_coco.py", 1),
        ("dino/dino-4scale_r50_8xb2-12e_coco.py", 1),
        ("rtmdet/rtmdet-ins_s_8xb32-300e_coco.py", 1),
        ("solov2/solov2_r50_fpn_1x_coco.py", 1),
        ("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", 4),
        ("mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py", 2),
    ],
)
def test_classes_of_mmdets_detectors(name: str, heads: int) -> None:
    model = get_config(f"mmdet::{name}").model
    assert set_classes(model, 5) == heads
    model.backbone.init_cfg = None
    built = MODELS.build(model)
    own = {m.num_classes for m in built.modules() if hasattr(m, "num_classes")}
    assert 5 in own and own <= {1, 5}  # 1 is an RPN's


def test_as_many_objects_may_be_found_as_there_are(tmp_path: Path) -> None:
    """The demo's config finds 20; the RPN's limit is another matter."""
    coco_folder(tmp_path / "data")
    data = own_data(tmp_path / "data")
    rows = data.train.coco["annotations"]
    rows += [rows[0] | dict(id=1000 + i) for i in range(149)]
    cfg, said = load_config(DEMO), []
    before = cfg.model.test_cfg.rpn.max_per_img
    on_own_data(cfg, data, data.write(tmp_path), say=said.append)
    assert cfg.model.test_cfg.rcnn.max_per_img == 150
    assert cfg.model.test_cfg.rpn.max_per_img == before
    assert "up to 150 objects on a picture: as many may be found; AP is COCO's" in said[2]


@pytest.mark.parametrize(
    ("steps", "epochs", "warm_up"), [(1, 2, 0), (8, 1, 0), (19, 1, 0), (20, 1, 2), (100, 90, 500)]
)
def test_the_learning_rate_rises_then_falls(steps: int, epochs: int, warm_up: int) -> None:
    cfg = load_config(DEMO)
    set_schedule(cfg, steps * epochs, 4, steps)
    rate, iterations = cfg.optim_wrapper.optimizer.lr, steps * epochs
    assert rate == pytest.approx(1e-3 / 2)  # the demo's, of 16 pictures
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(own, optimizer=optimizer)) for own in cfg.param_scheduler
    ]
    rates = []
    for _ in range(iterations):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    peak = rates.index(max(rates))
    assert max(rates) == pytest.approx(rate) and peak == max(0, warm_up - 1)
    assert rates[peak:] == sorted(rates[peak:], reverse=True) and rates[-1] < 0.6 * rate
    assert cfg.train_cfg.val_interval >= steps


@pytest.mark.parametrize(
    ("pictures", "most", "why"),
    [(1, 1, "there are 1"), (30, 2, "2000 in 36"), (495, 8, "2000 in 36"), (9999, 16, "rate is")],
)
def test_larger_steps_win_nothing(pictures: int, most: int, why: str) -> None:
    found, words = most_pictures(load_config(DEMO), pictures)
    assert found == most and why in words


def test_a_detector_that_needs_masks_is_named(tmp_path: Path) -> None:
    data, files = of(voc_folder, tmp_path)
    cfg = get_config("mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py")
    with pytest.raises(InputError, match="a Mask2Former needs masks"):
        on_own_data(cfg, data, files)


def test_a_range_of_crops_stays_one() -> None:
    """DINO's crops are between two sides; mmdet refuses a range whose first end is the larger."""
    assert fitted((384, 600), (1333, 800), (64, 64)) == (29, 31)
    assert fitted([(1333, 800)], (1333, 800), (64, 48)) == [(64, 48)]

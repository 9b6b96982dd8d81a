"""A config on one's own data: what the data say is said everywhere, and it trains."""

from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.runner import Runner

from ltm_det.basics.errors import InputError
from ltm_det.conversion.own_config import fitted, nodes, on_own_data, set_classes
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
    assert said[0] == "COCO data, classes: 3 (dog, cat, owl)"
    assert "3 pictures of about 64 x 64, 2 a step, --epochs 10: 20 iterations" in said[1]


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


def test_a_detector_that_needs_masks_is_named(tmp_path: Path) -> None:
    data, files = of(voc_folder, tmp_path)
    cfg = get_config("mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py")
    with pytest.raises(InputError, match="a Mask2Former needs masks"):
        on_own_data(cfg, data, files)


def test_a_range_of_crops_stays_one() -> None:
    """DINO's crops are between two sides; mmdet refuses a range whose first end is the larger."""
    assert fitted((384, 600), (1333, 800), (64, 64)) == (29, 31)
    assert fitted([(1333, 800)], (1333, 800), (64, 48)) == [(64, 48)]

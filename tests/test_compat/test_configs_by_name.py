"""Configs by `ltm_det::NAME.py`, as mmengine names those of OpenMMLab's packages."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config, get_model

from ltm_det.compat import find_our_configs

NAME = "ltm_det::demo_ltm_swin_maskrcnn.py"
ROOT = Path(__file__).parents[2]


def test_a_config_inherits_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"_base_ = '{NAME}'\nmodel = dict(test_cfg=dict(own=1))\n")
    cfg = Config.fromfile(tmp_path / "mine.py")
    assert cfg.model.backbone.type == "LTMSwin" and cfg.model.test_cfg.own == 1
    whole = Config.fromfile(ROOT / "configs/demo_ltm_swin_maskrcnn.py")
    assert cfg.model.backbone.to_dict() == whole.model.backbone.to_dict()
    assert cfg.train_dataloader.dataset.get("_scope_") == "mmdet"  # where all of it is registered


def test_the_hub_gives_configs_and_models() -> None:
    find_our_configs()  # a second time changes nothing
    assert get_config(NAME).model.type == "MaskRCNN"
    assert type(get_model(NAME).backbone).__name__ == "LTMSwin"
    assert get_config("mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py").model.type == "MaskRCNN"
    with pytest.raises(FileNotFoundError):
        get_config("ltm_det::nothing.py")

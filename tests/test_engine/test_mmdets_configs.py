"""Checks of a config's values against all configs that mmdet comes with."""

from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from ltm_det.basics.errors import InputError
from ltm_det.engine.config_check import check_model
from ltm_det.engine.config_values import check_masks, check_values

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs"


@pytest.mark.slow
def test_none_is_refused() -> None:
    read, refused = 0, []
    for file in sorted(CONFIGS.rglob("*.py")):
        try:
            cfg = Config.fromfile(file, lazy_import=False)
        except Exception:  # in mmengine's new grammar, or of packages that are not here
            continue
        read += 1
        try:
            check_values(cfg)
            if "model" in cfg:
                check_model(cfg)
            check_masks(cfg)
        except InputError as error:
            refused.append(f"{file.name}: {error}")
    assert read > 800 and not refused


def test_numbers_of_an_evaluation_by_several_processes_are_numbers() -> None:
    """100 need not be among them, as in V3Det's configs."""
    metric = dict(type="CocoMetric", use_mp_eval=True, proposal_nums=[300])
    check_values(dict(val_evaluator=metric))
    with pytest.raises(InputError, match=r"val_evaluator.proposal_nums\[0\] must be a whole"):
        check_values(dict(val_evaluator=[dict(metric, proposal_nums=["x"])]))

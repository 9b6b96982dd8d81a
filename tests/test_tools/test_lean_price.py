"""tools/analysis/lean_price.py: a row for each recipe and checkpoint, mmdet's heads among them."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.test_tools.detectors import SWIN, saved_detector


@pytest.mark.slow
def test_prices(main: Callable, tiny_config: Path, tmp_path: Path, capsys) -> None:
    config, checkpoint = saved_detector(tiny_config, "lean_swin", SWIN)
    out = tmp_path / "deep" / "price"
    words = [config, checkpoint, "--out", out, "--recipes", "mmdet", "fast", "lean"]
    assert main("analysis/lean_price.py", *words) == 0
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert [row["recipe"] for row in rows] == ["mmdet", "fast", "lean"]
    assert (
        "model.lean.proposals=6 " in rows[2]["command"]
        and "lean" not in rows[1]["command"].split("cfg-options")[1]
    )
    assert rows[0]["bbox_mAP"] == rows[1]["bbox_mAP"]
    table = out.with_suffix(".md").read_text()
    assert table.count("\n") == 5 and "| fast | 1 | " in table
    assert not list(out.parent.glob("*.log"))

    before = out.with_suffix(".csv").read_text()
    assert main("analysis/lean_price.py", *words) == 0  # all is there
    assert out.with_suffix(".csv").read_text() == before


def test_what_is_missing_is_named(
    main: Callable, tiny_config: Path, tmp_path: Path, capsys
) -> None:
    assert main("analysis/lean_price.py", tiny_config, "no.pth", "--out", tmp_path / "a") == 2
    assert "no checkpoint at no.pth" in capsys.readouterr().err
    checkpoint = tmp_path / "a.pth"
    torch.save(dict(weight=torch.ones(1)), checkpoint)
    words = [tiny_config, checkpoint, "--out", tmp_path / "a", "--recipes", "cheap"]
    assert main("analysis/lean_price.py", *words) == 2
    assert "no recipe ['cheap']: choose from ['mmdet', 'fast', 'pro" in capsys.readouterr().err
    other = tiny_config.with_name("lean_other.py")
    other.write_text(f"_base_ = '{tiny_config}'\nmodel = dict(type='SparseRCNN')\n")
    assert main("analysis/lean_price.py", other, "no.pth", "--out", tmp_path / "a") == 2
    assert "the detector is a SparseRCNN: give one of" in capsys.readouterr().err

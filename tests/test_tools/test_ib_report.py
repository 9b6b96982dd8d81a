"""tools/analysis/ib_report.py on tiny data, in this process."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import MMLogger

from ltm_det.studies.bottleneck import as_table, measure

TOOL = "analysis/ib_report.py"
MERGED = """
_base_ = '{base}'
train_dataloader = dict(dataset=dict(serialize_data=False))
val_dataloader = dict(dataset=dict(serialize_data=False))
model = dict(backbone=dict(
    type='LTMSwin', depths=[1, 2, 1, 2], merger=dict(type='LTM', compression_ratio=0.5)))
"""
POINTS = ["stages.1.blocks.1", "stages.3.blocks.1"]


@pytest.fixture(autouse=True)
def own_loggers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool keeps mmengine's logger quiet: not that of the tests after it."""
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())


@pytest.fixture(scope="module")
def config(tiny_config: Path) -> Path:
    path = tiny_config.with_name("merged.py")
    path.write_text(MERGED.format(base=tiny_config))
    return path


@pytest.fixture(scope="module")
def checkpoints(config: Path) -> list[Path]:
    """Two of the merged detector, with different weights."""
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = MODELS.build(Config.fromfile(config).model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                std = 1.0 if "mergers" in name else 0.1
                parameter += std * torch.randn_like(parameter)
        paths.append(config.with_name(f"{seed}.pth"))
        torch.save(dict(state_dict=model.state_dict()), paths[-1])
    return paths


@pytest.fixture
def report(main: Callable, tmp_path: Path) -> Callable[..., dict]:
    """Runs the tool with a JSON file, and gives what is in it."""

    def run(*options: object) -> dict:
        path = tmp_path / "new" / "numbers.json"
        assert main(TOOL, *options, "--json", path) == 0
        return json.loads(path.read_text())

    return run


def test_it_prints_draws_and_writes_all_rows(
    report: Callable, config: Path, checkpoints: list, tmp_path: Path, capsys
) -> None:
    out, options = tmp_path / "plots" / "a.png", ["--clusters", 4, "--beta", 10, "inf"]
    result = report(config, checkpoints[0], *options, "--untrained", "--out", out)
    printed = capsys.readouterr().out
    assert list(result["beta"]) == ["10", "inf"]
    cfg = Config.fromfile(config)
    names = ["dense, untrained", "dense", "pool, untrained", "pool", "merged, untrained", "merged"]
    for beta, rows in result["beta"].items():
        assert list(rows) == names
        for name, summaries in rows.items():
            assert list(summaries) == POINTS
            kind, untrained = name.partition(",")[0], name.endswith("untrained")
            checkpoint = None if untrained else str(checkpoints[0])
            assert [summaries] == measure(cfg, kind, checkpoint, clusters=4, betas=[float(beta)])
        assert f"12 samples of val, 4 clusters, beta {beta}\n{as_table(rows)}\n" in printed
    assert result["split"] == "val"
    assert result["command"].startswith(f"python {TOOL} {config} {checkpoints[0]} --clusters 4")
    assert cv2.imread(str(out)).std() > 10


@pytest.mark.slow
def test_rows_take_their_own_checkpoints(report: Callable, config: Path, checkpoints: list) -> None:
    cfg, (one, two) = Config.fromfile(config), checkpoints
    options = ["--dense", two, "--pool", two, "--clusters", 4]
    (rows,) = report(config, one, *options)["beta"].values()
    assert [rows["dense"]] == measure(cfg, "dense", str(two), clusters=4)
    assert [rows["pool"]] == measure(cfg, "pool", str(two), clusters=4)
    assert [rows["merged"]] == measure(cfg, "merged", str(one), clusters=4)
    (own,) = report(config, one, "--clusters", 4)["beta"].values()
    assert own["dense"] != rows["dense"] and own["pool"] != rows["pool"]


@pytest.mark.slow
def test_rows_split_images_and_config_options(
    report: Callable, config: Path, checkpoints: list, capsys
) -> None:
    options = ["--rows", "merged", "dense", "--split", "train", "--images", 4, "--clusters", 3]
    seed = ["--untrained", "--cfg-options", "randomness.seed=7"]
    (rows,) = report(config, checkpoints[0], *options, *seed)["beta"].values()
    assert list(rows) == ["merged, untrained", "merged", "dense, untrained", "dense"]
    cfg = Config.fromfile(config)
    cfg.randomness.seed = 7
    for name, checkpoint in (("dense, untrained", None), ("dense", str(checkpoints[0]))):
        assert [rows[name]] == measure(cfg, "dense", checkpoint, "train", images=4, clusters=3)
    samples = rows["dense"][POINTS[0]]["samples"]
    assert 8 < samples <= 12  # two instances an image, and background
    assert f"{samples} samples of train, 3 clusters" in capsys.readouterr().out
    (other,) = report(config, checkpoints[0], *options, "--untrained")["beta"].values()
    assert other["dense"] == rows["dense"] and other["dense, untrained"] != rows["dense, untrained"]


def test_what_is_missing_is_named_with_the_remedy(
    main: Callable, config: Path, checkpoints: list, tiny_config: Path, capsys
) -> None:
    good = str(checkpoints[0])

    def error(*options: object) -> str:
        assert main(TOOL, *options) == 2
        out, err = capsys.readouterr()
        assert err.startswith("ib_report.py: ") and "Traceback" not in err
        assert "merge point" not in out
        return err

    assert "ltm_det::NAME.py" in error("no.py", good)
    assert "no checkpoint at no.pth" in error(config, "no.pth")
    assert "--work-dir" in error(config, good, "--dense", "no.pth")
    assert "no.pth" in error(config, good, "--pool", "no.pth", "--rows", "pool")
    gone = ["--cfg-options", "train_dataloader.dataset.data_root=gone"]
    assert "train_dataloader.dataset.data_root=DIR" in error(
        config, good, "--split", "train", *gone
    )
    weights = [
        "model.backbone.init_cfg.type=Pretrained",
        "model.backbone.init_cfg.checkpoint=w.pth",
    ]
    found = error(config, good, "--untrained", "--cfg-options", *weights)
    assert "w.pth" in found and "init_cfg=None" in found
    assert "give one with a merger" in error(tiny_config, good)
    all_kept = ["--rows", "dense", "--cfg-options", "model.backbone.merger.compression_ratio=1.0"]
    assert "give one with a merger" in error(config, good, *all_kept)
    assert "12 samples are too few for 32 clusters: take more images" in error(config, good)
    deeper = ["--cfg-options", "model.backbone.depths=[1,3,1,2]"]
    assert "stages.1.blocks.2" in error(config, good, *deeper)
    channels = ["--cfg-options", "model.roi_head.mask_head.conv_out_channels=8"]
    assert f"{good} does not fit" in error(config, good, *channels)


@pytest.mark.parametrize(
    "options",
    [
        ["--clusters", 1],
        ["--clusters", -4],
        ["--beta", 0],
        ["--beta", 10, -1],
        ["--beta", "nan"],
        ["--beta", 10, "nan"],
        ["--beta", 10, 10.0],
        ["--images", 0],
        ["--rows", "sparse"],
        ["--split", "test"],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_bad_options_are_refused_before_anything_is_read(
    main: Callable, capsys, options: list
) -> None:
    with pytest.raises(SystemExit) as end:
        main(TOOL, "no.py", "no.pth", *options)
    assert end.value.code == 2
    assert options[0] in capsys.readouterr().err.splitlines()[-1]

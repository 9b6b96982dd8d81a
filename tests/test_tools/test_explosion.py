"""Trainings that explode end with 2, soon, and leave a checkpoint that can be trained on."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from ltm_det.basics.finite import not_finite

AT = 5  # iterations that are sound, of those where something is poisoned on the way
SAVED = "iter_4.pth"
NUMBERS = itertools.count()
MERGER = "backbone.stages.0.mergers.0"
BASE = """
_base_ = '{base}'
load_from = {start!r}
experiment_name = 'explosion_{number}'
optim_wrapper = dict()
model = dict(backbone=dict(
    type='LTMSwin', depths=[2, 1, 1, 1],
    merger=dict(type='LTM', compression_ratio=[0.5, 1.0, 1.0, 1.0], dense_blocks=0)))
train_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_iters=16)
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=1))
val_cfg = val_dataloader = val_evaluator = None
param_scheduler = []
custom_imports = dict(imports=['ltm_det', 'tests.test_tools.explosions'])
"""
CLIP = "optim_wrapper['clip_grad'] = dict(max_norm=5)\n"
POISON = f"custom_hooks = [dict(type='PoisonHook', at={AT}, name='{{}}', gradient={{}})]\n"
DATA = """
train_dataloader['dataset'] = dict(pipeline=[
    *_base_.train_dataloader.dataset.pipeline, dict(type='PoisonPicture', img_id=3, part={!r})])
"""
# What happens, and what has to be named.
CASES = {
    "merger's weight": (POISON.format(f"{MERGER}.initial_logits", False), f"weights are not finite: {MERGER}.initial_logits"),
    "backbone's weight": (
        POISON.format("backbone.stages.2.blocks.0.ffn.layers.1.weight", False),
        "weights are not finite: backbone.stages.2.blocks.0.ffn.layers.1.weight",
    ),
    "head's weight": (
        POISON.format("roi_head.bbox_head.fc_cls.bias", False),
        "weights are not finite: roi_head.bbox_head.fc_cls.bias",
    ),
    "gradient": (
        POISON.format("neck.fpn_convs.1.conv.weight", True),
        "nearest to the losses that of neck.fpn_convs.1.conv.weight",
    ),
    "learning rate": (
        "optim_wrapper['optimizer'] = dict(lr=1e8)\n",
        "weights have exploded",
    ),
    "loss": (
        "model['roi_head'] = dict(bbox_head=dict(loss_cls=dict(loss_weight=float('nan'))))\n",
        "loss_cls is nan",
    ),
    "pixel": (DATA.format("pixel"), "pixels of picture 3 ("),
    "box": (DATA.format("box"), "boxes in the annotations of picture 3 ("),
}
LATE = {"merger's weight", "backbone's weight", "head's weight", "gradient"}  # after a checkpoint


@pytest.fixture(autouse=True)
def _no_list_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which mmengine logs as each run starts, and takes a second for."""
    monkeypatch.setattr("mmengine.runner.runner.collect_env", dict)


@pytest.fixture
def config(tiny_config: Path) -> Callable[..., Path]:
    """Writes a config of one class of explosion, and gives its path."""

    def write(text: str = "", start: Path | None = None) -> Path:
        number = next(NUMBERS)
        path = tiny_config.with_name(f"explosion{number}.py")
        start = start and str(start)
        path.write_text(BASE.format(base=tiny_config, start=start, number=number) + text)
        return path

    return write


@pytest.mark.parametrize("clip", ["", CLIP], ids=["", "clipped"])
@pytest.mark.parametrize("case", CASES)
def test_an_explosion_ends_with_2_and_leaves_a_good_checkpoint(
    case: str, clip: str, config: Callable, main: Callable, tmp_path: Path, capsys
) -> None:
    text, told = CASES[case]
    assert main("train.py", config(text + clip), "--work-dir", tmp_path) == 2
    said = capsys.readouterr().err
    stopped = int(said.partition("stopped at iteration ")[2].partition(":")[0])
    late = case in LATE
    assert stopped <= 10 + AT * late
    assert told in said and "Traceback" not in said
    assert "tiny0/train/" in said and ".png)" in said  # of which pictures
    saved = [path.name for path in tmp_path.glob("*.pth")]
    assert saved == [SAVED] * late
    if late:
        assert f"last good checkpoint: {tmp_path / SAVED}" in said
        assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / SAVED)
        state = torch.load(tmp_path / SAVED, weights_only=True)["state_dict"]
        assert len(state) > 100 and not_finite(state) == []
        assert main("train.py", config(), "--work-dir", tmp_path, "--resume") == 0
        assert (tmp_path / "iter_16.pth").exists()
    else:
        assert "last good checkpoint: none has been written" in said


def test_a_single_bad_step_changes_nothing_and_training_goes_on(
    config: Callable, main: Callable, tmp_path: Path
) -> None:
    """Its update is left out, and the weights are those of before."""
    states = []
    for steps in (AT, AT + 1):
        text = POISON.format("neck.fpn_convs.1.conv.weight", True)
        text += f"train_cfg['max_iters'] = {steps}\n"
        assert main("train.py", config(text), "--work-dir", tmp_path / str(steps)) == 0
        states.append(Config.fromfile)

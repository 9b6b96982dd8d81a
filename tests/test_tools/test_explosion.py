"""Trainings that explode end with 2, soon, and leave a checkpoint that can be trained on."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from ltm_det.basics.finite import not_finite

AT = 5  # iterations that are sound, of those where something is poisoned on the way
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
train_cfg = dict(max_iters=12)
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
    "merger's weight": (
        POISON.format(f"{MERGER}.initial_logits", False),
        f"weights are not finite: {MERGER}.initial_logits",
    ),
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
    "learning rate, a checkpoint due": (
        "optim_wrapper['optimizer'] = dict(lr=1e8)\ndefault_hooks['checkpoint']['interval'] = 1\n",
        "iteration 1: weights have exploded",
    ),
    "loss": (
        "model['roi_head'] = dict(bbox_head=dict(loss_cls=dict(loss_weight=float('nan'))))\n",
        "loss_cls is nan",
    ),
    "pixel": (DATA.format("pixel"), "pixels of picture 3 ("),
    "box": (DATA.format("box"), "boxes in the annotations of picture 3 ("),
}
QUICK = {"gradient", "learning rate", "pixel"}
LATE = {"merger's weight", "backbone's weight", "head's weight", "gradient"}  # after a checkpoint
# The last that is written: of "gradient" and "loss" all updates are left out, so weights are good.
SAVED = dict.fromkeys(LATE, "iter_4.pth") | dict(gradient="iter_8.pth", loss="iter_4.pth")


@pytest.fixture(autouse=True)
def _no_list_of_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which mmengine logs as each run starts, and takes a second for."""
    monkeypatch.setattr("mmengine.runner.runner.collect_env", dict)


@pytest.fixture
def config(tiny_config: Path) -> Callable[..., Path]:
    """Writes a config upon the tiny one, and gives its path."""

    def write(text: str = "", start: Path | None = None) -> Path:
        number = next(NUMBERS)
        path = tiny_config.with_name(f"explosion{number}.py")
        start = start and str(start)
        path.write_text(BASE.format(base=tiny_config, start=start, number=number) + text)
        return path

    return write


@pytest.mark.parametrize(
    "clip", ["", pytest.param(CLIP, marks=pytest.mark.slow)], ids=["free", "clipped"]
)
@pytest.mark.parametrize(
    "case",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in CASES],
)
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
    if "checkpoint due" not in case:
        assert "tiny0/train/" in said and ".png)" in said  # of which pictures
    last = SAVED.get(case)
    assert [path.name for path in tmp_path.glob("*.pth")] == [last] * (last is not None)
    if last is not None:
        assert f"last good checkpoint: {tmp_path / last}" in said
        assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / last)
        state = torch.load(tmp_path / last, weights_only=True)["state_dict"]
        assert len(state) > 100 and not_finite(state) == []
        if not clip:
            assert main("train.py", config(), "--work-dir", tmp_path, "--resume") == 0
            assert (tmp_path / "iter_12.pth").exists()
    else:
        assert "last good checkpoint: none has been written" in said


@pytest.fixture(scope="module")
def poisoned(tiny_config: Path) -> Callable[[str], Path]:
    """Checkpoints of the tiny detector with LTM, one with NaN under a name, another without."""
    config = tiny_config.with_name("poisoned.py")
    config.write_text(BASE.format(base=tiny_config, start=None, number="poisoned"))
    torch.manual_seed(0)
    state = MODELS.build(Config.fromfile(config).model).state_dict()

    def saved(name: str) -> Path:
        file = tiny_config.with_name(f"poisoned_{name}.pth")
        own = {key: value.clone() for key, value in state.items()}
        if name:
            own[name].flatten()[-1] = torch.inf
        meta = dict(dataset_meta=dict(classes=("box", "slab")))
        torch.save(dict(state_dict=own, meta=meta), file)
        return file

    return saved


@pytest.mark.parametrize(
    "name",
    [
        f"{MERGER}.step",
        pytest.param("neck.fpn_convs.0.conv.bias", marks=pytest.mark.slow),
        pytest.param("roi_head.mask_head.conv_logits.bias", marks=pytest.mark.slow),
    ],
)
def test_commands_refuse_weights_that_are_not_finite(
    name: str, config: Callable, poisoned: Callable, main: Callable, tmp_path: Path, capsys
) -> None:
    file, path, out = poisoned(name), config(), tmp_path / "out"
    commands = {
        "train": ("train.py", config(start=file), "--work-dir", tmp_path / "run"),
        "test": ("test.py", path, file, "--work-dir", tmp_path / "run"),
        "export": ("export.py", path, file, "--out", f"{out}.onnx", "--shape", 64, 64),
        "detector": (
            *("export.py", path, file, "--out", f"{out}.xml", "--shape", 64, 64),
            *("--part", "detector", "--check"),
        ),
        "draw": ("analysis/draw_predictions.py", path, file, "--out", f"{out}.png"),
        "visualize": (
            *("analysis/visualize_merging.py", path, file, path.with_name("val") / "1.png"),
            *("--out-dir", out),
        ),
        "ib": ("analysis/ib_report.py", path, file, "--rows", "merged", "--json", f"{out}.json"),
    }
    for command, words in commands.items():
        assert main(*words) == 2, command
        said = capsys.readouterr().err
        assert name in said and str(file) in said and "Traceback" not in said, (command, said)
    assert list(tmp_path.glob("out*")) == [] and list(tmp_path.rglob("*.pth")) == []


def test_commands_upon_a_dense_detector_refuse_them_too(
    tiny_config: Path, main: Callable, tmp_path: Path, capsys
) -> None:
    name = "neck.fpn_convs.0.conv.bias"
    torch.manual_seed(0)
    state = MODELS.build(Config.fromfile(tiny_config).model).state_dict()
    state[name][0] = torch.nan
    file, out = tmp_path / "dense.pth", tmp_path / "out"
    torch.save(dict(state_dict=state), file)
    ratio = ("--compression-ratio", "[0.5,1,1,1]", "--shape", 64, 64)
    search = ("--budget", 0.9, "--images", 2, "--shape", 64, 64)
    timing = ("--part", "detector", "--json", f"{out}.json", "--shape", 64, 64)
    for words in (
        ("convert.py", tiny_config, file, *ratio, "--out", f"{out}.pth"),
        ("analysis/search_ratios.py", tiny_config, file, *search, "--out", f"{out}.py"),
        ("analysis/benchmark.py", tiny_config, *timing, "--checkpoint", file),
    ):
        assert main(*words) == 2
        said = capsys.readouterr().err
        assert name in said and str(file) in said
    assert list(tmp_path.glob("out*")) == []


@pytest.mark.slow
def test_all_processes_stop_for_what_one_of_them_sees(
    config: Callable, tool: Callable, tmp_path: Path, free_port: str
) -> None:
    text = DATA.format("pixel") + "train_dataloader['batch_size'] = 1\n"
    text += "env_cfg = dict(dist_cfg=dict(backend='gloo'))\n"
    done = tool("dist_train.sh", config(text), 2, "--work-dir", tmp_path, PORT=free_port)
    assert done.returncode != 0 and "exitcode  : 2" in done.stderr, done.stderr
    told = done.stderr.partition("training is stopped at iteration")[2]
    lines = [line for line in told.splitlines() if "process " in line]
    (seen,) = (line for line in lines if "pixels of picture 3 (" in line)
    other = {"process 0": "process 1", "process 1": "process 0"}[seen.strip()[:9]]
    assert any(line.strip().startswith(other) for line in lines)
    assert list(tmp_path.glob("*.pth")) == []

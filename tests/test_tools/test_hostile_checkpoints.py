"""Every command ends with 2 and one message that names the file, whatever a checkpoint is; nothing
in it is run. What other projects wrap about a detector's weights is taken off everywhere."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from mmengine.runner import runner as runner_of_mmengine
from safetensors.torch import save_file

from ltm_det.basics.errors import InputError
from ltm_det.cli import price
from ltm_det.engine import preflight
from ltm_det.measure.flops import build_detector
from tests.test_tools.detectors import SWIN, saved_detector
from tests.test_tools.hostile import WRAPPED, hostile_files, unfit_files

LOAD_CONFIG = preflight.load_config
DENSE = "_base_ = '{base}'\nmodel = dict(backbone=dict(depths=[1, 1, 1, 1]))\n"
SMALL = ["--shape", 64, 64]
QUICK = ["train_dataloader.num_workers=0", "train_dataloader.persistent_workers=False"]
# By name: the tool, and its words with CONFIG, FILE, IMAGE and OUT to be put in.
COMMANDS = {
    "load_from": ["train.py", "CONFIG", "--work-dir", "OUT", "--cfg-options", *QUICK]
    + ["load_from=FILE"],
    "init_cfg": ["train.py", "CONFIG", "--work-dir", "OUT", "--cfg-options", *QUICK]
    + ["model.backbone.init_cfg.type=Pretrained", "model.backbone.init_cfg.checkpoint=FILE"],
    "test": ["test.py", "CONFIG", "FILE", "--work-dir", "OUT"],
    "draw": ["analysis/draw_predictions.py", "CONFIG", "FILE", "--out", "OUT.png", "--num", 1],
    "visualize": ["analysis/visualize_merging.py", "CONFIG", "FILE", "IMAGE", "--out-dir", "OUT"],
    "convert": ["convert.py", "DENSE", "FILE", "--compression-ratio", 0.5, *SMALL]
    + ["--out", "OUT.safetensors", "--overwrite"],
    "export": ["export.py", "CONFIG", "FILE", *SMALL, "--out", "OUT.onnx"],
    "ib": ["analysis/ib_report.py", "CONFIG", "FILE", "--clusters", 4, "--images", 4],
    "search": ["analysis/search_ratios.py", "DENSE", "FILE", "--out", "OUT.py", *SMALL]
    + ["--budget", 0.9, "--images", 4, "--ratios", 0.3]
    + ["--overwrite", "--merger-options", "dense_blocks=0"],
    "price": ["analysis/lean_price.py", "DENSE", "FILE", "--out", "OUT"],
    "benchmark": ["analysis/benchmark.py", "DENSE", "--part", "detector", "--checkpoint", "FILE"]
    + ["--models", "dense", "--shape", 64, 64, "--rounds", 1, "--warm-up", 0],
}


@pytest.fixture(scope="module")
def configs(tiny_config: Path) -> dict[str, Path]:
    return dict(
        CONFIG=saved_detector(tiny_config, "hostile_merged", SWIN)[0],
        DENSE=saved_detector(tiny_config, "hostile_dense", DENSE)[0],
        IMAGE=tiny_config.parent / "val/1.png",
    )


@cache
def parsed(path: str) -> Config:
    return LOAD_CONFIG(path)


def load_config(path: str, options: dict[str, Any] | None = None, **_: bool) -> Config:
    """A config, parsed once: that would take most of the time."""
    cfg = copy.deepcopy(parsed(path))
    cfg.merge_from_dict(options or {})
    return cfg


@pytest.fixture
def state(configs: dict[str, Path]) -> Callable[[str], dict[str, torch.Tensor]]:
    """The weights of a command's detector."""

    def of(command: str) -> dict[str, torch.Tensor]:
        config = next(configs[word] for word in COMMANDS[command] if word in ("CONFIG", "DENSE"))
        return torch.load(config.with_suffix(".pth"))["state_dict"]

    return of


@pytest.fixture
def run(main: Callable, configs: dict[str, Path], tmp_path: Path, monkeypatch) -> Callable:
    """Runs a command on a file; gives its exit code. Its logger is not left to other tests."""
    monkeypatch.setattr(MMLogger, "_instance_dict", OrderedDict())
    monkeypatch.setattr(preflight, "load_config", load_config)
    monkeypatch.setattr(price, "load_config", load_config)
    monkeypatch.setattr(runner_of_mmengine, "collect_env", dict)  # asks compilers
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    number = iter(range(999))

    def command(name: str, file: Path | str) -> int:
        out = tmp_path / f"out{next(number)}"

        def filled(word: object) -> object:
            if word in configs:
                return configs[word]
            return str(word).replace("OUT", str(out)).replace("FILE", str(file))

        return main(*map(filled, COMMANDS[name]))

    return command


EVERY_TIME = (
    "load_from",
    "test",
)  # the others read by the same function, and take minutes together
MARKED = {name: [] if name in EVERY_TIME else [pytest.mark.slow] for name in COMMANDS}


@pytest.mark.parametrize("command", [pytest.param(n, marks=m) for n, m in MARKED.items()])
def test_no_weights_at_all(
    command: str, run: Callable, state: Callable, tmp_path: Path, capsys
) -> None:
    files = hostile_files(tmp_path, state(command))
    assert len(files) >= 25
    for file, word in files.items():
        if command == "price" and "://" in str(file):
            continue  # met in a process of its own, which takes its time
        code, printed = run(command, file), capsys.readouterr().err
        message = printed[printed.rindex(".py: ") :]
        assert code == 2 and "Traceback" not in printed, (file, printed)
        assert str(file) in message and word in message, (file, message)
        assert len(message.splitlines()) < 8, message
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "command", [pytest.param(n, marks=m) for n, m in MARKED.items() if n != "price"]
)
def test_weights_of_something_else(
    command: str, run: Callable, state: Callable, tmp_path: Path, capsys
) -> None:
    files = unfit_files(tmp_path, state(command))
    for file in files:
        if command in ("init_cfg", "search") and file.name == "backbone_alone.pth":
            continue  # all that they want
        code, printed = run(command, file), capsys.readouterr().err
        message = printed[printed.rindex(".py: ") :]
        assert code == 2 and "Traceback" not in printed, (file, printed)
        assert str(file) in message and len(message.splitlines()) < 30, (file, message)


@pytest.mark.slow
def test_train_of_mmdets_own_backbone_takes_all_of_it_or_nothing(
    run: Callable, configs: dict[str, Path], tmp_path: Path, capsys, monkeypatch
) -> None:
    """mmengine would train on from what fits, with a warning."""
    weights = torch.load(configs["DENSE"].with_suffix(".pth"))["state_dict"]
    monkeypatch.setitem(
        COMMANDS, "own", ["DENSE" if w == "CONFIG" else w for w in COMMANDS["load_from"]]
    )
    for file in unfit_files(tmp_path, weights):
        code, printed = run("own", file), capsys.readouterr().err
        assert code == 2 and str(file) in printed and "Traceback" not in printed, (file, printed)


@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("kind", ["CONFIG", "DENSE"])
def test_wrapped_weights_are_the_same(
    wrap: str, kind: str, configs: dict[str, Path], tmp_path: Path
) -> None:
    state = torch.load(configs[kind].with_suffix(".pth"))["state_dict"]
    torch.save(WRAPPED[wrap](state), tmp_path / "a.pth")
    detector = build_detector(load_config(str(configs[kind])))
    load_checkpoint(detector, str(tmp_path / "a.pth"), strict=True)
    loaded = detector.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    backbone = build_detector(load_config(str(configs["CONFIG"]))).backbone
    if kind == "CONFIG":
        backbone.init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "a.pth"))
        backbone.init_weights()
        for key, value in backbone.state_dict().items():
            assert torch.equal(value, state[f"backbone.{key}"])


@pytest.mark.parametrize("wrap", ["plain", "DDP", "Lightning", "model", "ema_state_dict"])
def test_a_backbone_alone_in_init_cfg(wrap: str, configs: dict[str, Path], tmp_path: Path) -> None:
    detector = build_detector(load_config(str(configs["CONFIG"])))
    theirs = build_detector(load_config(str(configs["CONFIG"]))).backbone.state_dict()
    torch.save(WRAPPED[wrap](theirs), tmp_path / "a.pth")
    detector.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / "a.pth"))
    detector.backbone.init_weights()
    loaded = detector.backbone.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in theirs.items())


def test_names_of_a_models_own_are_left(tmp_path: Path) -> None:
    """To a model whose weights all lie in 'model', nothing is wrapped."""
    own = torch.nn.ModuleDict(dict(model=torch.nn.Linear(2, 2)))
    torch.save(own.state_dict(), tmp_path / "a.pth")
    theirs = torch.nn.ModuleDict(dict(model=torch.nn.Linear(2, 2)))
    load_checkpoint(theirs, str(tmp_path / "a.pth"), strict=True)
    assert torch.equal(theirs["model"].weight, own["model"].weight)
    with pytest.raises(InputError, match="a.pth does not fit .*(?s:.)*no name in common"):
        load_checkpoint(torch.nn.ModuleDict(dict(b=torch.nn.Linear(3, 1))), str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("price", "init_cfg")]
)
@pytest.mark.parametrize("wrap", ["safetensors", "Lightning", "ema_state_dict", "compiled DDP"])
@pytest.mark.slow
def test_every_command_takes_wrapped_weights(
    command: str, wrap: str, run: Callable, state: Callable, tmp_path: Path, capsys, monkeypatch
) -> None:
    still = [*QUICK, "train_cfg.max_iters=1", "optim_wrapper.optimizer.lr=0", "load_from=FILE"]
    steps = ["default_hooks.checkpoint.interval=1"]
    words = ["train.py", "CONFIG", "--work-dir", "OUT", "--cfg-options", *still, *steps]
    monkeypatch.setitem(COMMANDS, "load_from", words)
    weights = state(command)
    if wrap == "safetensors":
        file = tmp_path / "a.safetensors"
        save_file(weights, file)
    else:
        file = tmp_path / "a.pth"
        torch.save(WRAPPED[wrap](weights), file)
    code = run(command, file)
    assert code == 0, capsys.readouterr().err
    if command == "load_from":
        trained = torch.load(tmp_path / "out0/iter_1.pth", weights_only=True)["state_dict"]
        assert all(torch.equal(trained[key], value) for key, value in weights.items())

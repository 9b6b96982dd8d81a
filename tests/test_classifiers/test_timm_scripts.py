"""python -m ltm_det.classifiers: timm's scripts know our models, and may train on the bound.

timm's package has no scripts; the one that is run here does with timm's own parts what its train.py
and validate.py do.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import timm.task
import torch
from PIL import Image

from ltm_det.classifiers import __main__ as door

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/classifiers.md").read_text()
CLASSES, SIDE = ("disc", "square"), 64
SCRIPT = """
import argparse, json, torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from timm.utils import ParseKwargs

parser = argparse.ArgumentParser()
parser.add_argument("data_dir")
parser.add_argument("--model")
parser.add_argument("--model-kwargs", nargs="*", default={}, action=ParseKwargs)
parser.add_argument("--out")
args = parser.parse_args()

model = create_model(args.model, num_classes=2, drop_path_rate=None, **args.model_kwargs)
config = resolve_data_config(dict(input_size=(3, SIDE, SIDE)), model=model)
loaders = {}
for split in ("train", "validation"):
    data = create_dataset("", root=args.data_dir, split=split, is_training=split == "train")
    loaders[split] = create_loader(
        data, config["input_size"], batch_size=4, is_training=split == "train", num_workers=0,
        use_prefetcher=False, mean=config["mean"], std=config["std"], persistent_workers=False,
    )
task = ClassificationTask(model, criterion_kwargs=dict(smoothing=0.1), verbose=False)
optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3)
losses = []
for _ in range(2):
    for images, target in loaders["train"]:
        found = task.train()(images, target)
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(found["loss"].item())
with torch.no_grad():
    right = sum((model.eval()(x).argmax(1) == y).sum().item() for x, y in loaders["validation"])
told = dict(losses=losses, right=right, criterion=type(task.criterion).__name__,
            points=len(model.backbone.mergers_by_point()))
open(args.out, "w").write(json.dumps(told))
"""


@pytest.fixture(autouse=True)
def timms_task(monkeypatch):
    """timm's own again, after the test."""
    monkeypatch.setattr(timm.task, "ClassificationTask", timm.task.ClassificationTask)
    monkeypatch.setattr(door.sys, "argv", ["train.py"])
    monkeypatch.setattr(door.sys, "path", [*door.sys.path])


@pytest.fixture
def data(tmp_path):
    """A folder of pictures for each class, four for training and two for validation."""
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 2), ("validation", 1)):
        for i, name in enumerate(CLASSES):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for j in range(number):
                noise = torch.randint(60, (SIDE, SIDE, 3), generator=generator) + 120 * i
                Image.fromarray(noise.byte().numpy()).save(folder / f"{j}.png")
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path, data):
    """What the script tells of a model."""
    script, out = tmp_path / "train.py", tmp_path / "told.json"
    script.write_text(f"SIDE = {SIDE}\n{SCRIPT}")

    def command(model, *options, before=()):
        words = [*before, str(script), str(data), "--model", model, "--out", str(out), *options]
        assert door.main(words) == 0
        return json.loads(out.read_text())

    return command


@pytest.mark.parametrize("model", ["ltm_mobilevit_xs", "ltm_efficientvit_b1"])
def test_two_steps(run, model):
    told = run(model, "--model-kwargs", "compression_ratio=0.5")
    assert len(told["losses"]) == 2 and all(0 < loss < 10 for loss in told["losses"])
    assert told["points"] > 0 and told["criterion"] == "LabelSmoothingCrossEntropy"


def test_the_dense_twin(run):
    assert run("ltm_mobilevit_xs", "--model-kwargs", "merger=False")["points"] == 0


def test_the_bound_in_timms_loss(run):
    before = ["--ib-weight", "0.1", "--ib-interval", "1", "--ib-clusters", "2"]
    told = run("ltm_mobilevit_xs", before=before)
    assert told["criterion"] == "IBLoss" and len(told["losses"]) == 2


def test_what_is_wrong_ends_with_2(tmp_path, data, run, capsys):
    assert door.main([str(tmp_path / "missing.py")]) == 2
    assert "no script" in capsys.readouterr().err
    script = tmp_path / "train.py"
    words = [str(script), str(data), "--model", "ltm_mobilevit_xs", "--out", "out.json"]
    assert door.main([*words, "--model-kwargs", "compression_ratio=3"]) == 2
    assert "compression_ratio" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        door.main(["--ib-weight", "0.1", *words])
    assert stop.value.code == 2 and "--ib-interval" in capsys.readouterr().err
    for lonely in (["--ib-begin", "5"], ["--ib-clusters", "4"]):
        with pytest.raises(SystemExit) as stop:
            door.main([*lonely, *words])
        assert stop.value.code == 2 and "nothing without --ib-weight" in capsys.readouterr().err


def test_the_pages_commands_are_read():
    text = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "ltm_det.classifiers" in line]
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line, comments=True)
        args = door.parse(words[words.index("ltm_det.classifiers") + 1 :])
        assert Path(args.script).name in ("train.py", "validate.py")
        model = args.words[args.words.index("--model") + 1]
        assert timm.is_model(model)

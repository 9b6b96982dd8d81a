"""Every command and config that README.md and docs/ name: it exists, and does what they say."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from mmdet.registry import HOOKS, MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from ltm_det import cli
from ltm_det.backbones import LTMSwin, LTMViT

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = "\n".join(page.read_text() for page in PAGES)


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def config_with(word: str, folder: Path) -> Config:
    """The pages' only config that holds ``word``, read from a file in ``folder``."""
    (text,) = {block for block in code_blocks("python") if word in block}
    (folder / "mine.py").write_text(text.replace('"configs/', f'"{ROOT}/configs/'))
    return Config.fromfile(folder / "mine.py")


def commands() -> list[str]:
    """Shell commands of the pages, less comments, one a line, each once."""
    lines = "\n".join(code_blocks("bash")).replace("\\\n", " ").splitlines()
    found = [" ".join(shlex.split(line, comments=True)) for line in lines if line.strip()]
    return list(dict.fromkeys(found))


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, tmp_path: Path
) -> Callable[[str], subprocess.CompletedProcess]:
    """Runs a command from the repository's root: Python's in this process, which spares the
    imports, a shell's distributed ones on one process."""

    def inside(words: list[str]) -> int:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setenv("LOCAL_RANK", os.environ.get("LOCAL_RANK", "0"))
        try:
            if words[0] == "ltm-det":
                return cli.main(words[1:])
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stop:
            return stop.code or 0
        return 0

    def run(command: str) -> subprocess.CompletedProcess:
        words = [str(tmp_path) if word == "WORK_DIR" else word for word in shlex.split(command)]
        while "=" in words[0]:  # NNODES=2 and its like: other machines are not to be had here
            words = words[1:]
        if words[0] in ("python", "ltm-det"):
            code = inside(words[words[0] == "python" :])
            return subprocess.CompletedProcess(words, code, *capfd.readouterr())
        if words[0].endswith(".sh"):
            words = ["1" if word == "8" else word for word in words]
            words = ["env", f"PYTHON={sys.executable}", *words]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)

    return run


def test_every_named_path_exists() -> None:
    named = set(re.findall(r"\b(?:configs|tools|ltm_det|docs|results)/[\w{},./-]*\w", README))
    assert len(named) > 10
    for path in named:
        stem, choices, rest = re.fullmatch(r"([^{]*)(?:\{(.*?)\}(.*))?", path).groups()
        for choice in choices.split(",") if choices else [""]:
            assert (ROOT / f"{stem}{choice}{rest or ''}").exists(), path


def test_the_front_page_is_short() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= 160


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wanted = [command.split()[1] for command in commands() if command.startswith("make ")]
    assert wanted and set(wanted) <= set(targets)


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("ltm-det ")])
def test_commands_have_these_options(command: str) -> None:
    _, name, *words = shlex.split(command)
    module = import_module(f"ltm_det.cli.{name.replace('-', '_')}")
    assert module.parse(words)


def test_every_command_of_ltm_det_is_shown() -> None:
    shown = {command.split()[1] for command in commands() if command.startswith("ltm-det ")}
    assert shown == {*cli.COMMANDS}


def test_three_line_inheritance(tmp_path: Path) -> None:
    config = config_with("mmdet::swin", tmp_path)
    config.model.backbone.init_cfg = None
    register_all_modules()
    backbone = MODELS.build(config.model.backbone)
    assert isinstance(backbone, LTMSwin)
    assert [stage.kept for stage in backbone.stages] == [
        [49, 25],
        [49, 25],
        [49] * 2 + [25] * 16,
        [49, 25],
    ]


def test_merging_in_a_vit(tmp_path: Path) -> None:
    config = config_with("merge_at=2", tmp_path)
    config.model.backbone.init_cfg = None
    register_all_modules()
    backbone = MODELS.build(config.model.backbone)
    assert isinstance(backbone, LTMViT) and backbone.sides == {2: 10}


def test_bottleneck_in_a_config(tmp_path: Path) -> None:
    (hook,) = config_with("IBHook", tmp_path).custom_hooks
    register_all_modules()
    assert HOOKS.build(hook).weight == 0.1


def test_a_teacher_in_a_config(tmp_path: Path) -> None:
    (text,) = {block for block in code_blocks("python") if "DistillHook" in block}
    base, rest = text.split("\n", 1)
    assert base.startswith("_base_ = ")
    (tmp_path / "mine.py").write_text(rest)
    (hook,) = Config.fromfile(tmp_path / "mine.py").custom_hooks
    assert HOOKS.build(hook).file == "work_dirs/dense/iter_700.pth"


def test_a_file_in_the_backbones_place(tmp_path: Path) -> None:
    backbone = config_with("ExportedBackbone", tmp_path).model.backbone
    assert backbone == dict(type="ExportedBackbone", file="work_dirs/ltm_swin_s.xml")
    register_all_modules()
    with pytest.raises(FileNotFoundError, match="make it with ltm-det export"):
        MODELS.build(backbone)


@pytest.mark.skipif((ROOT / "work_dirs/demo").exists(), reason="the demo was run: these would work")
@pytest.mark.parametrize("command", [c for c in commands() if "work_dirs/demo" in c])
def test_commands_on_the_demo_say_that_it_comes_first(run: Callable, command: str) -> None:
    """What they do after it, the tools' own tests show."""
    done = run(command)
    assert done.returncode == 2
    assert "no checkpoint at work_dirs/demo" in done.stderr or "data/demo" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=[pytest.mark.slow] if "vit" in c else [])
        for c in commands()
        if "ltm-det flops " in c
    ],
)
def test_flops_commands(run: Callable, command: str) -> None:
    done = run(command)
    assert done.returncode == 0, done.stderr
    dense = "467.66" if "vit" in command else "187.6"
    assert re.search(rf"^backbone +{re.escape(dense)}", done.stdout, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [c for c in commands() if "ltm-det memory " in c and "--picture" not in c]
)
def test_memory_command(run: Callable, command: str) -> None:
    """On a smaller model and images, once."""
    small = "--sides 128 --repeats 1 --cfg-options model.backbone.depth=3"
    done = run(f"{command} {small}")
    assert done.returncode == 0, done.stderr
    assert "128" in done.stdout and "train" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in commands() if "ltm-det benchmark " in c])
def test_benchmark_commands(run: Callable, command: str, tmp_path: Path) -> None:
    """On small models and images, once; compiling and exporting are slow, and tested where the
    forms are, so that one exported form is enough."""
    small = re.sub(
        r" --shape \d+ \d+| compiled| frozen| onnxruntime| openvino_bfloat16", "", command
    )
    sizes = "depths=[1,1,2,1]" if "swin" in command else "depth=3 model.backbone.embed_dims=96"
    done = run(
        f"{small} --shape 64 64 --rounds 1 --warm-up 0 --threads 1 --json {tmp_path}/times.json "
        f"--cfg-options model.backbone.{sizes}"
    )
    assert done.returncode == 0, done.stderr
    assert "does not run" not in done.stdout, done.stdout
    asked = re.search(r"--models ([\w ]+?)( --|$)", command)
    assert asked is None or set(asked[1].split()) <= set(done.stdout.split())


@pytest.mark.parametrize("command", [c for c in commands() if "ltm-det export " in c])
def test_export_commands_say_that_a_checkpoint_comes_first(
    run: Callable, command: str, tmp_path: Path
) -> None:
    """What they do with one, the tool's own tests show; here `make demo` may have left one."""
    done = run(command.replace("work_dirs/", f"{tmp_path}/"))
    assert done.returncode == 2
    assert f"no checkpoint at {tmp_path}" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(
    (ROOT / "data/demo").exists(), reason="the demo's data are there: this would run"
)
@pytest.mark.parametrize(
    "command", [c for c in commands() if "work_dirs/dense" in c or "ltm-det compare" in c]
)
def test_commands_on_a_dense_demo_say_what_comes_first(
    run: Callable, command: str, tmp_path: Path
) -> None:
    """Training, converting, searching and comparing: what they do, the tools' own tests show. The
    comparison in results/ is complete, so one from its start is asked for."""
    done = run(command + f" --out {tmp_path}/compare.csv" * ("ltm-det compare" in command))
    assert done.returncode == 2
    assert re.search(
        r"ltm-det demo-data|no (checkpoint|config file) at work_dirs/dense", done.stderr
    )


@pytest.mark.skipif((ROOT / "data/demo").exists(), reason="the demo's data are there: it would run")
@pytest.mark.skipif((ROOT / "work_dirs/dense").exists(), reason="a dense detector is there")
@pytest.mark.parametrize("command", [c for c in commands() if " --data " in c])
def test_commands_on_own_data_say_what_there_may_be(run: Callable, command: str) -> None:
    done = run(command)
    assert done.returncode == 2
    if "ltm-det compress" in command:  # the detector comes first
        assert "no checkpoint at work_dirs/dense" in done.stderr
    else:
        assert "no data at data/demo" in done.stderr and "YOLO" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif((ROOT / "data/coco").exists(), reason="COCO is there: this would train")
@pytest.mark.parametrize(
    "command",
    [
        c
        for c in commands()
        if re.search(r"ltm-det (train|test)|(train|test)\.sh", c)
        and not re.search("work_dirs/(dense|demo)|--data ", c)
    ],
)
def test_coco_commands_say_where_coco_belongs(run: Callable, command: str) -> None:
    """Without COCO or a checkpoint, each stops with the remedy; what runs with them, other tests
    show on demo data and tiny data."""
    done = run(command)
    assert done.returncode != 0
    told = r"(train\.py|ltm-det train): the data of train_dataloader is not there|"
    told += r"(test\.py|ltm-det test): no checkpoint at"
    told += r"|srun: not found" * ("slurm" in command)  # where there is no Slurm
    assert re.search(told, done.stderr)
    assert "Traceback" not in done.stderr or ".sh" in command  # torchrun adds one of its own


def test_a_fast_detector_by_one_line(tmp_path: Path) -> None:
    model = config_with("FastMaskRCNN", tmp_path).model
    assert model.type == "FastMaskRCNN" and model.backbone.type == "LTMSwin"
    register_all_modules()
    assert MODELS.get(model.type) is not None

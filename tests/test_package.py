"""The package as installed: its version, its requirements, and what it needs to be imported."""

import ast
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from mmengine.hub import get_config

import ltm_det

ROOT = Path(__file__).parents[1]
# The rooms that hold maths and import torch alone, each with those it may import.
ROOMS = {"ib": ["ib"], "merging": ["basics", "merging", "ib"], "cpu": ["cpu", "merging"]}
ELSE = ("mmcv", "mmengine", "mmdet", "timm", "torchvision", "sklearn", "scipy", "matplotlib", "cv2")


def test_setup_reads_the_version_without_importing_the_package():
    code = "import sys; sys.modules['torch'] = sys.modules['ltm_det'] = None; sys.argv[1:] = ['-V']"
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}; exec(open('setup.py').read(), {{'__file__': 'setup.py'}})",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == [ltm_det.__version__], run.stderr


def test_neither_mmcv_is_a_hard_requirement():
    mmcv = [line for line in requires("ltm_det") if line.startswith("mmcv")]
    assert len(mmcv) == 2
    assert all("extra ==" in line for line in mmcv)


@pytest.mark.parametrize("room", ROOMS)
def test_room_needs_torch_alone(room, run_python):
    run = run_python(f"import ltm_det.{room}; print(ltm_det.__version__)", hidden=ELSE)
    assert run.stdout.split() == [ltm_det.__version__], run.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_room_names_torch_and_the_standard_library_alone(room):
    allowed = {"torch", *sys.stdlib_module_names}
    for file in (ROOT / "ltm_det" / room).rglob("*.py"):
        for name in _imported(file):
            own = any(f"{name}.".startswith(f"ltm_det.{other}.") for other in ROOMS[room])
            assert own or name.partition(".")[0] in allowed, f"{file} imports {name}"


def test_missing_mmcv_is_named_with_its_remedy(run_python):
    run = run_python("import ltm_det", hidden=["mmcv"])
    assert run.returncode == 1
    assert "ImportError: ltm_det needs mmcv" in run.stderr
    assert "ltm_det[lite]" in run.stderr and "ltm_det[full]" in run.stderr


def test_host_is_usable_after_the_import():
    from mmdet.apis import DetInferencer  # fails without mmcv's ops
    from mmdet.registry import MODELS

    assert DetInferencer is not None
    assert MODELS.get("LTMSwin").__module__.startswith("ltm_det.")


def test_configs_of_mmdet_are_found():
    """Needs pkg_resources, which is gone from newer setuptools."""
    config = get_config("mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py")
    assert config.model.backbone.type == "SwinTransformer"


def _imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names.add(node.module)
    return names

"""OpenMMLab's packages: what is missing and what collides is said, and nothing is overwritten."""

import re
import runpy
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

from ltm_det.basics import host

ROOT = Path(__file__).parents[2]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What setup.py says."""
    found: dict = {}
    monkeypatch.setattr(setuptools, "setup", found.update)
    runpy.run_path(str(ROOT / "setup.py"))
    return found


def modules(requirements: list[str]) -> list[str]:
    """Of OpenMMLab's, those that the requirements install, each as often as they do."""
    names = [Requirement(text).name for text in requirements]
    return sorted(m for m, own in host.DISTRIBUTIONS.items() for name in names if name in own)


def test_nothing_is_required_that_could_overwrite_a_module(given: dict) -> None:
    assert modules(given["install_requires"]) == []
    for extra in ("lite", "full", "onedl"):
        assert modules(given["extras_require"][extra]) == ["mmcv", "mmdet", "mmengine"]
    assert modules(given["extras_require"]["mmdet"]) == ["mmdet", "mmengine"]


def test_every_extra_that_is_named_is_there(given: dict) -> None:
    files = [*(ROOT / "ltm_det").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    text = "\n".join(file.read_text() for file in files)
    lists = re.findall(r"(?:ltm_det|\.)\[([a-z,]+)\]", text)
    assert {name for names in lists for name in names.split(",")} <= {*given["extras_require"]}
    assert {"lite", "full", "onedl", "mmdet", "tiles", "demo", "deploy"} <= {
        name for names in lists for name in names.split(",")
    }


def installed_in(folder: Path, name: str, number: str, module: str | None = None) -> None:
    """A distribution that pip would list."""
    about = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    if module:
        (folder / module).mkdir()
        (folder / module / "__init__.py").write_text(f"__version__ = '{number}'\n")


def test_packages_that_lie_over_one_another_are_named(tmp_path: Path, run_python) -> None:
    installed_in(tmp_path, "onedl-mmdetection", "3.5.1")
    installed_in(tmp_path, "mmcv-full", "1.7.2")
    run = run_python("import ltm_det", path=[tmp_path])
    assert run.returncode == 1
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("ImportError")]
    assert re.search(r"mmdet \S+ and onedl-mmdetection 3.5.1 both install the module mmdet", line)
    assert "pip uninstall -y mmdet onedl-mmdetection" in line
    assert "mmcv-full 1.7.2 both install the module mmcv" in line


def test_a_half_removed_package_is_named(tmp_path: Path, run_python) -> None:
    """As after `pip uninstall` of one of two that had written the same files."""
    installed_in(tmp_path, "mmcv", "2.1.0")
    code = "import ltm_det.basics.host as h; h.DISTRIBUTIONS = {'mmcv': ('mmcv',)}; h.check_host()"
    run = run_python(code, hidden=["mmcv", "mmdet"], path=[tmp_path])
    assert run.returncode == 1
    assert "pip install --force-reinstall --no-deps mmcv==2.1.0" in run.stderr


def test_folders_left_behind_are_no_package(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "left_behind").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not host.is_there("left_behind") and not host.is_there("gone") and host.is_there("json")


HOST = ["mmdet", "mmengine", "mmcv"]


def test_without_mmdet_commands_and_detector_name_the_extras(run_python) -> None:
    run = run_python("import ltm_det; ltm_det.Detector", hidden=HOST)
    assert "ImportError: ltm_det needs mmengine and mmcv and mmdet" in run.stderr
    run = run_python("import ltm_det; ltm_det.detector", hidden=HOST)
    assert "AttributeError: module 'ltm_det' has no attribute 'detector'" in run.stderr
    code = "from ltm_det.cli import main; sys.exit(main(['train', 'a.py']))"
    run = run_python(code, hidden=HOST)
    assert run.returncode == 2 and "Traceback" not in run.stderr
    assert all(f"ltm_det[{extra}]" in run.stderr for extra in ("lite", "full", "onedl", "mmdet"))


def test_mmdet_takes_a_newer_mmcv(run_python) -> None:
    """mmdet 3.3 looks at the number of mmcv alone; afterwards that is mmcv's own again."""
    if host.installed(["onedl-mmdetection"]):
        pytest.skip("onedl-mmdetection asks for no number")
    code = f"""
import runpy, mmcv
mmcv.__version__ = "2.2.0"
try:
    import mmdet
except AssertionError:
    print("refused")
runpy.run_path({str(ROOT / "ltm_det/compat/newer_mmcv.py")!r})["accept_newer_mmcv"]()
import mmdet
print(mmcv.__version__, mmdet.__version__)
"""
    run = run_python(code)
    assert run.stdout.split()[:3] == ["refused", "2.2.0", "3.3.0"], run.stderr

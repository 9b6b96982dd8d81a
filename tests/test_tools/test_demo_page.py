"""`ltm-det demo`: dense and merged side by side on a local page, in a real browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from ltm_det.cli.demo import detectors_of, main, parse
from ltm_det.prediction import Detector
from ltm_det.prediction.page import Shown, looked_at, told
from tests.test_tools.detectors import SWIN, saved_detector

ROOT = Path(__file__).parents[2]
DENSE = SWIN.replace(
    "merger=dict(type='Pool', compression_ratio=0.5, dense_blocks=0)", "merger=None"
)
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
# Where a browser would ask its maker for something, which a machine without a network refuses.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def detectors(tiny_config: Path) -> list[tuple[Path, Path]]:
    return [
        saved_detector(tiny_config, name, text) for name, text in (("tight", SWIN), ("full", DENSE))
    ]


@pytest.fixture(scope="module")
def pictures(tiny_config: Path) -> Path:
    return tiny_config.parent / "val"


def test_detectors_take_turns_on_a_picture(detectors: list, pictures: Path) -> None:
    args = parse([*map(str, detectors[0]), "--dense", *map(str, detectors[1])])
    both = detectors_of(args)
    assert list(both) == ["dense: full", "merged: tight"]
    picture = cv2.imread(str(pictures / "1.png"))
    shown = looked_at(both, picture[..., ::-1], 0.0, rounds=1)
    for (name, own), model in zip(shown.items(), reversed(detectors), strict=True):
        alone = Detector(*model, score=0.0)(picture)
        np.testing.assert_array_equal(own.found.scores, alone.scores)
        np.testing.assert_array_equal(own.image[..., ::-1], alone.drawn(picture))
        assert own.milliseconds > 0 and name.endswith(model[0].stem)
    none = looked_at(both, picture[..., ::-1], 1.0, rounds=1)
    assert all(len(own.found) == 0 for own in none.values())
    np.testing.assert_array_equal(none["dense: full"].image[..., ::-1], picture)


def test_times_are_told_to_those_of_the_first() -> None:
    shown = {name: Shown(None, [0] * n, ms) for name, n, ms in (("a", 2, 80.0), ("b", 3, 40.0))}
    assert told(shown).splitlines()[2:] == ["| a | 2 | 80.0 | 1.00 |", "| b | 3 | 40.0 | 0.50 |"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dense", "a", "b", "c"], "--dense takes"),
        (["--rounds", "0"], "--rounds must be"),
        (["--score-thr", "2"], "--score-thr must be"),
        (["--dense", "ltm_det::gone.py"], "no config"),
    ],
)
def test_wrong_words_are_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        parse(["a.py", "a.pth", *words])
    assert message in capsys.readouterr().err


def test_it_listens_to_this_machine_alone() -> None:
    assert parse(["a.py", "a.pth"]).host == "127.0.0.1"


def test_without_gradio_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["a.py", "a.pth"]) == 2
    assert "ltm_det[demo]" in capsys.readouterr().err


@pytest.fixture
def address(detectors: list, pictures: Path, tmp_path: Path) -> Iterator[str]:
    """Of the page that the command serves; the command ends by Ctrl-C, as if nothing were wrong."""
    pytest.importorskip("gradio", reason="gradio makes the page: pip install 'ltm_det[demo]'")
    words = ["demo", *map(str, detectors[0]), "--dense", *map(str, detectors[1])]
    words += ["--images", str(pictures), "--score-thr", "0", "--rounds", "1"]
    command = [sys.executable, "-m", "ltm_det.cli", *words]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ['PYTHONPATH']}"}
    env |= {"GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "HOME": str(tmp_path)}
    with open(tmp_path / "errors", "w+") as errors:
        process = subprocess.Popen(
            command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            lines = iter(process.stdout.readline, "")
            found = next(
                filter(None, (re.search(r"the page is at (\S+)", line) for line in lines)), None
            )
            errors.seek(0)
            assert found, errors.read()
            yield found[1]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(60)
            finally:
                process.kill()
                process.stdout.close()
        assert code in (0, 130)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")
def test_a_picture_that_is_dropped_in_shows_both(address: str, pictures: Path) -> None:
    browsers = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    assert address.startswith("http://127.0.0.1:")
    with browsers.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        window = browser.new_page(viewport=dict(width=1200, height=1000))
        window.set_default_timeout(60_000)
        asked: list[str] = []
        window.on("request", lambda request: asked.append(request.url))
        window.goto(address)
        window.set_input_files("input[type=file]", str(pictures / "2.png"))
        sides = [window.locator(f"#side-{i} img") for i in (0, 1)]
        for side in sides:
            side.wait_for()
        times = window.locator("#times td").all_inner_texts()
        assert times[0] == "dense: full" and times[4] == "merged: tight"
        assert all(float(number) > 0 for number in (times[2], times[6]))
        first = sides[0].get_attribute("src")
        # one that is picked takes the place of the one that was dropped in
        window.locator(".gallery-item, .gallery button").first.click()
        window.wait_for_function(
            "first => document.querySelector('#side-0 img')?.src !== first", arg=first
        )
        if folder := os.environ.get("LTM_DET_SCREENSHOTS"):
            window.wait_for_timeout(2000)
            window.screenshot(path=f"{folder}/demo.png", full_page=True)
        browser.close()
    local = ("data:", "blob:", address.rstrip("/"))
    assert [url for url in asked if not url.startswith(local)] == []

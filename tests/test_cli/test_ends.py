"""How commands end: outputs that cannot be written are found before the work, in all of them; what
a user gets wrong is 2, Ctrl-C 130, both with a line and no traceback."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from ltm_det import cli
from ltm_det.basics.errors import InputError
from ltm_det.basics.files import check_output
from ltm_det.cli.common import OutputFile, Parser, command, output_folder
from ltm_det.engine import preflight

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs/demo_ltm_swin_maskrcnn.py"
# By command: what it takes beside its output. No file of these is there: none is looked at.
WORDS = {
    "benchmark": [DEMO],
    "check-data": [DEMO],
    "compare": ["none.yaml"],
    "compress": [DEMO, "none.pth", "--data", "none", "--budget", "gmacs=0.5"],
    "convert": [DEMO, "none.pth", "--compression-ratio", 0.5],
    "demo-data": [],
    "draw": [DEMO, "none.pth"],
    "export": [DEMO],
    "flops": [DEMO],
    "ib": [DEMO, "none.pth"],
    "memory": [DEMO],
    "predict": [DEMO, "none.pth", "--images", "none.png"],
    "price": [DEMO, "none.pth"],
    "search": [DEMO, "none.pth", "--budget", 0.5],
    "test": [DEMO, "none.pth"],
    "train": [DEMO],
    "visualize": [DEMO, "none.pth", "none.png"],
}
NEEDED = {"convert": "a.pth", "draw": "a.png", "export": "a.onnx", "search": "a.py", "price": "a"}
LIKELY = ("--out", "--json", "--plot", "--work-dir", "--out-dir")


def module_of(name: str):
    return import_module(f"ltm_det.cli.{name.replace('-', '_')}")


def outputs_of(name: str) -> Iterator[argparse.Action]:
    """A command's options that name what is written."""
    with pytest.MonkeyPatch.context() as patch:
        seen: list[Parser] = []

        def stop(parser: Parser, *_: object) -> None:
            seen.append(parser)
            raise InterruptedError

        patch.setattr(Parser, "parse_args", stop)
        with pytest.raises(InterruptedError):
            module_of(name).parse([])
    for action in seen[0]._actions:
        if isinstance(action.type, OutputFile) or action.type is output_folder:
            yield action
        else:
            assert not set(action.option_strings) & set(LIKELY), (name, action.option_strings)


OUTPUTS = [(name, action) for name in cli.COMMANDS for action in outputs_of(name)]


def test_every_output_is_known() -> None:
    assert len(OUTPUTS) >= 22 and {name for name, _ in OUTPUTS} == {*WORDS}
    assert {*cli.COMMANDS} - {*WORDS} == {"demo", "run"}  # a page, and what its script writes


@pytest.mark.parametrize(
    "kind", ["taken", "under a file", "under proc", "dangling", "long", "bytes"]
)
@pytest.mark.parametrize(
    ("name", "action"), OUTPUTS, ids=[f"{n}{a.option_strings[0]}" for n, a in OUTPUTS]
)
def test_outputs_are_looked_at_before_the_work(
    name: str, action: argparse.Action, kind: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    def nothing_is_read(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "load_config", nothing_is_read)
    folder = action.type is output_folder
    suffix = "" if folder or not action.type.suffixes else action.type.suffixes[0]
    suffix = suffix or (".onnx" if name == "export" else "")
    path = tmp_path / f"out{suffix}"
    if kind == "taken":
        path.touch() if folder else path.mkdir()
    elif kind == "under a file":
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "below" / path.name
    elif kind == "under proc":
        path = Path("/proc/none") / path.name
    elif kind == "dangling":
        (tmp_path / "link").symlink_to(tmp_path / "gone")
        path = tmp_path / "link" / path.name
    elif kind == "bytes":  # that are no UTF-8: OpenCV's writers would die of a segmentation fault
        path = tmp_path / f"\udcff{suffix}"
    else:
        path = tmp_path / f"{'x' * 300}{suffix}"
    there = sorted(tmp_path.rglob("*"))
    option = action.option_strings[0]
    words = list(WORDS[name])
    if name in NEEDED and option != "--out":
        words += ["--out", tmp_path / NEEDED[name]]
    if name == "visualize" and option != "--out-dir":
        words += ["--out-dir", tmp_path / "pictures"]
    with pytest.raises(SystemExit) as stop:
        module_of(name).main([*map(str, words), option, str(path)])
    error = capsys.readouterr().err
    assert (
        stop.value.code == 2 and f"argument {option}" in error and ascii(str(path))[1:-1] in error
    )
    assert sorted(tmp_path.rglob("*")) == there


def test_what_is_beside_an_output_is_looked_at_too(tmp_path: Path) -> None:
    (tmp_path / "a.py").mkdir()
    with pytest.raises(argparse.ArgumentTypeError, match="a.py is a folder"):
        OutputFile(".pth", beside=[".py"])(str(tmp_path / "a.pth"))
    file = tmp_path / "val.json"
    file.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(argparse.ArgumentTypeError, match="holds annotations: name another file"):
        OutputFile()(str(file))
    file.write_text('{"command": "flops"}')
    assert OutputFile()(str(file)) == file
    for kind in (OutputFile(), output_folder):
        with pytest.raises(argparse.ArgumentTypeError, match="is empty: give a path"):
            kind("")
    with pytest.raises(argparse.ArgumentTypeError, match="must end in .pth, but is .*a.zip"):
        OutputFile(".pth")(str(tmp_path / "a.zip"))


def test_outputs_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    for path in ("there", "new", "deep/er/new", "é ü.json"):
        check_output(tmp_path / path)
    check_output(tmp_path, folder=True)
    check_output(tmp_path / "a/b", folder=True)
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    with pytest.raises(InputError, match="no plain file"):
        check_output("/dev/null")  # a file that is renamed into place would replace it
    with pytest.raises(InputError, match="name a file"):
        check_output("")


def test_work_dir_of_a_config(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    taken = f"work_dir={tmp_path / 'file'}"
    assert module_of("train").main([str(DEMO), "--cfg-options", taken]) == 2
    assert f"{tmp_path / 'file'} is a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["flops", DEMO, "--cfg-options", "a"], "'a' is not KEY=VALUE"),
        (["flops", DEMO, "--cfg-options", "=1"], "'=1' is not KEY=VALUE"),
        (["flops", DEMO, "--cfg-options", "a=[(1,2]"], "a=[(1,2]"),
        (["flops", DEMO, "--shape", "0", "64"], "--shape"),
        (
            ["convert", DEMO, "c.pth", "--compression-ratio", "1", "--out", "o.pth"]
            + ["--shape", "0", "64"],
            "--shape",
        ),
        (["convert", DEMO, "c.pth", "--compression-ratio", "1", "--out", "o.zip"], ".safetensors"),
        (["draw", DEMO, "c.pth", "--out", "sheet.doc"], "must end in .png"),
        (["ib", DEMO, "c.pth", "--out", "plot"], "must end in .png"),
        (["compare", "none.yaml"], "no spec at none.yaml"),
        (["compare", DEMO], "demo_ltm_swin_maskrcnn.py"),
        (["export", DEMO, "--out", "a.onnx", "--check", "--image", "none.png"], "none.png"),
        (
            ["export", DEMO, "--out", "a.xml", "--part", "detector", "--dtype", "int8"]
            + ["--calibration", "none"],
            "none",
        ),
        (["memory", DEMO, "--device", "cudda"], "cudda"),
        (["benchmark", DEMO, "--device", "cudda"], "cudda"),
        (["demo-data", "--size", "-1"], "size"),
    ],
    ids=lambda value: " ".join(map(str, value))[-40:] if isinstance(value, list) else "",
)
def test_what_users_get_wrong(words, message, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ltm-det"])
    try:
        code = cli.main(list(map(str, words)))
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error, error
    assert not list(tmp_path.glob("*"))


def test_bad_specs(tmp_path: Path, capsys) -> None:
    spec = tmp_path / "spec.yaml"
    for content in (
        b"",
        b"[1, 2]",
        b"a: [",
        b"\xff\xfe\x00",
        b"backbones: 3\nmergers: {}\nruns: []",
        b"backbones: {a: 3}\nmergers: {}\nruns: []",
        b"- \x00",
    ):
        spec.write_bytes(content)
        out = ["--out", str(tmp_path / "o.csv")]
        assert module_of("compare").main([str(spec), *out]) == 2, content
        error = capsys.readouterr().err
        assert "Traceback" not in error and error.strip(), content


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("a bad file"), 2), (KeyboardInterrupt(), 130)]
)
def test_ends(error: BaseException, code: int, capsys) -> None:
    def run(_: argparse.Namespace) -> None:
        raise error

    assert command(lambda _: argparse.Namespace(), run)([]) == code
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and ("a bad file" in said or "interrupted" in said)
    with pytest.raises(ZeroDivisionError):  # a fault of ours shows where it is
        command(lambda _: argparse.Namespace(), lambda _: 1 / 0)([])


SLEEPER = """
import argparse, sys, time
from ltm_det.cli.common import command
def run(args):
    for i in range({lines}):
        print(i, flush={flush})
    time.sleep({seconds})
sys.exit(command(lambda words: argparse.Namespace(), run)([]))
"""


def started(code: str) -> subprocess.Popen:
    """A process that Ctrl-C ends, also where the tests run in the background, which it does not."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **pipes,
    )


@pytest.mark.slow
def test_ctrl_c_and_a_closed_pipe() -> None:
    env_code = SLEEPER.format(lines=1, flush=True, seconds=60)
    with started(env_code) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
        assert process.wait() == 130
    assert "interrupted" in error and "Traceback" not in error
    many = SLEEPER.format(lines=99999, flush=False, seconds=0)
    with started(many) as process:
        process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait() == 141
    assert "Traceback" not in error and "BrokenPipe" not in error

"""A file under its final name is whole, whatever happens while it is written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ltm_det.basics.files import remove_parts, whole, whole_set, write_text


def test_a_file_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.json"
    with whole(file) as part:
        part.write_text("half")
        assert not file.exists()
        assert part.suffix == ".json" and part.parent == file.parent
    assert file.read_text() == "half"
    assert os.listdir(file.parent) == ["a.json"]


def test_a_failed_write_leaves_the_former_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "before")
    with pytest.raises(OSError, match="full"), whole(file) as part:
        part.write_text("half")
        raise OSError("full")
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole(tmp_path / "a.txt"):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_killed_writer_leaves_the_former_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "before")
    code = (
        "import os, signal, sys\n"
        "from ltm_det.basics.files import whole\n"
        "with whole(sys.argv[1]) as part:\n"
        "    part.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert file.read_text() == "before"


def test_parts_of_some_files_are_removed(tmp_path: Path) -> None:
    for name in ("iter_2.pth", ".iter_2.7.part.pth", ".iter_4.89.part.pth", ".best.7.part.pth"):
        (tmp_path / name).touch()
    remove_parts(tmp_path, "iter_*.pth")
    assert sorted(os.listdir(tmp_path)) == [".best.7.part.pth", "iter_2.pth"]


@pytest.mark.parametrize("beside", [False, True])
def test_what_lies_beside_a_file_is_there_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    file = tmp_path / "new" / "a.xml"

    def write(text: str) -> None:
        with whole_set(file) as part:
            assert part.name == "a.xml"  # by which it names what lies beside it
            part.write_text(text)
            if beside:
                part.with_suffix(".bin").write_text(text)

    def texts() -> dict[str, str]:
        return {path.name: path.read_text() for path in file.parent.glob("a.*")}

    write("one")
    assert texts() == dict.fromkeys(["a.xml", "a.bin"] if beside else ["a.xml"], "one")
    seen, replace = [], os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *names: (seen.append(texts()), replace(*names)))
        write("two")
    # either all of the former set, or the name is not there
    assert seen == ([{"a.bin": "one"}, {"a.bin": "two"}] if beside else [{"a.xml": "one"}])
    assert set(texts().values()) == {"two"}
    with pytest.raises(OSError, match="full"), whole_set(file) as part:
        part.write_text("three")
        raise OSError("full")
    assert set(texts().values()) == {"two"}
    assert len(os.listdir(file.parent)) == 1 + beside

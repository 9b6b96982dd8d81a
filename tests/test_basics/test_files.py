"""A file under its final name is whole, whatever happens while it is written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ltm_det.basics.files import whole, write_text


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

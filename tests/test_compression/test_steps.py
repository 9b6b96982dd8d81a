"""Steps that are done once: after an interruption, with other inputs, in another's folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ltm_det.basics.errors import InputError
from ltm_det.compression.state import STATE, Steps, spoken


class Work:
    """Counts how often it is done."""

    def __init__(self, result: Any = 1, file: Path | None = None) -> None:
        self.times, self.result, self.file = 0, result, file

    def __call__(self) -> dict[str, Any]:
        self.times += 1
        if isinstance(self.result, BaseException):
            raise self.result
        if self.file is not None:
            self.file.write_text("x" * 10)
        return dict(value=self.result)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[], Steps]:
    return lambda: Steps(tmp_path / "out", say=lambda words: None)


def test_a_step_is_done_once(opened: Callable[[], Steps]) -> None:
    work = Work()
    first = opened()
    assert first.step("a", dict(x=1), work) == dict(value=1)
    assert first.step("a", dict(x=1), work) == opened().step("a", dict(x=1), work) == dict(value=1)
    assert work.times == 1


def test_after_an_interruption_the_rest_is_done(opened: Callable[[], Steps]) -> None:
    one, two = Work(), Work(KeyboardInterrupt())
    steps = opened()
    steps.step("one", {}, one)
    with pytest.raises(KeyboardInterrupt):
        steps.step("two", {}, two)
    again = opened()
    again.step("one", {}, one)
    two.result = 2
    assert again.step("two", {}, two) == dict(value=2)
    assert (one.times, two.times) == (1, 2)


def test_what_was_being_done_again_is_not_done(opened: Callable[[], Steps]) -> None:
    """Its files may be new ones already when it is killed."""
    first = Work()
    opened().step("a", dict(x=1), first)
    with pytest.raises(KeyboardInterrupt):
        opened().step("a", dict(x=2), Work(KeyboardInterrupt()))
    opened().step("a", dict(x=1), first)
    assert first.times == 2


def test_other_inputs_and_what_was_made_of_them(opened: Callable[[], Steps]) -> None:
    one, two = Work(), Work()

    def both(x: int) -> Steps:
        steps = opened()
        steps.step("one", dict(x=x), one)
        steps.step("two", dict(of=steps.key("one")), two)
        return steps

    both(1)
    assert both(1).reason("one", dict(x=2, y=0)) == "again, since other: x, y"
    both(2)
    assert (one.times, two.times) == (2, 2)
    both(2)
    assert (one.times, two.times) == (2, 2)


def test_what_goes_on_from_a_step_that_is_done_again_is_too(opened: Callable[[], Steps]) -> None:
    steps, two = opened(), Work()
    one = Work(file=steps.folder / "file")
    for _ in range(2):
        steps = opened()
        steps.step("one", {}, one, ["file"])
        steps.step("two", dict(of=steps.key("one")), two)
        (steps.folder / "file").unlink()
    assert (one.times, two.times) == (2, 2)


@pytest.mark.parametrize("harm", [lambda f: f.unlink(), lambda f: f.write_text("short")])
def test_a_file_that_is_gone_is_made_again(
    opened: Callable[[], Steps], harm: Callable[[Path], Any]
) -> None:
    steps = opened()
    work = Work(file=steps.folder / "file")
    steps.step("a", {}, work, ["file"])
    opened().step("a", {}, work, ["file"])
    assert work.times == 1
    harm(steps.folder / "file")
    again = opened()
    assert again.reason("a", {}) == "again, since file is not what it left"
    again.step("a", {}, work, ["file"])
    assert work.times == 2


def test_the_state_is_whole_or_the_one_before(
    opened: Callable[[], Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = opened()
    steps.step("a", {}, Work())
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            steps.step("b", {}, Work())
    assert set(opened().done) == {"a"}


def test_no_number_is_kept_that_is_none(opened: Callable[[], Steps]) -> None:
    with pytest.raises(InputError, match="the step 'a'"):
        opened().step("a", {}, Work(float("nan")))
    assert opened().done == {}


def test_another_detectors_folder_is_refused(opened: Callable[[], Steps]) -> None:
    steps = opened()
    steps.about_this(dict(config="c", checkpoint="1"))
    steps.step("a", {}, Work())
    opened().about_this(dict(config="c", checkpoint="1"))
    with pytest.raises(InputError, match="of another checkpoint\nName another --out"):
        opened().about_this(dict(config="c", checkpoint="2"))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="has no state.json: it holds .'thesis.tex'."):
        Steps(tmp_path)


WHOLE = '{"version": 1, "about": %s, "steps": %s}'


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        WHOLE % ("{}", "[]"),
        WHOLE % ("[1]", "{}"),
        WHOLE % ("{}", '{"dense AP": 1}'),
        WHOLE % ("{}", '{"dense AP": {"inputs": {}, "result": {}, "at": 1}}'),
        "[" * 100_000,
    ],
)
def test_a_state_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / STATE).write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        Steps(tmp_path)


def test_of_another_version_all_is_done_again(opened: Callable[[], Steps]) -> None:
    steps = opened()
    steps.step("a", {}, Work())
    file = steps.folder / STATE
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(version=0)))
    assert opened().done == {}


def test_two_processes_do_not_meet(opened: Callable[[], Steps]) -> None:
    first, second = opened(), opened()
    with first.alone(), pytest.raises(InputError, match="another process works in"):
        with second.alone():
            pass
    with second.alone():  # the first is done
        pass


def test_what_was_begun_is_cleared_away(opened: Callable[[], Steps]) -> None:
    steps = opened()
    (steps.folder / ".model.1.part.pth").write_text("half")
    (steps.folder / ".detector.abc.part").mkdir()
    (steps.folder / "model.pth").write_text("whole")
    with steps.alone():
        assert sorted(p.name for p in steps.folder.iterdir()) == [".lock", "model.pth"]


def test_durations() -> None:
    assert [spoken(s) for s in (3.2, 89, 91, 5000, 7200)] == [
        "3 s",
        "89 s",
        "2 min",
        "83 min",
        "2.0 h",
    ]

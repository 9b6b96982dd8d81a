"""Pieces on threads: results in order, the caller's mode, one thread each, after a fork too."""

import os
import threading

import pytest
import torch

from ltm_det.cpu import threads

pytestmark = pytest.mark.skipif(threads._libtorch() is None, reason="torch is built without OpenMP")


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(3)), raising=False)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order():
    assert list(threads.each(lambda i: i * i, 20)) == [i * i for i in range(20)]
    assert list(threads.each(lambda i: i, 1)) == [0] and list(threads.each(int, 0)) == []


def test_as_many_threads_as_torch_may_use_each_of_which_works_alone():
    meeting = threading.Barrier(3)

    def who(_):
        meeting.wait(timeout=60)  # breaks if fewer work at once
        return threading.get_ident(), torch.get_num_threads()

    found = list(threads.each(who, 3))
    assert len({name for name, _ in found}) == 3
    assert {count for _, count in found} == {1}
    assert torch.get_num_threads() == 3  # the caller's own


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_threads_have_the_callers_mode(mode):
    def modes(_=0):
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with mode():
        expected = modes()
        assert list(threads.each(modes, 4)) == [expected] * 4


def test_an_error_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(threads.each(lambda i: 1 // (i - 2), 5))
    assert list(threads.each(int, 3)) == [0, 1, 2]


def test_one_thread_is_the_callers():
    torch.set_num_threads(1)
    assert set(threads.each(lambda _: threading.get_ident(), 5)) == {threading.get_ident()}
    assert threads.shared(5) == 5


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_a_thread_that_is_bound_to_a_core_keeps_all(monkeypatch):
    """As OMP_PROC_BIND binds the first: the others would share its core."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert set(threads.each(lambda _: threading.get_ident(), 5)) == {threading.get_ident()}


def test_pieces_inside_a_piece_stay_on_its_thread():
    def inner(_):
        return threading.get_ident()

    for own, inside in threads.each(lambda i: (inner(i), list(threads.each(inner, 3))), 4):
        assert inside == [own] * 3


@pytest.mark.parametrize("count, shared", [(1, 3), (3, 3), (4, 6)])
def test_every_thread_gets_as_many(count, shared):
    assert threads.shared(count) == shared


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_has_threads_of_its_own(run_python):
    """As workers of a data loader that run a model."""
    run = run_python(
        "import os, sys, torch\n"
        "from ltm_det.cpu import threads\n"
        "torch.set_num_threads(2)\n"
        "assert list(threads.each(int, 4)) == [0, 1, 2, 3]\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if list(threads.each(int, 4)) == [0, 1, 2, 3] else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert run.returncode == 0, run.stderr

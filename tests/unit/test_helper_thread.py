"""Threads of rtloop that the keeper may wait for, whatever lock the program's threads hold."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from rtloop.loop import registry
from rtloop.loop.outcome.run_warnings import warn_off_keeper
from rtloop.process import helper_thread
from rtloop.process.helper_thread import HelperThread
from rtloop.process.interpreter import with_filters_of_caller
from rtloop.process.occasion import Occasion
from rtloop.process.python_threads import name_of_this_thread, python_threads
from rtloop.process.signal_shield import shielded


class Worker:
    """Work for a thread, until it may end."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.name = ""

    def work(self) -> None:
        with open("/proc/thread-self/comm") as file:
            self.name = file.read().strip()
        self.may_end.wait(20)


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.may_end.set()


def test_it_runs_under_its_name_until_its_function_returns(worker: Worker) -> None:
    thread = HelperThread(worker.work, "rtloop-test", 1 << 18)
    assert not thread.join(0.02) and not thread.is_current
    worker.may_end.set()
    assert thread.join(20) and thread.join() and worker.name == "rtloop-test"


def test_it_starts_and_ends_while_the_lock_of_pythons_threads_is_held() -> None:
    done: list[int] = []
    with threading._active_limbo_lock:  # type: ignore[attr-defined]
        assert HelperThread(lambda: done.append(1), "rtloop-test", 1 << 18).join(20)
    assert done == [1]


def test_many_may_wait_for_it_and_a_forked_child_does_not_wait(worker: Worker) -> None:
    thread = HelperThread(worker.work, "rtloop-test", 1 << 18)
    ended: list[bool] = []
    waiting = [threading.Thread(target=lambda: ended.append(thread.join(20))) for _ in range(8)]
    for one in waiting:
        one.start()
    child = os.fork()
    if child == 0:
        os._exit(0 if thread.join() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    worker.may_end.set()
    for one in waiting:
        one.join(20)
    assert ended == [True] * 8


def test_the_keeper_does_not_wait_for_a_function_that_waits_for_the_keeper() -> None:
    """As a finalizer does that stops a loop, if the collector of garbage runs it on the thread."""
    is_kept, done = threading.Event(), list[int]()

    def work() -> None:
        is_kept.wait(20)
        done.append(shielded(lambda: 1))

    thread = HelperThread(work, "rtloop-test", 1 << 18)

    def join() -> bool:
        is_kept.set()
        return thread.join(20)

    begin = time.monotonic()
    assert not shielded(join) and time.monotonic() < begin + 10
    assert thread.join(20) and done == [1]


def test_the_keeper_reports_an_error_though_its_caller_holds_the_lock_of_stderr(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, written, shown = threading.Lock(), list[str](), threading.Event()

    class Stream:
        def write(self, text: str) -> None:
            with lock:
                written.append(text)

        def flush(self) -> None:
            shown.set()

    monkeypatch.setattr(helper_thread, "_PATIENCE_S", 0.01)
    monkeypatch.setattr(sys, "stderr", Stream())
    with lock:  # as of a print() that a signal handler has interrupted
        shielded(lambda: registry.report_error(ValueError("a file was lost")))
    assert shown.wait(20) and written == ["rtloop: ValueError('a file was lost')\n"]


def test_it_keeps_nothing_of_its_function_once_that_has_returned() -> None:
    class Owner:
        def __init__(self) -> None:
            self.thread = HelperThread(self.work, "rtloop-test", 1 << 18)

        def work(self) -> None:
            pass

    gc.disable()
    try:
        owner = Owner()
        gone = weakref.ref(owner)
        assert owner.thread.join(20)
        del owner
        until = time.monotonic() + 20
        while gone() is not None and time.monotonic() < until:
            time.sleep(0.001)  # the thread may be about to drop it
        assert gone() is None
    finally:
        gc.enable()


def test_a_warning_of_the_keeper_does_not_wait_for_a_lock_that_its_caller_holds() -> None:
    lock, shown = threading.Lock(), threading.Event()

    def show(text: str) -> None:
        with lock:
            warnings.warn(text, UserWarning, stacklevel=1)
            shown.set()

    def lose_a_grant() -> bool:
        warn = with_filters_of_caller(show)
        with lock:  # as logging has, into which a program may lead its warnings
            shielded(lambda: warn_off_keeper(warn, "a grant was lost"))
        return shown.wait(20)

    with pytest.warns(UserWarning, match="a grant was lost"):
        assert lose_a_grant()


def test_a_warning_of_the_keeper_is_raised_where_it_is_an_error() -> None:
    def show() -> None:
        raise UserWarning("an error")

    with pytest.raises(UserWarning, match="an error"):
        shielded(lambda: warn_off_keeper(show))


def test_threads_of_python_are_known_from_their_creation_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert python_threads() == {thread.native_id for thread in threading.enumerate()}
    assert name_of_this_thread() == threading.current_thread().name
    starting = threading.Thread()
    starting._native_id = 12345  # type: ignore[attr-defined] # as the new thread does, before it is in the other table
    monkeypatch.setitem(threading._limbo, starting, starting)  # type: ignore[attr-defined]
    assert 12345 in python_threads()


def test_a_thread_that_python_does_not_know_has_no_name_and_stays_unknown() -> None:
    names: list[str] = []
    before = threading.active_count()
    assert HelperThread(lambda: names.append(name_of_this_thread()), "rtloop-test", 1 << 18).join(20)
    assert names == [""] and threading.active_count() == before


def call_in(outer: Callable[[Occasion], object], inner: Callable[[Occasion], object], line: int) -> tuple[bool, bool]:
    """Make the inner call at a line of the outer one; return whether it came to that, and whether it is set."""
    one, seen = Occasion(), 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal seen
        seen += 1
        if seen == line:
            sys.settrace(None)
            inner(one)
        return trace

    sys.settrace(trace)
    try:
        outer(one)
    finally:
        sys.settrace(None)
    is_set = one.is_set()
    one.set()
    assert one.wait() and one.wait(0)
    return seen >= line, is_set


CALLS: list[Callable[[Occasion], object]] = [Occasion.set, lambda one: one.wait(0.01), Occasion.is_set]


@pytest.mark.parametrize("outer", CALLS, ids=["set", "wait", "is_set"])
@pytest.mark.parametrize("inner", CALLS, ids=["set", "wait", "is_set"])
def test_an_occasion_may_be_set_and_waited_for_in_the_middle_of_either(
    outer: Callable[[Occasion], object], inner: Callable[[Occasion], object]
) -> None:
    """At every line, as by a signal handler; a call of an Event in the middle of another one would never return."""
    line, is_reached = 0, True
    while is_reached:
        line += 1
        is_reached, is_set = call_in(outer, inner, line)
        assert is_set == (outer is Occasion.set or (inner is Occasion.set and is_reached))
    assert line > 2

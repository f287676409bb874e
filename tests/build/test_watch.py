"""``rtloop run --watch``: a saved file becomes the running loop's step, or its fault is shown and the loop goes on."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="the command line needs rtloop[cli]")
pytest.importorskip("rich", reason="the command line needs rtloop[cli]")

from rtloop.tools.run.rehearsal import Rehearsing
from rtloop.tools.run.revision import make_revision
from rtloop.tools.run.saved_files import SavedFiles
from rtloop.tools.run.target import Target, make_loop
from rtloop.tools.run.watch import Event, Watch

LAW = """\
from rtloop cimport RT_CONTINUE, Cycle, RTLoop
from posix.unistd cimport usleep
cdef class Law(RTLoop):
    cdef double kp
    cdef readonly double integral
    cdef readonly long steps

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.parameter("kp", &self.kp, 1.0).limits(0, 50)

    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        self.steps = (<Law>former).steps
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.integral += self.kp
        self.steps += 1
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        usleep(1)  # leave may wait, and the lint accepts it
"""
#: Limit for what takes seconds, such as a compilation; a busy machine takes its time.
PATIENCE_S = 150
BUILD: dict[str, Any] = {"force": False, "include": (), "packages": ()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache of its own, so that each law is compiled once for all tests."""
    return tmp_path_factory.mktemp("watch")


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("RTLOOP_CACHE_DIR", str(folder / "cache"))
    monkeypatch.setenv("CFLAGS", "-O0")
    (folder / "law.pyx").write_text(LAW)
    yield folder
    sys.modules.pop("law", None)


def save(place: Path, *changes: tuple[str, str]) -> None:
    """Save the law with changes, as an editor does that renames."""
    text = LAW
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (place / "law.new").write_text(text)
    (place / "law.new").replace(place / "law.pyx")


def test_each_save_is_swapped_in_or_its_fault_is_told(place: Path, ordinary: dict[str, Any]) -> None:
    events: queue.Queue[Event] = queue.Queue()

    def make(found: Target) -> Any:
        return make_loop(found, "1ms", ordinary, {}, {})

    def answer(*changes: tuple[str, str]) -> Event:
        save(place, *changes)
        return events.get(timeout=PATIENCE_S)

    found, examined = make_revision("law.pyx", BUILD)
    loop = make(found)
    gain = ("&self.kp, 1.0", "&self.kp, 3.0")
    with Watch(loop, found, examined, "law.pyx", BUILD, make, events.put), loop:
        event = answer(gain)
        assert (event.kind, loop.parameters["kp"]) == ("swapped", 3.0)
        assert event.figures["cycle"] == loop.stats.swaps[0].cycle and 0 < event.figures["seconds"] < PATIENCE_S
        assert event.figures["notes"] == ["kp is now 3.0, and was 1.0"]

        event = answer(gain, ("self.integral += self.kp", "self.integral += nothing"))
        assert (event.kind, event.figures) == ("rejected", {"stage": "compile"})
        assert "law.pyx:17:26: the name nothing is not known" in event.text

        event = answer(gain, ("self.steps += 1", "self.steps += 1\n        with gil:\n            print(1)"))
        assert (event.kind, event.figures) == ("rejected", {"stage": "lint"})
        assert "law.pyx:19: gil" in event.text

        event = answer(gain, ("cdef readonly double integral", "cdef readonly double offset, integral"))
        assert (event.kind, event.figures) == ("rejected", {"stage": "take-over"})
        assert "law.pyx:13: take_over() reads the former step as a Law, but the fields of Law have" in event.text

        loop.parameters["kp"] = 9.0
        event = answer(("limits(0, 50)", "limits(0, 5)"), ("self.steps = (<Law>former).steps", "pass"))
        assert event.kind == "swapped" and loop.parameters["kp"] == 1.0
        assert event.figures["notes"] == [
            "kp was set to 9.0, which the new law does not allow (type f8, low 0.0, high 5.0): it is now 1.0"
        ]
        loop.parameters["kp"] = 4.0

        event = answer()
        assert (event.kind, event.figures["notes"]) == ("swapped", ["kp stays 4.0, as set while the loop ran"])
        assert "(from the cache)" in event.text
        (place / "law.pyx").touch()
        (place / "law.pyx").unlink()
        assert events.get(timeout=PATIENCE_S).kind == "gone"

        event = answer(("        self.parameter", "        raise OSError('no motor')\n        self.parameter"))
        assert (event.kind, event.figures) == ("rejected", {"stage": "create"})
        assert 'File "law.pyx", line 10' in event.text and "OSError: no motor" in event.text

        event = answer(("steps\n        return RT_CONTINUE", "steps\n        return -7"))
        assert (event.kind, event.figures) == ("rejected", {"stage": "swap"})
        assert "take_over() of Law returned -7" in event.text

        assert answer().kind == "unchanged"
    stats = loop.stats
    assert [swap.successor for swap in stats.swaps] == ["Law"] * 3 and stats.state == "stopped" and events.empty()


@pytest.mark.filterwarnings("ignore:.*has gone back to:rtloop.RTSetupWarning")
def test_a_law_that_crashes_is_refused_and_one_that_fails_is_reverted_from(
    place: Path, ordinary: dict[str, Any]
) -> None:
    events: queue.Queue[Event] = queue.Queue()
    make = partial(make_loop, period="1ms", settings=ordinary, defaults={}, given={})

    def answer(*changes: tuple[str, str]) -> Event:
        save(place, *changes)
        return events.get(timeout=PATIENCE_S)

    found, examined = make_revision("law.pyx", BUILD)
    loop = make(found)
    rehearsing = Rehearsing(make, 50_000_000, 10**11)
    gain = ("&self.kp, 1.0", "&self.kp, 3.0")
    with Watch(loop, found, examined, "law.pyx", BUILD, make, events.put, rehearsing, "1h"), loop:
        event = answer(("self.steps += 1", "(<long *>NULL)[1] = self.steps"))
        assert (event.kind, event.figures) == ("rejected", {"stage": "rehearsal"})
        assert "crashed in its rehearsal: SIGSEGV at the address 0x8, in law.Law.step" in event.text

        event = answer(("self.steps += 1", "self.steps += 1\n        if self.steps > 60: return -5"), gain)
        assert event.kind == "swapped", event.text  # a rehearsal of 50 cycles cannot find it
        event = events.get(timeout=PATIENCE_S)
        assert event.kind == "reverted", event.text  # or late before that, on a busy machine
        assert event.figures["reason"] == loop.stats.swaps[-1].reason
        wait_for(lambda: loop.parameters["kp"] == 1.0)

        assert answer().kind == "unchanged", "it has the former law again"
    assert len(loop.stats.swaps) == 2 and loop.stats.swaps[0].reason is None and events.empty()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def test_only_the_newest_of_several_saves_is_swapped_in(
    place: Path, ordinary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtloop.tools.run import watch

    events: queue.Queue[Event] = queue.Queue()
    made = watch.make_revision

    def make(found: Target) -> Any:
        return make_loop(found, "1ms", ordinary, {}, {})

    def make_slowly(*arguments: Any) -> Any:
        revision = made(*arguments)
        if "2.0" in (place / "law.pyx").read_text():
            save(place, ("&self.kp, 1.0", "&self.kp, 3.0"))  # while the former save is compiled
        return revision

    monkeypatch.setattr(watch, "make_revision", make_slowly)
    found, examined = make_revision("law.pyx", BUILD)
    loop = make(found)
    with Watch(loop, found, examined, "law.pyx", BUILD, make, events.put), loop:
        save(place, ("&self.kp, 1.0", "&self.kp, 2.0"))
        assert events.get(timeout=PATIENCE_S).kind == "swapped"
        assert loop.parameters["kp"] == 3.0
    assert len(loop.stats.swaps) == 1 and events.empty()


def test_a_save_during_the_first_compilation_is_swapped_in(place: Path, ordinary: dict[str, Any]) -> None:
    events: queue.Queue[Event] = queue.Queue()
    make = partial(make_loop, period="1ms", settings=ordinary, defaults={}, given={})
    files = SavedFiles(place / "law.pyx")
    found, examined = make_revision("law.pyx", BUILD)
    save(place, ("&self.kp, 1.0", "&self.kp, 3.0"))
    loop = make(found)
    with Watch(loop, found, examined, "law.pyx", BUILD, make, events.put, files=files), loop:
        event = events.get(timeout=PATIENCE_S)
        assert event.kind == "swapped" and loop.parameters["kp"] == 3.0


def test_the_casts_that_are_checked_are_those_that_were_compiled(place: Path, ordinary: dict[str, Any]) -> None:
    """A save between the compilation and the swap, which no longer has the cast, does not let the compiled one pass."""
    events: queue.Queue[Event] = queue.Queue()
    made: list[Any] = []

    def make(found: Target) -> Any:
        made.append(make_loop(found, "1ms", ordinary, {}, {}))
        if len(made) == 2:
            save(place, ("self.steps = (<Law>former).steps", "pass"))
        return made[-1]

    found, examined = make_revision("law.pyx", BUILD)
    loop = make(found)
    with Watch(loop, found, examined, "law.pyx", BUILD, make, events.put), loop:
        save(place, ("cdef readonly double integral", "cdef readonly double offset, integral"))
        event = events.get(timeout=PATIENCE_S)
        assert event.kind == "swapped", event.text
    assert len(made) == 3 and len(loop.stats.swaps) == 1 and events.empty()


def test_a_file_that_an_editor_removes_while_it_is_swapped_in_is_awaited(place: Path, ordinary: dict[str, Any]) -> None:
    events: queue.Queue[Event] = queue.Queue()
    made: list[Any] = []

    def make(found: Target) -> Any:
        made.append(make_loop(found, "1ms", ordinary, {}, {}))
        if len(made) == 2:
            (place / "law.pyx").unlink()
        return made[-1]

    found, examined = make_revision("law.pyx", BUILD)
    loop = make(found)
    with Watch(loop, found, examined, "law.pyx", BUILD, make, events.put), loop:
        save(place, ("&self.kp, 1.0", "&self.kp, 3.0"))
        assert events.get(timeout=PATIENCE_S).kind == "gone"
        save(place, ("&self.kp, 1.0", "&self.kp, 3.0"))
        assert events.get(timeout=PATIENCE_S).kind == "swapped" and loop.parameters["kp"] == 3.0
    assert len(made) == 3 and len(loop.stats.swaps) == 1


def test_the_command_prints_a_line_for_each_save(place: Path) -> None:
    command = [
        sys.executable, "-m", "rtloop", "run", "law.pyx", "--watch", "--json", "--policy", "other", "--lock", "off",
        "-p", "dma_latency=none",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = _read_lines(process)
            name = wait_for_name(process.pid)
            assert name
            save(place, ("&self.kp, 1.0", "&self.kp, 3.0"))
            swapped = json.loads(lines())
            assert (swapped["command"], swapped["event"], swapped["parameters"]) == ("run", "swapped", {"kp": 3.0})
            process.send_signal(signal.SIGTERM)
            document = json.loads(lines())
        finally:
            process.kill()
    assert document["outcome"] == "interrupted"
    assert [swap["cycle"] for swap in document["stats"]["swaps"]] == [swapped["cycle"]]


def _read_lines(process: subprocess.Popen[str]) -> Callable[[], str]:
    """Read lines in a thread, so that a line that never comes fails the test."""
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True).start()  # type: ignore[func-returns-value, union-attr]
    return lambda: lines.get(timeout=PATIENCE_S)


def wait_for_name(process: int) -> str:
    """Wait until the process runs a loop; returns its name."""
    from rtloop.telemetry.attach import running

    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for loop in running():
            with loop:
                if loop.pid == process:
                    return str(loop.name)
        time.sleep(0.05)
    return ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["law.pyx", "--watch", "--simulate", "--cycles", "3"], "--watch and --simulate exclude each other"),
        (["law.py", "--watch"], "law.py is not a .pyx"),
        (["law.pyx", "--trial", "2s"], "--rehearse and --trial need --watch"),
    ],
)
def test_what_cannot_be_watched_is_refused(arguments: list[str], message: str, capsys: Any) -> None:
    from rtloop.tools.cli import main

    with pytest.raises(SystemExit) as exit_:
        main(["run", *arguments])
    assert exit_.value.code == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_compilers_have_an_ordinary_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    from rtloop.tools.run import watch

    asked: list[Any] = []
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_FIFO)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3})
    monkeypatch.setattr(os, "sched_setscheduler", lambda pid, policy, param: asked.append(policy))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: asked.append(cpus))
    watch._be_ordinary((3,))
    watch._be_ordinary((2, 3))
    watch._be_ordinary("auto")
    assert asked == [os.SCHED_OTHER, {2}, os.SCHED_OTHER, os.SCHED_OTHER, {2, 3}]

"""A process that has loaded Cython makes the same as Cython by itself, and ends with the program or before it."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import rtloop_test_processes as processes

import rtloop
from rtloop.compiler import cython_process, cython_program
from rtloop.compiler.cython_process import CythonProcess, run_cython

PROGRAM = Path(cython_process.__file__).with_name("cython_program.py")
SERVO = """\
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef class Servo(RTLoop):
    cdef public double sum
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.sum += 1.5
        helper()
        return RT_CONTINUE

cdef void helper() nogil:
    pass
"""


started: list[CythonProcess] = []


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    for process in started:
        process.close()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> CythonProcess:
    """One process for all tests, as it takes seconds to load Cython on a busy machine."""
    monkeypatch.setattr(cython_process, "_PROGRAM", PROGRAM)
    if not started or started[-1]._is_closed:
        started.append(CythonProcess())
    return started[-1]


def run_in(folder: Path, *arguments: str) -> tuple[int, str, str, bytes]:
    """Compile servo.pyx; return the exit code, the output and the C."""
    target = folder / "servo.c"
    target.unlink(missing_ok=True)
    done = run_cython(["-3", "-I", rtloop.get_include(), *arguments, "servo.pyx"], folder, {**os.environ})
    return done.returncode, done.stdout, done.stderr, target.read_bytes() if target.exists() else b""


def test_it_makes_and_says_the_same(tmp_path: Path, loaded: CythonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise AssertionError("Cython was started")

    for text, arguments, code in (
        (SERVO, ("--line-directives", "-X", "boundscheck=False"), 0),
        (SERVO.replace("1.5", "nothing"), (), 1),
        (SERVO, ("--no-such-option",), 2),
        (SERVO, (), 0),
    ):
        (tmp_path / "servo.pyx").write_text(text)
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "run", fail)
            warm = run_in(tmp_path, *arguments)
        with monkeypatch.context() as patch:
            patch.setattr(cython_process, "_loaded", [])
            assert warm == run_in(tmp_path, *arguments)
        assert warm[0] == code and warm[2], "the hint, or the error"


def test_what_it_cannot_do_like_a_new_process_is_left_to_one(
    tmp_path: Path, loaded: CythonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**more: str) -> Any:
        return loaded.run(["--version"], tmp_path, {**os.environ, **more})

    assert run().returncode == 0
    assert run(PYTHONPATH="/elsewhere") is None
    child = os.fork()
    if child == 0:
        os._exit(run() is not None)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "3.99")  # another one was installed
        assert run() is None
    assert run().returncode == 0


def test_an_answer_after_ctrl_c_is_not_taken_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection that was interrupted is closed, so that the process ends; a notebook starts another."""
    from rtloop.notebook import magic

    interrupted = CythonProcess()  # a program that is missing, which is not needed here
    ours, theirs = socket.socketpair()
    with theirs:
        interrupted._disconnect()
        interrupted._connection, interrupted._version = ours, version("Cython")

        def interrupt(connection: socket.socket) -> None:
            cython_program.send(theirs, {"code": 1, "stdout": "", "stderr": "of the first order"})
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(cython_process, "receive", interrupt)
            interrupted.run(["--version"], tmp_path, {**os.environ})
        assert interrupted.run(["--version"], tmp_path, {**os.environ}) is None
        assert not interrupted.is_running
        monkeypatch.setattr(magic, "_cython", interrupted)
        magic._keep_cython_loaded()
        later = magic._cython
        assert later is not None and later is not interrupted
        atexit.unregister(later.close)
        later.close()
    interrupted.close()


def test_one_that_has_not_started_or_was_killed_is_none(tmp_path: Path) -> None:
    process = CythonProcess()  # a program that is missing
    try:
        assert process.run(["--version"], tmp_path, {**os.environ}) is None
        assert run_cython(["--version"], tmp_path, {**os.environ}).returncode == 0
    finally:
        process.close()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def compiling(folder: Path) -> list[int]:
    """Return the processes that compile in a folder."""
    here = [number for number in processes.process_ids() if processes.folder(number) == str(folder)]
    return [number for number in here if "cython_program" in processes.read(number, "cmdline")]


def test_its_end_ends_a_compilation(tmp_path: Path, loaded: CythonProcess) -> None:
    os.mkfifo(tmp_path / "wait.pxi")  # Cython waits there for a writer
    (tmp_path / "servo.pyx").write_text('include "wait.pxi"\n')
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run_in(tmp_path)))
    thread.start()
    wait_until(lambda: bool(compiling(tmp_path)))
    (busy,) = compiling(tmp_path)
    assert loaded.run(["--version"], tmp_path, {**os.environ}) is None, "it does one thing at a time"
    loaded.close()
    loaded.close()
    thread.join(60)
    assert found[0][:3] == (1, "", "the compilation was ended")
    wait_until(lambda: not processes.is_alive(busy))


def test_it_ends_with_the_program(tmp_path: Path) -> None:
    """It imports no module of the folder in which the program was started, although a PYTHONPATH names that."""
    (tmp_path / "Cython.py").write_text("raise SystemExit('imported')")
    os.mkfifo(tmp_path / "wait.pxi")
    (tmp_path / "servo.pyx").write_text('include "wait.pxi"\n')
    program = (
        "import os, sys\n"
        "from rtloop.compiler.cython_process import CythonProcess\n"
        "loaded = CythonProcess()\n"
        "print(loaded._process.pid, flush=True)\n"
        "loaded.run(['-3', 'servo.pyx'], sys.argv[1], {**os.environ})\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": f".:{os.environ.get('PYTHONPATH', '')}", "LC_ALL": "C.UTF-8"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=env) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        wait_until(lambda: bool(compiling(tmp_path)))
        (busy,) = compiling(tmp_path)
        assert "LC_ALL=C" in processes.read(number, "environ").split("\0")
        process.kill()
    wait_until(lambda: not processes.is_alive(number) and not processes.is_alive(busy))

"""The tests' Cython that is loaded once makes the same as Cython by itself, and leaves nothing behind."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import rtloop_test_processes as processes

import rtloop

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


def cython(folder: Path, *arguments: str, **more: object) -> tuple[int, bytes, bytes, bytes]:
    """Compile servo.pyx; returns the exit code, what was printed, and the C."""
    target = folder / "servo.c"
    target.unlink(missing_ok=True)
    command = [sys.executable, "-P", "-m", "cython", "-3", "-I", rtloop.get_include(), *arguments, "servo.pyx"]
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=100, **more)  # type: ignore[call-overload]
    return done.returncode, done.stdout, done.stderr, target.read_bytes() if target.exists() else b""


def cold() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RTLOOP_TEST_CYTHON")}


@pytest.mark.parametrize(
    ("text", "arguments", "code"),
    [
        (SERVO, ("--line-directives", "-X", "boundscheck=False"), 0),
        (SERVO.replace("1.5", "nothing"), (), 1),
        (SERVO, ("--no-such-option",), 2),
    ],
    ids=["right", "wrong", "command line"],
)
def test_it_makes_and_says_the_same(tmp_path: Path, text: str, arguments: tuple[str, ...], code: int) -> None:
    (tmp_path / "servo.pyx").write_text(text)
    warm = cython(tmp_path, *arguments)
    assert warm == cython(tmp_path, *arguments, env=cold())
    assert warm[0] == code
    assert warm[2], "the hint, or the error"


def was_warm(folder: Path, **more: object) -> bool:
    """Tell whether a module was compiled by the process that has loaded Cython: this one has then not read it."""
    (folder / "servo.pyx").write_text(SERVO)
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print(sum(name.startswith('Cython.') for name in sys.modules)))\n"
        "sys.argv = ['cython', '-3', '-I', sys.argv[1], 'servo.pyx']\n"
        "runpy.run_module('cython', run_name='__main__', alter_sys=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, rtloop.get_include()],
        cwd=folder, capture_output=True, text=True, check=True, timeout=100, **more,
    )  # type: ignore[call-overload]  # fmt: skip
    assert (folder / "servo.c").stat().st_size > 10000
    return int(done.stdout.split()[-1]) == 0


def test_a_process_that_is_unlike_it_loads_cython_by_itself(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert was_warm(tmp_path)
    assert not was_warm(tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, limit[1])))
    assert not was_warm(tmp_path, env={**os.environ, "RTLOOP_TEST_CYTHON": str(tmp_path / "nobody")})
    assert not was_warm(tmp_path, env=cold())


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_ends_with_the_process_of_the_tests(support: Callable[[str], ModuleType], tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "100"]) as tests:
        address = Path(support("warm_cython").start(tests.pid))
        assert address.is_socket()
        tests.kill()
    wait_until(lambda: not address.parent.exists())


def test_what_is_killed_compiles_no_longer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "wait.pxi")  # Cython waits there for somebody who writes
    (tmp_path / "servo.pyx").write_text('include "wait.pxi"\n')
    command = [sys.executable, "-m", "cython", "-3", "servo.pyx"]

    def children() -> set[int]:
        compiling = [
            process for process in processes.process_ids() if "warm_cython" in processes.read(process, "cmdline")
        ]
        here = [process for process in compiling if processes.folder(process) == str(tmp_path)]
        return {process for process in here if processes.is_alive(process)}

    with subprocess.Popen(command, cwd=tmp_path) as client:
        wait_until(lambda: bool(children()))
        client.send_signal(signal.SIGKILL)
    wait_until(lambda: not children())

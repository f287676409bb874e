"""Rehearsal: a step that is about to replace another runs in virtual time in a process of its own first.

A step that crashes or hangs then ends that process, and not the one whose loop runs. The process is started anew rather
than forked: a fork makes every page of a running loop copy-on-write, and would share its sockets and devices.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.child.carried_error import restore
from rtloop.child.channel import Channel
from rtloop.child.target import MainScript, main_script, pack
from rtloop.errors import RtloopError, SwapError
from rtloop.process.crash_report import read_crash
from rtloop.process.environment import copy_environment
from rtloop.process.interpreter import python, search_path
from rtloop.units import format_duration, parse_duration

if TYPE_CHECKING:
    from rtloop.loop.loop import RTLoop
    from rtloop.process.crash_report import Crash
    from rtloop.settings import Duration

__all__ = ["Order", "Rehearser", "rehearse"]

_CODE = (
    "import sys; sys.path[:] = sys.argv[4:]; from rtloop.simulation.rehearsal_process import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"
)
#: Longest time in which the process starts, on a busy machine.
_START_NS = 120_000_000_000
#: Time for a process that hangs to report where.
_REPORT_MS = 3000
#: Variables that limit the thread pools of libraries: a process with one thread may leave the network.
_POOLS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


class Order(NamedTuple):
    """Message that says what to rehearse.

    Attributes
    ----------
    pickled : bytes
        The function that makes the loops.
    main : MainScript or None
        The script to import first, if the function is in it.
    duration_ns : int
        Virtual time of the rehearsal.
    values : dict
        Parameters that were set while the loop ran.
    """

    pickled: bytes
    main: MainScript | None
    duration_ns: int
    values: dict[str, Any]


def rehearse(
    make: Callable[[], RTLoop | tuple[RTLoop, RTLoop]], duration: Duration = "1s", *, timeout: Duration = "10s"
) -> None:
    """Run a step in virtual time in a process of its own, before it replaces the step of a running loop.

    A step that crashes, hangs or fails there is refused by an exception, with the function and the line if they can be
    found. The running loop is not touched. Then make the step again in this process, and call :meth:`RTLoop.swap`.

    Parameters
    ----------
    make : callable
        Function that another process can import, or a ``functools.partial`` of one: it returns the new loop, or a pair
        ``(former, new)``. ``take_over`` is rehearsed only with a former one, which runs one cycle before it.
    duration : duration
        Virtual time of the rehearsal.
    timeout : duration
        Longest time that the rehearsal may take, from the call of `make` on.

    Raises
    ------
    SwapError
        If the process is killed by a signal, ends, or takes longer than `timeout`; if ``take_over`` refuses; if
        ``step`` returns a negative code; or if a signal of the new step becomes infinite or not a number. Only a
        rehearsal with a former step finds the last of these.
    CallbackError
        If the new loop, rehearsed without a former one, returns a negative code.
    Exception
        Raised there by `make`, or by a step in Python.
    ConfigError
        If another process cannot import `make`.

    Notes
    -----
    The process calls what a run in virtual time calls: the constructor, ``setup``, ``enter``, ``take_over``, ``step``,
    ``overrun`` and ``leave``. ``wait`` is not called. The process inherits no open file or socket, and gets a network
    of its own without any connection if the kernel allows that; with a user namespace if it has no privilege. It can
    open devices, files and Unix sockets like any process, so a step that does so must not while the environment
    variable ``RTLOOP_REHEARSAL`` is set. It has an ordinary priority. Virtual time shows no overrun, and a step
    without its plant sees other inputs than the real one: use ``trial`` of :meth:`RTLoop.swap` as well.
    """
    duration_ns, timeout_ns = parse_duration(duration, "duration", minimum=1), parse_duration(timeout, "timeout")
    pickled = pack(make, "make")
    rehearser = Rehearser()
    try:
        rehearser.rehearse(
            Order(pickled, main_script() if b"__main__" in pickled else None, duration_ns, {}), timeout_ns
        )
    finally:
        rehearser.close()


class Rehearser:
    """Process that has loaded rtloop, and waits for the one step that it rehearses.

    Parameters
    ----------
    modules : sequence of str
        Further modules to import meanwhile.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        try:
            program = python()
        except RtloopError as error:
            raise SwapError(f"no process can be started for a rehearsal: {error}") from None
        ours, theirs = socket.socketpair()
        self._crashes, crashes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        numbers = theirs.fileno(), crashes
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        try:
            self._process = subprocess.Popen(
                [program, *flags, "-c", _CODE, *map(str, numbers), ",".join(modules), *search_path()],
                env=copy_environment(RTLOOP_REHEARSAL="1", **dict.fromkeys(_POOLS, "1")),
                stdin=subprocess.DEVNULL, stdout=2, pass_fds=numbers,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            os.close(self._crashes)
            raise SwapError(f"no process can be started for a rehearsal: {program!r}: {error.strerror}") from None
        finally:
            theirs.close()
            os.close(crashes)
        self._channel = Channel(ours)

    def kill(self) -> None:
        """Kill the process, so that a rehearsal that another thread waits for ends. Any thread."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process. A second call does nothing."""
        if self._crashes < 0:
            return
        self._process.kill()
        self._process.wait()
        self._channel.close()
        os.close(self._crashes)
        self._crashes = -1

    def rehearse(self, order: Order, timeout_ns: int) -> list[str]:
        """Rehearse a step, once. Returns what the user should know about the rehearsal.

        Raises
        ------
        SwapError
            As :func:`rehearse`.
        """
        kind, notes = self._await(_START_NS)
        if kind != "awake":
            raise SwapError("the process of the rehearsal has not started: see its output on stderr")
        if not self._channel.send("order", order):
            raise self._died(None)
        kind, content = self._await(timeout_ns)
        if kind == "failed":
            raise restore(content, "rehearsal")
        if kind == "passed":
            return [*notes, *content]
        if kind == "":
            raise self._hung(timeout_ns)
        raise self._died(content)

    def _await(self, timeout_ns: int) -> tuple[str, Any]:
        """Wait for a message, or a crash: ``("crash", Crash or None)``; ``("", None)`` at the end of the time."""
        deadline = time.monotonic_ns() + timeout_ns
        waiting = select.poll()
        waiting.register(self._channel.fileno(), select.POLLIN)
        waiting.register(self._crashes, select.POLLIN)
        while (left := deadline - time.monotonic_ns()) > 0:
            waiting.poll(-(-left // 1_000_000))
            crash = read_crash(self._crashes)
            if crash is not None:
                return "crash", crash
            try:
                message = self._channel.receive()
            except EOFError:
                return "crash", None
            if message is not None:
                return message
        return "", None

    def _hung(self, timeout_ns: int) -> SwapError:
        self._process.send_signal(signal.SIGABRT)
        waiting = select.poll()
        waiting.register(self._crashes, select.POLLIN)
        waiting.poll(_REPORT_MS)
        crash = read_crash(self._crashes)
        took = format_duration(timeout_ns)
        return SwapError(f"the rehearsal of the new step has not ended within {took}{self._place(crash)}")

    def _died(self, crash: Crash | None) -> SwapError:
        if crash is None:
            code = self._process.wait()
            name = _name_of(-code) if code < 0 else ""
            how = f"was ended by {name}" if name else f"ended with exit code {code}"
            return SwapError(f"the process of the rehearsal {how}")
        access = f" at the address {crash.address:#x}" if crash.number in (signal.SIGSEGV, signal.SIGBUS) else ""
        return SwapError(
            f"the new step has crashed in its rehearsal: {_name_of(crash.number)}{access}{self._place(crash)}"
        )

    def _place(self, crash: Crash | None) -> str:
        """Return the function and the line in which the process is, which has crashed and waits; empty if unknown."""
        if crash is None or not crash.pc:
            return ""
        from rtloop.guard.symbols import lines_of, place_of

        place = place_of(crash.pc, process=self._process.pid)
        if not place.module.startswith("/"):
            return ""
        line = lines_of([place]).get(crash.pc)
        if line is None:
            return f", in {place}"
        path = Path(line[0])
        source = path.with_suffix(".pyx")  # Cython's line directives have the number of the .pyx, and no name
        return f", in {place} ({source.name if source.is_file() else path.name}:{line[1]})"


def _name_of(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"

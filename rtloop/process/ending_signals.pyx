"""Signals that end the process: all loops end and leave() runs before the signal takes effect.

A handler in C notes the signal and wakes a thread, which does the rest. Neither needs the main thread, which may be in
a main loop outside of Python and run no Python handler for a long time.
"""

from rtloop.headers.ending_signals cimport (
    rt_ending_add_flag,
    rt_ending_ask,
    rt_ending_ask_again,
    rt_ending_asker_t,
    rt_ending_clear,
    rt_ending_count,
    rt_ending_open,
    rt_ending_pass_on,
    rt_ending_remove_flag,
    rt_ending_set_timer,
    rt_ending_take,
    rt_ending_take_course,
    rt_ending_wait,
    rt_ending_withdraw,
)

import _signal
import os
import signal
import sys
import threading
import time
from contextlib import suppress

from rtloop.errors import ConfigError
from rtloop.process import exit_hooks
from rtloop.process.nap import nap
from rtloop.process.occasion import Occasion
from rtloop.process.signal_shield import block_signals, give_up_policy, shielded, start_thread
from rtloop.units import as_index, format_duration, show

# Signals that cannot be caught, that a fault of the program raises, or whose default action does not end a process.
_UNSUITABLE = frozenset(
    {"SIGKILL", "SIGSTOP", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGABRT", "SIGCHLD",
     "SIGCONT", "SIGURG", "SIGWINCH", "SIGTSTP", "SIGTTIN", "SIGTTOU"}
)
_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Handled while a loop runs, and in a with block, if they have their default action, which ends the process. SIGINT has
# it only if the program has set it, because Python installs a handler, which raises KeyboardInterrupt.
# Plain ints: Python code computes the hash of a member of an enumeration, and runs handlers of signals meanwhile.
ENDING = tuple(int(number) for number in signal.Signals if number.name not in {*_UNSUITABLE, "SIGRTMIN", "SIGRTMAX"})
_SIGINT = int(signal.SIGINT)
_STACK_BYTES = 512 << 10
_NAP_S = 0.01

_runs = {}  # of each loop that runs, by the address of its flag: its thread and the signals armed for it
_fd = -1
_is_opening = False
_beginning = None  # an Occasion, once the thread is about to sleep
_has_reported = False
_taken = 0  # the signal that is ending the process now


cdef class Armed:
    """Signals that are handled from :func:`arm` until :func:`disarm`, or until this object is gone."""

    cdef rt_ending_asker_t asker

    def __dealloc__(self):
        rt_ending_withdraw(&self.asker)


class stop_on_signals:
    """stop_on_signals(*signals)

    End all loops of the process before a signal ends it, so that ``leave()`` runs.

    It is for programs with their own main loop, such as asyncio, Qt or a server. A loop that runs does the same by
    itself for SIGTERM and every other signal whose default action ends the process, and in ``run()``, ``join()`` and
    ``with loop:`` Ctrl-C ends it and becomes a KeyboardInterrupt. This context manager adds SIGINT, and also acts while
    no loop runs.

    When one of the signals comes, all loops are asked to stop, and each gets up to its `leave_timeout`. Recorders and
    bridges are closed, and a line on stderr reports how long that took. Then the signal takes effect: the process ends
    with the exit status of the signal, or SIGINT becomes a KeyboardInterrupt on the main thread. A separate thread does
    all this, so the main thread need not run Python code.

    A signal that has a handler or is ignored (nohup) is left alone, also if that is set inside the block. Once it has
    its default action again, it is handled within 10 ms, and SIGINT within 0.1 s once it has a handler of Python's own:
    the one that raises KeyboardInterrupt, or that of ``asyncio.run``. In a forked child the block has no effect.

    Parameters
    ----------
    *signals : int
        Signals to handle; by default SIGINT, SIGTERM, SIGHUP and SIGQUIT.

    Raises
    ------
    ConfigError
        For a signal that cannot be caught, or whose default action does not end a process.

    Examples
    --------
    ::

        with rtloop.stop_on_signals():
            loop.start()
            asyncio.run(main())

    Source: signal(7), signal-safety(7).
    """

    def __init__(self, *signals):
        self._numbers = tuple(_check(number) for number in signals) or _ALL
        self._armed = []

    def __enter__(self):
        self._armed.append(arm(self._numbers))
        return self

    def __exit__(self, kind, value, traceback):
        disarm(self._armed.pop())


def _check(number):
    value = as_index(number)
    name = ""
    with suppress(ValueError, TypeError):
        name = signal.Signals(value).name
    if not name or name in _UNSUITABLE:
        known = f" ({name})" if name else ""
        raise ConfigError(
            f"signal {show(number)}{known} cannot be handled: give signals that can be caught and whose default action "
            "ends the process, such as signal.SIGTERM"
        )
    return value


def _is_pythons(handler):
    """Return True for Python's own handlers of SIGINT, which make a KeyboardInterrupt of it."""
    if handler is signal.default_int_handler:
        return True
    called = getattr(handler, "func", None)  # asyncio's is a functools.partial
    name = getattr(called, "__qualname__", None)
    return name == "Runner._on_sigint" and getattr(called, "__module__", None) == "asyncio.runners"


def arm_wait():
    """Call :func:`arm` for a wait for loops.

    On another thread than the main one, no KeyboardInterrupt can end the wait. A SIGINT with Python's own handler
    therefore ends the loops first, except in an interactive session, where Ctrl-C cancels what was typed.
    """
    return arm(None, not hasattr(sys, "ps1") and threading.main_thread().ident != threading.get_ident())


def arm(numbers=None, takes_pythons=None):
    """Make loops end before signals end the process. Returns the argument for :func:`disarm`.

    A signal that has a handler or is ignored is left alone until it has its default action again. If no thread can be
    created, all signals are left alone.

    Parameters
    ----------
    numbers : sequence of int, optional
        The signals to handle; by default all of `ENDING`.
    takes_pythons : bool, optional
        Handle a SIGINT that has Python's own handler as well; by default if `numbers` are given.
    """
    cdef Armed armed = Armed()
    asked = set(ENDING if numbers is None else numbers)
    armed.asker.asked = sum(1 << (number - 1) for number in asked)
    armed.asker.takes_pythons = numbers is not None if takes_pythons is None else takes_pythons
    if sys.is_finalizing() or not _has_thread():
        return armed
    rt_ending_ask(&armed.asker, _SIGINT in asked and _has_pythons())
    _await(_beginning)
    return armed


def _await(beginning):
    """Wait until the thread sleeps.

    A thread that is still beginning competes for the GIL, and Python lets its main thread wait for that just before a
    blocking call, where it no longer sees a signal that comes: its handler would run after the call.
    """
    while beginning is not None and beginning is _beginning and not beginning.wait(_NAP_S):
        pass  # until it sleeps, or there is another one after a fork


def _has_pythons():
    return _is_pythons(_signal.getsignal(_SIGINT))


def disarm(Armed armed not None):
    """Undo :func:`arm`. While a signal is ending the process this waits for the end.

    Two kinds of threads do not wait, because the signal's thread waits for them: the one that makes the calls at the
    end, and a loop's own, which has leave() to call.
    """
    is_needed = exit_hooks.is_making_calls() or _is_loops_thread()
    if not is_needed:
        await_end()
    rt_ending_withdraw(&armed.asker)
    if not is_needed:
        await_end()  # a signal may have come just before


def _is_loops_thread():
    me = threading.get_native_id()
    return any(tid == me for tid, _ in list(_runs.values()))  # a copy: other threads start and end loops meanwhile


def disarm_at_once(Armed armed not None):
    """Undo :func:`arm`, without waiting for a signal that has already arrived."""
    rt_ending_withdraw(&armed.asker)


def await_end():
    """Wait, if a signal has come, until it takes effect, so that the process does not continue meanwhile."""
    while _taken or _pending():
        nap(_NAP_S)


def guard_run(address, bits, tid):
    """Make a loop end before a signal ends the process, until :func:`release_run`.

    The handler itself sets `bits` of the 32-bit word at `address`. `tid` is the number of the loop's thread.
    """
    _runs[address] = tid, arm()
    rt_ending_add_flag(address, bits)


def release_run(address):
    """Undo :func:`guard_run`, without waiting for a signal that has come. Then the word may be unmapped.

    Returns True if a signal has come, which has told the loop to end.
    """
    rt_ending_remove_flag(address)
    _, armed = _runs.pop(address, (0, None))
    has_come = bool(_pending())
    if armed is not None:
        disarm_at_once(armed)
    return has_come


def _pending():
    """Return the signals that have come."""
    return [number for number in range(1, signal.NSIG) if rt_ending_count(number)] if _fd >= 0 else []


def report_ignored():
    """Report, once, that Ctrl-C has no effect, because the process has inherited SIGINT as ignored."""
    global _has_reported
    if not _has_reported and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        _has_reported = True
        with suppress(OSError):
            os.write(2, b"rtloop: SIGINT is ignored in this process, as in what a shell starts with &: Ctrl-C stops no "
                        b"loop, SIGTERM does\n")


def _has_thread():
    """Start the thread if there is none. Returns True if there is one."""
    if _fd < 0:
        shielded(_start)  # there it is started once, and neither handlers nor locks of the program are in the way
    return _fd >= 0 or _is_opening


def _start():
    global _beginning, _fd, _is_opening
    if _fd >= 0 or _is_opening:  # a finalizer, run by the collector of garbage, may ask for it meanwhile
        return
    _is_opening = True
    try:
        beginning = Occasion()
        fd = rt_ending_open()
        if fd < 0:
            return
        try:
            start_thread(_work, (fd, beginning), _STACK_BYTES, "rtloop-signals")
        except RuntimeError:
            os.close(fd)
            return
        _beginning, _fd = beginning, fd
    finally:
        _is_opening = False


def _work(fd, beginning):
    try:
        give_up_policy()
        block_signals()
    finally:
        beginning.set()
    cdef int descriptor = fd, number
    while True:
        with nogil:
            number = rt_ending_wait(descriptor)
        if number:
            # Handled again, after the program has given it its default action, or Python's own handler.
            rt_ending_ask_again(number, number == _SIGINT and _has_pythons())
            continue
        os.read(fd, 8)
        came = _pending()
        if came:
            _end(next((number for number in came if number != signal.SIGINT), came[0]))


def _end(number):
    """End all loops, report it, and let the signal take effect."""
    global _taken
    _taken = number
    rt_ending_take(True)
    for came in _pending():
        rt_ending_set_timer(came, 0)
    name = signal.Signals(number).name
    begin = time.monotonic_ns()
    try:
        said = exit_hooks.make_calls(f"{name} has come")
    except BaseException as error:  # the signal takes effect even if a call raises
        said = [repr(error)]
    if said:
        further = sum(rt_ending_count(n) for n in _pending()) - 1
        more = f"; {further} more signal{'s' * (further != 1)} arrived" if further > 0 else ""
        took = format_duration(time.monotonic_ns() - begin)
        with suppress(OSError):
            os.write(2, f"rtloop: {name}: {', '.join(said)} within {took}{more}\n".encode(errors="replace"))
    if number != signal.SIGINT or signal.getsignal(number) is signal.SIG_DFL:
        rt_ending_take_course(number)
    # Python's own handler of SIGINT raises KeyboardInterrupt on the main thread.
    exit_hooks.go_on()
    rt_ending_pass_on(number, threading.main_thread().ident)
    rt_ending_take(False)
    _taken = 0


def _reset_after_fork():
    global _beginning, _fd, _is_opening, _taken
    _runs.clear()
    if _fd >= 0:
        with suppress(OSError):
            os.close(_fd)
    _fd, _taken, _beginning, _is_opening = -1, 0, None, False
    rt_ending_take(False)
    rt_ending_clear()


os.register_at_fork(after_in_child=_reset_after_fork)

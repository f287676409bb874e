"""Keeper: a thread that acquires and releases resources, so that no signal handler can interrupt that half-way.

Python runs signal handlers on the main thread, between any two instructions. Work that must not be interrupted is
handed to the keeper, whose thread runs no handlers. The caller waits, and gets an exception of a handler when the work
is done. The keeper also notices loops that have ended, and releases their resources.
"""

from cpython.exc cimport PyErr_CheckSignals

from rtloop._os cimport PR_SET_NAME, prctl

from rtloop._python cimport PyObject_Call, PyThread_get_stacksize, PyThread_set_stacksize

import _thread
import atexit
import functools
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress


# Enough for its work, and small, because all memory may be locked.
_STACK_BYTES = 512 << 10
_LOOK_S = 0.1
# Interval at which a waiting caller checks that the keeper still exists.
_LONG_S = 1.0
# Time in which an idle keeper begins a call on a busy machine, and interval at which an impatient caller looks.
_IDLE_PATIENCE_S = 2.0
_GLANCE_S = 0.01
# Interval at which the keeper checks whether the thread that holds a lock waits for the keeper.
_LOCK_S = 0.001

# Longest wait at the end of the interpreter for threads that were started here.
_REST_S = 1.0

_jobs = None
_pid = 0
_ident = 0
_is_busy = False  # whether the keeper is making a call
_numbers = set()  # threads that were started here, by their numbers in the kernel
_waiting = []  # threads that wait for the keeper, each as often as it does
_FAULTS = frozenset({
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT
})
# Functions to call every _LOOK_S while any of them returns True; they find loops that have ended.
_looks = []


class _Job:
    """Call for the keeper, made on the CPUs of its caller, and its result."""

    __slots__ = ("cpus", "done", "error", "function", "is_begun", "result")

    def __init__(self, function):
        self.function = function
        self.is_begun = False
        self.cpus = _mask()
        self.result = self.error = None
        self.done = _thread.allocate_lock()
        self.done.acquire()


def _mask():
    """Return the CPUs of the calling thread, None if a filter forbids the question."""
    try:
        return os.sched_getaffinity(0)
    except OSError:
        return None


def _keep(jobs):
    global _pid
    try:
        _work(jobs)
    finally:
        _pid = 0  # the next caller starts another keeper


def _work(jobs):
    global _ident, _is_busy
    _ident = _thread.get_ident()
    block_signals()
    give_up_policy()
    while True:
        is_needed = False
        for look in list(_looks):
            try:
                is_needed = look() or is_needed
            except Exception:
                is_needed = True
        try:
            job = jobs.get(timeout=_LOOK_S if is_needed else None)
        except queue.Empty:
            continue
        try:
            job.is_begun = _is_busy = True
            if job.cpus is not None and _mask() != job.cpus:
                with suppress(OSError):  # a filter
                    os.sched_setaffinity(0, job.cpus)  # a loop's thread that the job creates inherits them
            job.result = job.function()
        except BaseException as error:
            job.error = error
        finally:
            _is_busy = False
            job.done.release()
        del job


def _start():
    """Start the keeper if there is none, as in a forked child. Returns its queue, None if no thread can be created."""
    if _pid == os.getpid():
        return _jobs
    global _jobs, _pid
    jobs = queue.SimpleQueue()
    call = _prepare(_keep, (jobs,), "rtloop-keeper")
    with _starting:
        if _pid == os.getpid():  # another thread has just started it, or a finalizer
            return _jobs
        try:
            # Not threading.Thread, whose Python code a signal handler could interrupt before the queue is stored.
            _start_thread(call, _STACK_BYTES)
        except RuntimeError:
            return None  # the interpreter is about to end
        _jobs, _pid = jobs, os.getpid()
        return jobs


def _prepare(function, arguments, name):
    """Return the arguments of start_new_thread, so that nothing is left to allocate when it is called."""
    return _begin, (function, arguments, name.encode())


cdef _start_thread(tuple call, size_t stack_bytes):
    # The size is that of all threads that this process starts: two that changed it at once would leave a wrong one.
    # No Python code runs in between, unless the program has an audit hook: not even a collection of garbage does.
    cdef size_t former = PyThread_get_stacksize()
    if PyThread_set_stacksize(stack_bytes):
        raise ValueError(f"no stack of {stack_bytes} bytes is possible")
    try:
        PyObject_Call(_thread.start_new_thread, call, NULL)
    finally:
        PyThread_set_stacksize(former)


def _begin(function, arguments, name):
    prctl(PR_SET_NAME, <char *>name)
    _numbers.difference_update([number for number in list(_numbers) if not _state(number)])
    _numbers.add(_thread.get_native_id())
    function(*arguments)


def _state(number):
    """Return the letter of proc(5) for what a thread of this process does; "" if it has ended, or there is no /proc."""
    try:
        with open(f"/proc/self/task/{number}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except OSError:
        return ""


def _rest():
    """Wait until every thread that was started here sleeps or has ended, at the end of the interpreter.

    Since Python 3.13, a thread that has given back the GIL looks at its own state once more, which the end of the
    interpreter has freed if the kernel did not let the thread run meanwhile. A thread that sleeps is past that.
    """
    never, end = _thread.allocate_lock(), time.monotonic() + _REST_S
    never.acquire()
    while any(_state(number) == "R" for number in list(_numbers)) and time.monotonic() < end:
        never.acquire(timeout=_LOCK_S)


# Before any other module of rtloop registers a function, and so called after it.
atexit.register(_rest)


def start_thread(function, arguments, stack_bytes, name):
    """Start a thread with a stack of this size, which the end of the interpreter does not wait for.

    Raises
    ------
    RuntimeError
        If no thread can be created.
    """
    call = _prepare(function, arguments, name)
    with _starting:
        _start_thread(call, stack_bytes)


def give_up_policy():
    """Leave the policy that the calling thread has inherited from a real-time thread, and does not need."""
    with suppress(OSError):  # SCHED_IDLE is not left without a privilege, and a filter may forbid either call
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def become_ordinary():
    """Give up the policy and the CPU affinity that the calling thread has inherited from a real-time thread."""
    give_up_policy()
    with suppress(OSError):  # a cpuset may be shrinking
        os.sched_setaffinity(0, os.sched_getaffinity(os.getpid()))


def block_signals():
    """Leave all signals but faults to the program's own threads, one of which may wait for those that it has blocked.

    Source: sigwait(3), signalfd(2): a signal that any thread has unblocked goes there instead.
    """
    with suppress(OSError):  # a filter
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)


def _reset_after_fork():
    global _is_busy, _starting
    _is_busy = False
    _numbers.clear()
    _waiting[:] = [ident for ident in _waiting if ident == _thread.get_ident()]
    _starting = ShieldedLock()  # another thread may have held it


os.register_at_fork(after_in_child=_reset_after_fork)


def look_with(function):
    """Make the keeper call this function as well, every 0.1 s as long as any such function returns True."""
    _looks.append(function)


def keep_looking():
    """Start the keeper if there is none, and make it call the functions of :func:`look_with`."""
    jobs = None if sys.is_finalizing() else _start()
    if jobs is not None and _thread.get_ident() != _ident:
        jobs.put(_Job(_nothing))


def _nothing():
    pass


cdef bint _is_keeper():
    return _thread.get_ident() == _ident and _pid == os.getpid()


def is_keeper():
    """Return True on the keeper's thread."""
    return _is_keeper()


def waits_for_keeper(ident):
    """Return True if the thread with this number, of the module _thread, waits for the keeper."""
    return ident in _waiting


cdef class ShieldedLock:
    """ShieldedLock()\n--\n
    Reentrant lock of what the keeper and the program's threads share.

    A signal handler may interrupt a thread that holds it, and call the keeper, which may need the lock as well: with
    any other lock each would wait for the other. The keeper is therefore let in while the holder waits for the keeper,
    as the handler itself is. Whoever holds it must expect that a function called from there has ended the run.
    """

    cdef object _lock
    cdef object _holder  # its number, None if there is none
    cdef int _depth, _entered

    def __init__(self):
        self._lock, self._holder, self._depth, self._entered = threading.RLock(), None, 0, 0

    def acquire(self, timeout=None):
        """Acquire the lock, in up to `timeout` seconds. Returns False if it could not be acquired."""
        # From the end of the inner acquire() on, no Python code runs here: the holder is stored before a handler runs.
        if _is_keeper():
            end = None if timeout is None else time.monotonic() + timeout
            while not self._lock.acquire(timeout=_LOCK_S):
                if self._holder in _waiting:
                    self._entered += 1
                    return True
                if end is not None and time.monotonic() > end:
                    return False
        elif not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            return False
        self._depth += 1
        self._holder = _thread.get_ident()
        return True

    def release(self):
        """Release the lock once."""
        if self._entered and _is_keeper():
            self._entered -= 1
            return
        self._depth -= 1
        if self._depth == 0:
            self._holder = None
        self._lock.release()

    def __enter__(self):
        self.acquire()

    def __exit__(self, kind, value, traceback):
        self.release()


# Held while a thread is started.
_starting = ShieldedLock()


def shielded(function, patience_s=None):
    """Call a function on a thread that runs no signal handlers, and return its result.

    Parameters
    ----------
    function : callable
        Called without arguments, on the keeper's thread.
    patience_s : float, optional
        Return None after this time if the keeper is still busy with another call; it calls the function later. An idle
        keeper that the machine does not let run is waited for, up to 2 s.

    Raises
    ------
    BaseException
        The function's exception; otherwise, after it has returned, that of a signal handler.
    """
    if _is_keeper():
        return function()
    jobs = None if sys.is_finalizing() else _start()
    if jobs is None:
        return function()  # at the interpreter's end there are neither threads nor signal handlers
    job = _Job(function)
    _waiting.append(_thread.get_ident())
    try:
        return _wait_for(jobs, job, patience_s)
    finally:
        _waiting.remove(_thread.get_ident())


def _wait_for(jobs, job, patience_s):
    """Hand a job to the keeper, and return its result as :func:`shielded` does."""
    interrupt = None
    jobs.put(job)
    begin = time.monotonic()
    while True:
        try:
            left = _LONG_S
            if patience_s is not None and not job.is_begun:
                left = max(_GLANCE_S, min(_LONG_S, begin + patience_s - time.monotonic()))
            if job.done.acquire(timeout=left):
                break
            waited = time.monotonic() - begin
            if patience_s is not None and not job.is_begun and waited >= patience_s:
                if _is_busy or waited >= _IDLE_PATIENCE_S:
                    break
            if _jobs is not jobs or _pid == 0:  # the keeper has died
                if job.done.acquire(False):
                    break
                return job.function()  # it did not begin this job
        except BaseException as error:
            interrupt = error
    try:
        PyErr_CheckSignals()  # a signal that came just before a wait, which has therefore not interrupted it
    except BaseException as error:
        interrupt = error
    if job.error is not None:
        raise job.error
    if interrupt is not None:
        raise interrupt
    return job.result


def shielded_method(method):
    """Decorate a method: called on the main thread, where signal handlers run, it runs on the keeper's thread.

    Otherwise a handler that interrupts it and needs the same lock would wait forever.
    """
    @functools.wraps(method)
    def call(*arguments, **keywords):
        if _thread.get_ident() != threading.main_thread().ident:
            return method(*arguments, **keywords)
        return shielded(lambda: method(*arguments, **keywords))

    return call

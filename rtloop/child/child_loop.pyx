"""ChildLoop: the PyLoop in the process of a ProcessLoop, with collections of garbage between cycles."""

cimport cython
from cpython.object cimport PyTypeObject
from libc.stdint cimport int64_t, uint32_t

from rtloop._python cimport rt_py_is_ending, rt_set_type_name
from rtloop.functions.python_loop cimport PyLoop
from rtloop.headers.atomics cimport rt_load_acquire, rt_store_release_32
from rtloop.headers.loop cimport (
    RT_REMOTE_NONE, RT_REMOTE_REPORTED, RT_REMOTE_RUNNING, RT_WATCH_LOOKING, RT_WATCH_ON, RT_WATCH_SAFE,
    RT_WATCH_TRIPPED, rt_futex_wait, rt_loop_now, rt_loop_request_slack, rt_loop_t,
)
from rtloop.loop.lifecycle cimport Control
from rtloop.loop.loop cimport Cycle

from rtloop.functions.python_loop import is_gil_enabled
from rtloop.system.grant import Grant

_GRANT = Grant(
    "gil", "taken in every cycle", "taken in every cycle", ok=True, kind="thread",
    detail="the step is Python code in a process of its own: no thread delays it except those that its functions start",
)
_FREE_GRANT = Grant(
    "gil", "none", "none", ok=True, kind="thread",
    detail="the step is Python code in a process of its own, in a free-threaded Python",
)


cdef int64_t _SLICE_NS = 200_000_000


def _gil_grant():
    return _GRANT if is_gil_enabled() else _FREE_GRANT


cdef void _use_slack(void *self) noexcept nogil:
    if not rt_py_is_ending():
        with gil:  # between two cycles of a loop whose step takes the GIL in any case
            (<ChildLoop>self)._collect()


@cython.auto_pickle(False)
@cython.no_gc_clear  # the thread may use the functions until the loop is deallocated
cdef class ChildLoop(PyLoop):
    """ChildLoop(callable, period, *, collector=None, **settings)\n--\n
    PyLoop that has a process to itself.

    Parameters
    ----------
    callable, period, **settings
        As for :class:`~rtloop.PyLoop`.
    collector : SlackCollector, optional
        Collector of garbage that runs between two cycles.
    """

    def __init__(self, callable, *period, collector=None, **settings):
        super().__init__(callable, *period, **settings)
        self._collector = collector
        (<Control>self._control).thread.remarks = (_gil_grant,)
        if collector is not None:
            (<Control>self._control).thread.add_remark(collector.grant)

    cdef int _call(self, const Cycle *c) noexcept:
        cdef int code = PyLoop._call(self, c)
        if self._collector is not None and self._collector.is_due():
            rt_loop_request_slack(<rt_loop_t *>self._rt, _use_slack, <void *>self)
        return code

    cdef void _collect(self) noexcept:
        cdef rt_loop_t *loop = <rt_loop_t *>self._rt
        cdef int64_t slack_ns = loop.schedule.release - rt_loop_now(loop)
        try:
            self._collector.collect(slack_ns)
        except BaseException as error:  # of a callback of the collector
            (<Control>self._control).note_raised(error)
            (<Control>self._control).request_stop()

    def prepare(self, cycles, duration_ns, membership=None):
        """Do all of a start except releasing the thread; :meth:`withdraw` undoes it. Raises what start() raises.

        A loop with a membership belongs to a group of the parent, which shares its state and sets its origin.
        """
        cdef Control control = <Control>self._control
        cdef rt_loop_t *loop
        if membership is not None:
            control.thread.share_state(membership.state_file)
            self._rt = control.thread.rt
        control.claim(membership, None if membership is None else membership.settings)
        try:
            control.prepare(self, cycles, duration_ns)
        except BaseException:
            control.withdraw()
            raise
        if membership is not None:
            loop = <rt_loop_t *>self._rt
            loop.group.failure_fd, loop.group.remote = membership.failure_file, RT_REMOTE_RUNNING

    def note_reported(self):
        """Note that the parent has been sent the end of the run, so that the end of this process is no failure."""
        cdef rt_loop_t *loop = <rt_loop_t *>self._rt
        if loop.group.remote != RT_REMOTE_NONE:
            rt_store_release_32(&loop.group.remote, RT_REMOTE_REPORTED)

    def await_trip(self):
        """Wait until the group's watchdog finds the loop stuck. Returns False if it ends, or there is none."""
        cdef rt_loop_t *loop = <rt_loop_t *>self._rt
        cdef uint32_t now
        with nogil:
            now = rt_load_acquire(&loop.watch)
            # RT_WATCH_SAFE means that the watchdog's record is complete. The end of the watchdog does not wake this
            # thread, hence the timeout.
            while now == RT_WATCH_ON or now == RT_WATCH_LOOKING or now == RT_WATCH_TRIPPED:
                now = rt_futex_wait(&loop.watch, now, _SLICE_NS)
        return now == RT_WATCH_SAFE

    def is_tripped(self):
        """Return True if the group's watchdog has found the loop stuck."""
        return rt_load_acquire(&(<rt_loop_t *>self._rt).watch) == RT_WATCH_SAFE

    def note_safe(self, int code):
        """Record the result of safe, for the error that the parent raises."""
        (<rt_loop_t *>self._rt).trip.safe_code = code

    def release(self):
        """Let the thread of a prepared start run."""
        (<Control>self._control).release_thread()

    def withdraw(self):
        """Release everything that a prepared start has acquired."""
        (<Control>self._control).withdraw()

    def request_stop(self):
        """Ask the loop to end, without waiting for it."""
        (<Control>self._control).request_stop()


rt_set_type_name(<PyTypeObject *>ChildLoop, b"rtloop.child.child_loop.ChildLoop")

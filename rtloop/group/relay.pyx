"""Relay: thread that notifies the loops of a group of failures in other processes, without the GIL."""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free

from rtloop._os cimport POLLIN, poll, pollfd
from rtloop.headers.atomics cimport rt_load_acquire
from rtloop.headers.loop cimport RT_REMOTE_REPORTED, rt_futex_wait, rt_loop_notify_siblings, rt_loop_t, rt_watch_finish
from rtloop.loop.thread cimport LoopThread

import os

from rtloop.process.helper_thread import HelperThread

# Pause before another try if the kernel has no memory for poll(2).
cdef enum: _PAUSE_NS = 10_000_000
_STACK_BYTES = 256 << 10


cdef class Relay:
    """Relay(members, priority)

    Thread that waits until a loop in another process fails, or its process ends, and then notifies the others.

    It ends when all of these processes have ended.

    Parameters
    ----------
    members : sequence of ChildMember
        Loops in other processes that have acquired everything and are linked with the others.
    priority : int or None
        SCHED_FIFO priority of the thread, if it may have one, above those of the group's loops; None if they have none.
    """

    # Two for each loop: its failure, and the end of its process. A file that has nothing more to show is -1.
    cdef pollfd *_files
    cdef rt_loop_t **_loops
    cdef int _count
    cdef dict __dict__

    def __cinit__(self, members, priority):
        self._count = len(members)
        self._files = <pollfd *>calloc(2 * len(members), sizeof(pollfd))
        self._loops = <rt_loop_t **>calloc(len(members), sizeof(rt_loop_t *))
        if self._files is NULL or self._loops is NULL:
            raise MemoryError("no memory for a group with loops in other processes")

    def __init__(self, members, priority):
        self._priority, self._opened = priority, []
        self._threads = [member.thread for member in members]  # keeps the states mapped
        try:
            for i, member in enumerate(members):
                files = member.take_files()
                self._opened += [files.failure, files.end]
                self._loops[i] = (<LoopThread>member.thread).rt
                self._files[2 * i].fd, self._files[2 * i].events = files.failure, POLLIN
                self._files[2 * i + 1].fd, self._files[2 * i + 1].events = files.end, files.end_events
            self._thread = HelperThread(self._work, "rtloop-relay", _STACK_BYTES)
        except BaseException:
            self._close()
            raise

    def __dealloc__(self):
        free(self._files)
        free(self._loops)

    def wait(self, timeout_ns):
        """Wait until all of the processes have ended, and the others were notified. Returns True if so."""
        return self._thread.join(timeout_ns / 1e9)

    def _work(self):
        if self._priority is not None:
            try:
                parameters = os.sched_param(self._priority)
                os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, parameters)
            except OSError:
                pass  # the loops were refused theirs as well, and their grants report it
        try:
            with nogil:
                self._notify_all()
        finally:
            self._close()

    cdef void _notify_all(self) noexcept nogil:
        cdef int left = self._count
        cdef int i
        cdef uint32_t never = 0
        while left:
            if poll(self._files, 2 * self._count, -1) < 0:
                if errno != EINTR:
                    rt_futex_wait(&never, 0, _PAUSE_NS)
                continue
            for i in range(self._count):
                if self._files[2 * i].revents:
                    self._files[2 * i].fd = -1
                    rt_loop_notify_siblings(self._loops[i])
                if self._files[2 * i + 1].revents:
                    self._files[2 * i].fd = self._files[2 * i + 1].fd = -1
                    self._note_end(self._loops[i])
                    left -= 1

    cdef void _note_end(self, rt_loop_t *loop) noexcept nogil:
        """Notify the others of the end of a process, unless it has reported the end of its loop."""
        if rt_load_acquire(&loop.group.remote) == RT_REMOTE_REPORTED:
            return
        rt_watch_finish(&loop.watch)  # in the place of the thread, which may have been killed
        rt_loop_notify_siblings(loop)

    def _close(self):
        opened, self._opened = self._opened, []
        for file in opened:
            os.close(file)

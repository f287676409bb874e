"""Crashes of a process that another one has started: where they happened, and what the process may still reach."""

from rtloop._os cimport CLONE_NEWNET, CLONE_NEWUSER, PR_SET_PDEATHSIG, prctl, unshare
from rtloop.headers.ending_signals cimport rt_crash_report_to, rt_crash_t

import os
import signal
from struct import Struct
from typing import NamedTuple

_REPORT = Struct("=QQQ")


class Crash(NamedTuple):
    """Crash of a process.

    Attributes
    ----------
    number : int
        The signal.
    pc : int
        Address of the instruction; 0 if it is not known on this machine.
    address : int
        Address that it has accessed, for SIGSEGV and SIGBUS.
    """

    number: int
    pc: int
    address: int


def report_crashes(int fd):
    """Write each crash of this process, and SIGABRT, to a pipe, and wait to be killed. Call it once.

    Raises
    ------
    OSError
        If the kernel refuses it.
    """
    rc = rt_crash_report_to(fd)
    if rc:
        raise OSError(-rc, os.strerror(-rc))


def read_crash(fd):
    """Return the crash that was written to a pipe, None if there is none."""
    try:
        data = os.read(fd, sizeof(rt_crash_t))
    except BlockingIOError:
        return None
    return Crash(*_REPORT.unpack(data)) if len(data) == sizeof(rt_crash_t) else None


def end_with_parent():
    """Make the kernel kill this process when the thread that has started it ends."""
    prctl(PR_SET_PDEATHSIG, <const char *><size_t>signal.SIGKILL)


def leave_network():
    """Give this process a network of its own, which nothing is connected to. Returns False if the kernel refuses it.

    Without a privilege this needs a user namespace, and a process with one thread.
    """
    return unshare(CLONE_NEWNET) == 0 or unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0

"""The limit on exit latencies of CPU idle states, which a loop holds through ``/dev/cpu_dma_latency`` while it runs."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack
from typing import ClassVar

from rtloop.settings import Settings
from rtloop.system import checks, refusal_cause
from rtloop.system.grant import Grant

__all__ = ["HeldFile", "acquire"]

#: Major number of /dev/cpu_dma_latency (MISC_MAJOR of linux/major.h).
_MISC_MAJOR = 10
_NO_FILE = (errno.EMFILE, errno.ENFILE)


def acquire(settings: Settings, stack: ExitStack) -> tuple[list[Grant], HeldFile | None]:
    """Bound the exit latency of idle states while a file is open (Documentation/power/pm_qos_interface.rst).

    Returns the grant, and the file if it is held.
    """
    if settings.dma_latency_us is None:
        return [], None
    asked = f"{settings.dma_latency_us} us"
    path = "/dev/cpu_dma_latency"
    try:
        held = HeldFile(os.open(path, os.O_RDWR | os.O_CLOEXEC), settings.dma_latency_us)
        stack.callback(held.close)
        if not _is_misc_device(held.device):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        os.write(held.fd, settings.dma_latency_us.to_bytes(4, "little", signed=True))
        granted = held.read()
    except OSError as error:
        cause = checks.device(path, error.errno or errno.EIO)
        found = f"{cause.found}; another file is in its place" if error.errno == errno.ENODEV else cause.found
        # Of the causes that are not the device's own, only a lack of file descriptors is known.
        limit, limit_fix = refusal_cause.explain("open", error.errno or 0) if error.errno in _NO_FILE else ("", "")
        found += limit and f"; {limit.partition('; ')[2]}"
        fix = (limit_fix or cause.fix) + "\nor leave the idle states alone: dma_latency=None"
        return [Grant("dma_latency", asked, "nothing", False, found, fix, error.errno or 0, kind="device")], None
    detail = "the smallest of all requests on this machine, read back from the device"
    is_ok = granted <= settings.dma_latency_us
    return [Grant("dma_latency", asked, f"{granted} us", is_ok, detail, kind="device")], held


def _is_misc_device(status: os.stat_result) -> bool:
    """Return False for another file in its place, such as /dev/null in a container that hides devices."""
    return stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == _MISC_MAJOR


class HeldFile:
    """File that has an effect while it is open; a forked child closes its inherited copy.

    Parameters
    ----------
    fd : int
        The open file.
    asked_us : int
        The limit that the loop has written to it, us.
    """

    _open: ClassVar[set[HeldFile]] = set()

    def __init__(self, fd: int, asked_us: int) -> None:
        self.fd, self.asked_us = fd, asked_us
        self.device = os.fstat(fd)
        self._open.add(self)

    def read(self) -> int:
        """Return the smallest of all requests on this machine, in us."""
        return int.from_bytes(os.pread(self.fd, 4, 0), "little", signed=True)

    def _is_own(self) -> bool:
        """Return False if other code has closed it: a program that becomes a daemon closes all files."""
        try:
            status = os.fstat(self.fd)
        except OSError:
            return False
        return (status.st_ino, status.st_rdev) == (self.device.st_ino, self.device.st_rdev)

    def now(self, start: Grant) -> Grant:
        """Return the grant as it is now: the device is asked, because any code of the process can write to it."""
        if not self._is_own():
            return start._replace(granted="nothing", ok=False, detail="other code has closed the file")
        try:
            granted = self.read()
        except OSError:
            return start
        return start._replace(granted=f"{granted} us", ok=granted <= self.asked_us, detail=start.detail)

    def close(self) -> None:
        """Close the file, unless other code has done so. A second call does nothing."""
        self._open.discard(self)
        if self.fd >= 0 and self._is_own():  # the number may belong to another file by now
            os.close(self.fd)
        self.fd = -1

    @classmethod
    def close_in_child(cls) -> None:
        """Close the copies of all such files in a forked child."""
        for held in list(cls._open):
            held.close()


os.register_at_fork(after_in_child=HeldFile.close_in_child)

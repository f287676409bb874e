"""The limit on exit latencies of CPU idle states, which a loop holds through ``/dev/cpu_dma_latency`` while it runs."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import ExitStack, suppress
from typing import ClassVar

from rtloop.settings import Settings
from rtloop.system import checks
from rtloop.system.grant import Grant

__all__ = ["acquire"]

#: Major number of /dev/cpu_dma_latency (MISC_MAJOR of linux/major.h).
_MISC_MAJOR = 10


def acquire(settings: Settings, stack: ExitStack) -> list[Grant]:
    """Bound the exit latency of idle states while a file is open (Documentation/power/pm_qos_interface.rst)."""
    if settings.dma_latency_us is None:
        return []
    asked = f"{settings.dma_latency_us} us"
    path = "/dev/cpu_dma_latency"
    try:
        held = _HeldFile(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        stack.callback(held.close)
        if not _is_misc_device(held.fd):
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        os.write(held.fd, settings.dma_latency_us.to_bytes(4, "little", signed=True))
        os.lseek(held.fd, 0, os.SEEK_SET)
        granted = int.from_bytes(os.read(held.fd, 4), "little", signed=True)
    except OSError as error:
        cause = checks.device(path, error.errno or errno.EIO)
        fix = cause.fix + "\nor leave the idle states alone: dma_latency=None"
        found = f"{cause.found}; another file is in its place" if error.errno == errno.ENODEV else cause.found
        return [Grant("dma_latency", asked, "nothing", False, found, fix, error.errno or 0, kind="device")]
    detail = "the smallest of all requests on this machine, read back from the device"
    return [Grant("dma_latency", asked, f"{granted} us", granted <= settings.dma_latency_us, detail, kind="device")]


def _is_misc_device(fd: int) -> bool:
    """Return False for another file in its place, such as /dev/null in a container that hides devices."""
    status = os.fstat(fd)
    return stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == _MISC_MAJOR


class _HeldFile:
    """File that has an effect while it is open; a forked child closes its inherited copy."""

    _open: ClassVar[set[_HeldFile]] = set()

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._open.add(self)

    def close(self) -> None:
        self._open.discard(self)
        if self.fd >= 0:
            with suppress(OSError):  # a program that becomes a daemon has closed all files
                os.close(self.fd)
            self.fd = -1

    @classmethod
    def close_in_child(cls) -> None:
        for held in list(cls._open):
            held.close()


os.register_at_fork(after_in_child=_HeldFile.close_in_child)

"""Call of a loop's `safe` in its own process, when the watchdog of its group finds the loop stuck."""

from __future__ import annotations

import errno
import os
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rtloop.loop.scheduling import priority_above
from rtloop.process.signal_shield import start_thread
from rtloop.units import as_index

if TYPE_CHECKING:
    from rtloop.child.child_loop import ChildLoop

__all__ = ["SafeCall"]

_STACK_BYTES = 1 << 20


class SafeCall:
    """Thread that calls `safe` while the step hangs. It waits without the GIL, at a priority above the loop's.

    Parameters
    ----------
    safe : callable
        Function to call. Its result, None or an int, is in the WatchdogError.
    leave : callable, optional
        Function that the loop calls after its last cycle, but not before `safe` has returned.
    """

    def __init__(self, safe: Callable[[], object], leave: Callable[[], object] | None) -> None:
        self._safe, self._leave = safe, leave
        self._has_returned = threading.Event()
        self._loop: ChildLoop | None = None

    def leave(self) -> None:
        """Call `leave`; if the watchdog has tripped, wait for `safe` first."""
        if self._loop is not None and self._loop.is_tripped():
            self._has_returned.wait()
        if self._leave is not None:
            self._leave()

    def watch(self, loop: ChildLoop, may_go: threading.Event) -> None:
        """Start the thread. It begins when `may_go` is set, because the watchdog exists then.

        Raises
        ------
        RuntimeError
            If no thread can be created.
        """
        self._loop = loop
        start_thread(self._work, (loop, may_go), _STACK_BYTES, "rtloop-safe")

    def _work(self, loop: ChildLoop, may_go: threading.Event) -> None:
        may_go.wait()
        settings = loop.settings
        if settings.policy in ("fifo", "rr"):
            # RLIMIT_RTPRIO may be the loop's own priority. If that is refused too, the loop did not get it either.
            for priority in (priority_above(settings.priority), settings.priority):
                with suppress(OSError):
                    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
                    break
        if not loop.await_trip():
            return
        loop.note_safe(-errno.EINPROGRESS)
        code = -errno.EINVAL
        try:
            result = self._safe()
            number = 0 if result is None else as_index(result)
            if number is None:
                raise TypeError(f"safe returned {result!r}; it may return None or an int")
            code = number
        except BaseException:
            text = f"rtloop: {loop.name}: its step hangs, and safe has raised an exception\n{traceback.format_exc()}"
            os.write(2, text.encode(errors="replace"))
        finally:
            loop.note_safe(max(-(2**31), min(code, 2**31 - 1)))
            self._has_returned.set()

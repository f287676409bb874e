"""Run of a group: all of its loops start on one origin, or none does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rtloop.group import member, watchdog_plan
from rtloop.loop.lifecycle import Control
from rtloop.loop.outcome import failure
from rtloop.loop.registry import EXIT_TIMEOUT_NS
from rtloop.loop.scheduling import priority_above
from rtloop.settings import CLOCKS, Settings

if TYPE_CHECKING:
    from rtloop.child.process_loop import ProcessLoop
    from rtloop.group.relay import Relay
    from rtloop.group.watchdog import Watchdog
    from rtloop.loop.loop import RTLoop
    from rtloop.system.grant import Grant

__all__ = ["Run"]

#: Time from the last loop's enter() to the origin, in which the threads wake up.
_LEAD_NS = 5_000_000


class Run:
    """Run of a group. Its loops hold a reference to it, and cannot be started alone meanwhile.

    Parameters
    ----------
    name : str
        The group's name.
    loops : tuple of RTLoop or ProcessLoop
        In the order of their start.
    """

    def __init__(self, name: str, loops: tuple[RTLoop | ProcessLoop, ...]) -> None:
        self.name = name
        self.origin_ns: int | None = None
        self._loops = loops
        self.is_told = False  # whether the warning of old data has been given
        self._watchdog: Watchdog | None = None
        self._relay: Relay | None = None

    def is_running(self) -> bool:
        """Return True if any of the loops runs. If none does, the group's own threads have ended when this returns."""
        if any(loop.state == "running" for loop in self._loops):
            return True
        if self._relay is not None:  # it ends with the last process
            self._relay.wait(EXIT_TIMEOUT_NS)
        if self._watchdog is not None:  # it ends with its next check
            self._watchdog.stop(EXIT_TIMEOUT_NS)
        return False

    @property
    def watchdog_grants(self) -> tuple[Grant, ...]:
        """Grants of the watchdog, if there is one."""
        return () if self._watchdog is None else self._watchdog.grants

    def start(
        self,
        every: Sequence[Settings],
        duration_ns: int | None,
        align_ns: int | None,
        on_failure: str,
        watchdog: watchdog_plan.Limit | None = None,
    ) -> int:
        """Start all loops with these settings, and return the origin on their clock; withdraw() undoes it.

        `on_failure` is the reaction to a failed loop; `watchdog` is the limit after which one is stuck.
        """
        part = ""
        try:
            for loop, settings in zip(self._loops, every, strict=True):
                part = loop.name
                member.prepare(loop, self, settings, duration_ns)
            part = "the watchdog"
            member.link(self._loops, on_failure)
            if watchdog is not None:
                self._prepare_watchdog(every, watchdog)
            part = "the thread that watches other processes"
            self._start_relay(every)
            for loop in self._loops:
                part = loop.name
                member.release_thread(loop)
            for loop in self._loops:
                part = loop.name
                member.await_enter(loop)
                control = member.control_of(loop)
                if control.state == "failed":
                    control.join()
            return self._begin(CLOCKS[every[0].clock], align_ns)
        except Exception as error:
            what = f"{part} could not be started, so that none of the group's loops runs"
            failure.add_note(error, f"{self.name}: {what}")
            raise

    def _begin(self, clock: int, align_ns: int | None) -> int:
        """Set the origin, for which all loops are waiting."""
        if self._watchdog is not None:
            self._watchdog.release_thread()
        # Measured with the origin, so that every loop notices a step of the clock from now on.
        offset = member.clock_offset(self._loops[0])
        now = time.monotonic_ns() + offset if offset else time.clock_gettime_ns(clock)
        origin = now + _LEAD_NS
        if align_ns is not None:
            origin += -origin % align_ns
        self.origin_ns = origin
        for loop in self._loops:
            member.begin(loop, origin, offset)
        return origin

    def _start_relay(self, every: Sequence[Settings]) -> None:
        """Watch the loops in other processes, if there are any, for failures."""
        remote = [control for control in map(member.control_of, self._loops) if not isinstance(control, Control)]
        if remote:
            from rtloop.group.relay import Relay

            highest = watchdog_plan.highest_priority(every)
            self._relay = Relay(remote, None if highest is None else priority_above(highest))

    def _prepare_watchdog(self, every: Sequence[Settings], limit: watchdog_plan.Limit) -> None:
        from rtloop.group.watchdog import Watchdog

        settings, limits, remarks = watchdog_plan.plan(self.name, every, limit)
        self._watchdog = Watchdog(self._loops, settings, remarks)
        self._watchdog.prepare(limits)

    def withdraw(self, error: BaseException) -> None:
        """Release, in reverse, everything that a start has acquired before `error` ended it."""
        for loop in reversed(self._loops):
            member.request_stop(loop, self)
        for loop in reversed(self._loops):
            try:
                member.withdraw(loop, self)
            except BaseException as late:  # even one of a signal handler, because all loops must be withdrawn
                failure.add_note(error, str(late) or type(late).__name__)
        if self._watchdog is not None:
            self._watchdog.withdraw()

"""FlightRecorder: a file for each event in the signals of a running loop, or of the loop itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import AttachError, ConfigError, StateError
from rtloop.live.connect import Connection, connect
from rtloop.live.parameters import Applied
from rtloop.live.value_text import plain_value
from rtloop.tools.record.event_files import EventFiles
from rtloop.tools.record.event_recorder import EventRecorder
from rtloop.tools.record.expression import Expression
from rtloop.tools.record.loop_events import EVENTS, QUANTITIES, LoopEvents, read_loop
from rtloop.tools.record.sample_stream import read_new

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FlightRecorder"]

#: Sets of parameters that are remembered for the files of events.
_MOST_SETS = 10_000


class FlightRecorder:
    """Follow a loop, also over swaps of its step, and write a file for each event from now on.

    Samples from before are in the files of events that begin soon.

    Parameters
    ----------
    loop : Connection
        The loop; closed with this object.
    trigger : str
        Condition on signals, events and the times of a cycle.
    times : (int, int)
        Times before and after an event, ns.
    files : EventFiles
        Writes the files.
    on_file : callable
        Called with the path and the number of samples of each file.

    Raises
    ------
    StateError
        If the loop has no signals.
    ConfigError
        If the condition is invalid.
    """

    def __init__(
        self,
        loop: Connection,
        trigger: str,
        times: tuple[int, int],
        files: EventFiles,
        on_file: Callable[[Path, int], None] = lambda path, count: None,
    ) -> None:
        self.loop = loop
        self.files = files
        self.end_reason = ""
        self.taken = 0
        self._trigger, self._times, self._on_file = trigger, times, on_file
        self._lost = self._next = 0
        signals = loop.signals
        self._sets: deque[Applied] = deque(maxlen=_MOST_SETS)
        self._note_parameters()
        reading = read_loop(loop)
        self._events = LoopEvents(
            reading, loop.period_ns, str(loop.telemetry.settings.get("overrun")), dict(signals.limits)
        )
        self._reader = signals.reader("oldest")
        self._recorder = self._make_recorder(was_true=True)
        self._pending = self._remember(self._reader.read(), reading.cycle)
        self._lost = -self._reader.lost  # before the recording

    @property
    def lost(self) -> int:
        """Number of samples that were overwritten before they were read."""
        return self._lost + self._reader.lost

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a sample."""
        return self._reader.dtype

    @property
    def counts(self) -> dict[str, int]:
        """Number of events of each kind since the beginning."""
        return dict(self._events.counts)

    def _make_recorder(self, was_true: bool) -> EventRecorder:
        condition = Expression(self._trigger, self.loop.signals.dtype, (*EVENTS, *QUANTITIES))
        return EventRecorder(condition, *self._times, self._write, was_true)

    def turn(self) -> bool:
        """Take the new samples. Returns False if there is nothing more to record: see `end_reason`."""
        reading = read_loop(self.loop, self._events.cycle)
        is_swapped = reading.counts["swap"] != self._events.counters["swap"]
        self._events.take(reading)
        self._note_parameters()
        self._take(self._reader.read(), None if is_swapped else reading.cycle)
        return not is_swapped or self._change_step(reading.swap_cycle)

    def _remember(self, samples: NDArray[Any], begin: int) -> NDArray[Any]:
        """Take the samples of the cycles before the recording, and return the others."""
        count = _count_before(samples, begin)
        last = samples[max(0, count - 1) : count]
        if len(last):
            self._recorder.remember(samples[:count], self._events.begin_after(last))
        return samples[count:]

    def _take(self, samples: NDArray[Any], limit: int | None) -> None:
        """Take samples; those of an unfinished cycle are left for the next reading."""
        samples = np.concatenate((self._pending, samples)) if len(self._pending) else samples
        ready = len(samples) if limit is None else _count_before(samples, limit)
        self._pending = samples[ready:]
        self.taken += ready
        if ready:
            self._next = int(samples["cycle"][ready - 1]) + 1
        self._recorder.take(samples[:ready], self._events.columns(samples[:ready]))

    def _note_parameters(self) -> None:
        try:
            applied = self.loop.parameters.applied
        except OSError:  # the loop was stopped in the middle of a change
            return
        if applied is not None and (not self._sets or self._sets[-1].cycle != applied.cycle):
            self._sets.append(applied)

    def _change_step(self, cycle: int) -> bool:
        """Go on with the signals of the step that has replaced the former one."""
        try:
            loop = connect(self.loop.label, self.loop.pid)
        except AttachError:
            return True  # the loop has ended meanwhile
        former, self.loop = self.loop, loop
        try:
            signals = loop.signals
            is_alike = signals.dtype == self._reader.dtype
            if not is_alike:
                self._recorder.finish()
                self._recorder = self._make_recorder(self._recorder.was_true)
        except (StateError, ConfigError) as error:
            self.end_reason = f"after the swap at cycle {loop.telemetry.swaps[1]:,} {error}"
            return False
        finally:
            former.close()
        reader = signals.reader("begin")
        self._pending, older = read_new(reader, max(cycle, self._next))
        self._lost += self._reader.lost - older
        self._reader = reader
        self._events.change_step(dict(signals.limits))
        return True

    def finish(self) -> None:
        """Write the event that is under way, if any, with the samples taken so far."""
        self._take(self._reader.read(), None)
        self._recorder.finish()

    def close(self) -> None:
        """Close the connection."""
        self.loop.close()

    def _write(self, records: NDArray[Any], release: int) -> None:
        if self.files.are_complete:  # the samples of one turn may hold several events
            return
        cycles = records["cycle"]
        first, last = int(cycles[0]), int(cycles[-1])
        at = int(cycles[int(np.flatnonzero(records["release"] == release)[0])])
        happened = self._events.between(first, last)
        about: dict[str, Any] = {
            "loop": self.loop.name,
            "pid": self.loop.pid,
            "trigger": self._trigger,
            "trigger_cycle": at,
            "trigger_release": release,
            "before_ns": self._times[0],
            "after_ns": self._times[1],
            "written": len(records),
            "lost": self.lost,
            "happened": happened,
            "counters": self._events.counters,
            **self._parameters(at, first, last),
            "units": dict(self.loop.signals.units),
            "limits": dict(self.loop.signals.limits),
        }
        self._on_file(self.files.write(records, release, about), len(records))

    def _parameters(self, at: int, first: int, last: int) -> dict[str, Any]:
        """Return the parameters that a cycle used, and the sets that came into use in the other cycles."""
        used = next((one for one in reversed(self._sets) if one.cycle <= at), None)
        return {
            "parameters": {} if used is None else _plain(used)["values"],
            "parameters_since": None if used is None else used.cycle,
            "parameter_sets": [_plain(one) for one in self._sets if first <= one.cycle <= last],
        }


def _count_before(samples: NDArray[Any], cycle: int) -> int:
    """Return the number of samples before those of a cycle and of later ones, which are the last."""
    count = len(samples)
    while count and samples["cycle"][count - 1] >= cycle:  # from the end: a later run begins with cycle 0 again
        count -= 1
    return count


def _plain(applied: Applied) -> dict[str, Any]:
    """Return a set as JSON holds it."""
    values = {name: plain_value(one) for name, one in applied.values.items()}
    return {"cycle": applied.cycle, "values": values}

"""Clocks of several hosts: their differences from this host's time of day, jumps and drift, found from their frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rtloop.data.record_clock import read_clocks
from rtloop.system.time_sync import read_time_sync
from rtloop.telemetry.description import clean
from rtloop.units import format_duration

__all__ = ["Arrival", "HostClock", "HostClocks", "Jump", "compare", "compare_tai", "published_state"]

_MAX_NS = 1 << 63
#: A frame cannot arrive before it was sent: beyond this, and the error of reading clocks, the host is ahead.
AHEAD_NS = 50_000_000
#: A late arrival may be a slow network: so late must be all frames of a window until the host is called behind.
BEHIND_NS = 1_000_000_000
#: So late must be the first frames to be reported before their window is over.
FAR_BEHIND_NS = 5_000_000_000
#: Change of the difference between the begin and the end of a recording that is called a drift.
DRIFT_NS = 250_000_000
#: Change of the time of day against the clock since boot that no adjustment of a clock's rate explains, and is a jump.
JUMP_NS = 20_000_000
_SLEW_PER_S = 1_000_000  # ns; the kernel slews by 500 ppm at most
_WINDOW_NS = 1_000_000_000
_WINDOW_FRAMES = 3
_MOST_WINDOWS = 64
_MOST_HOSTS = 4096
_MOST_JUMPS = 1000


def published_state() -> dict[str, Any]:
    """Return the state of this host's clock as a bridge publishes it; None for what the kernel does not tell."""
    sync = read_time_sync()
    if sync is None:
        return {"is_synchronised": None, "estimated_error_ns": None, "max_error_ns": None, "tai_offset_s": None}
    return {
        "is_synchronised": sync.is_synchronised,
        "estimated_error_ns": sync.estimated_error_ns,
        "max_error_ns": sync.max_error_ns,
        "tai_offset_s": sync.tai_offset_s,
    }


@dataclass(frozen=True)
class Arrival:
    """Moment at which a frame arrived, ns on this host's clocks; `boottime` and `tai` are None if not read."""

    realtime: int
    boottime: int | None = None
    tai: int | None = None

    @classmethod
    def now(cls) -> Arrival:
        """Read the clocks."""
        read = read_clocks()
        return cls(read["realtime"], read["boottime"], read["tai"])


@dataclass(frozen=True)
class Jump:
    """Step of a time of day.

    Attributes
    ----------
    host : str
        Name of the host; empty for this host.
    key : str
        Key of its bridge.
    time_ns : int
        Its time of day after the step.
    size_ns : int
        Size of the step; positive is forward.
    """

    host: str
    key: str
    time_ns: int
    size_ns: int

    def __str__(self) -> str:
        whose = f"the clock of {self.host}" if self.host else "this host's clock"
        return f"{whose} jumped by {_signed(self.size_ns)}: records before and after are on different time lines"


@dataclass
class HostClock:
    """Difference between this host's time of day and that of a host, from the frames of one bridge.

    Attributes
    ----------
    host, key : str
        Name of the host, and key of its bridge.
    frames : int
        Frames that told when they were sent.
    least_ns : int
        Least (arrival - sent) of all frames. It is the delay of the fastest frame plus the difference of the clocks:
        negative for a host that is ahead of this one.
    jumps : list of Jump
        Steps of its time of day.
    tai_offset_s : int or None
        Seconds that its CLOCK_TAI is ahead of its time of day.
    state : dict
        State of its clock as its kernel reports it: see ``Bridge.describe``.
    """

    host: str
    key: str
    frames: int = 0
    least_ns: int = _MAX_NS
    jumps: list[Jump] = field(default_factory=list)
    tai_offset_s: int | None = None
    state: dict[str, Any] = field(default_factory=dict)
    #: Least difference of each window that is over, since the last jump; and of the current one.
    _windows: list[int] = field(default_factory=list)
    _merged: int = 1
    _running: int = _MAX_NS
    _running_frames: int = 0
    _running_begin: int = 0
    _reference: tuple[int, int, Any] | None = None

    def add(self, sent: dict[str, int], state: Any, sender: Any, arrival: Arrival) -> Jump | None:
        """Count a frame; return the jump of its host's clock since the frame before, if there was one.

        Parameters
        ----------
        sent : dict
            The moment of sending on the host's clocks, ns.
        state : object
            The state of the host's clock that the frame contains.
        sender : object
            What identifies the bridge's process: a restart elsewhere is not a jump.
        arrival : Arrival
            The moment of arrival here.
        """
        realtime = sent["realtime"]
        jump = self._jump(realtime, sent.get("boottime", sent.get("monotonic")), sender)
        if jump is not None:
            self.jumps = [*self.jumps, jump][:_MOST_JUMPS]
            self.forget_windows()
        self.frames += 1
        if "tai" in sent:
            self.tai_offset_s = round((sent["tai"] - realtime) / 1e9)
        if isinstance(state, dict):
            self.state = {name: state.get(name) for name in ("is_synchronised", "estimated_error_ns", "max_error_ns")}
        difference = arrival.realtime - realtime
        self.least_ns = min(self.least_ns, difference)
        now = arrival.boottime if arrival.boottime is not None else arrival.realtime
        if not self._running_frames:
            self._running_begin = now
        self._running = min(self._running, difference)
        self._running_frames += 1
        if self._running_frames >= _WINDOW_FRAMES and now - self._running_begin >= _WINDOW_NS * self._merged:
            self._windows.append(self._running)
            self._running, self._running_frames = _MAX_NS, 0
            if len(self._windows) >= _MOST_WINDOWS:
                self._windows = [min(pair) for pair in zip(self._windows[::2], self._windows[1::2], strict=True)]
                self._merged *= 2
        return jump

    def _jump(self, realtime: int, elapsed: int | None, sender: Any) -> Jump | None:
        before, self._reference = self._reference, None if elapsed is None else (realtime, elapsed, sender)
        if before is None or elapsed is None or before[2] != sender or elapsed < before[1]:
            return None
        size = (realtime - before[0]) - (elapsed - before[1])
        most = JUMP_NS + (elapsed - before[1]) * _SLEW_PER_S // 1_000_000_000
        return Jump(self.host, self.key, realtime, size) if abs(size) > most else None

    def forget_windows(self) -> None:
        """Judge what comes from now on by itself: a clock has jumped."""
        self._windows, self._running, self._running_frames, self._merged = [], _MAX_NS, 0, 1

    def difference_ns(self, *, is_last: bool = False) -> int:
        """Return how much the host is behind this one (negative: ahead) at present, ns; 0 if that is not known.

        A frame's delay counts as well. So a difference that a delay may explain is 0, and a positive one is at most by
        the least delay too large. With `is_last`, frames whose window is not over are judged as well.
        """
        running = self._running if self._running_frames else _MAX_NS
        window = self._windows[-1] if self._windows else None
        least = running if window is None else min(running, window)
        if least < -AHEAD_NS and least != _MAX_NS:
            return least
        if window is None:
            if self._running_frames >= _WINDOW_FRAMES and running > FAR_BEHIND_NS:
                return running
            return running if is_last and self._running_frames and running > BEHIND_NS else 0
        return window if window > BEHIND_NS else 0

    def drift_ns(self) -> int:
        """Return how much the difference has grown since the recording began or a clock jumped, ns; 0 for little."""
        quarter = len(self._windows) // 4
        if not quarter:
            return 0
        change = min(self._windows[-quarter:]) - min(self._windows[:quarter])
        return change if abs(change) > DRIFT_NS else 0


@dataclass
class HostClocks:
    """Clocks of all hosts that a recording has frames of.

    Attributes
    ----------
    hosts : dict of HostClock
        By the keys of their bridges.
    jumps : list of Jump
        Steps of this host's own time of day while it recorded.
    """

    hosts: dict[tuple[str, str], HostClock] = field(default_factory=dict)
    jumps: list[Jump] = field(default_factory=list)
    tai_offset_s: int | None = None
    _own: tuple[int, int] | None = None
    _told: dict[tuple[Any, ...], str] = field(default_factory=dict)
    _new: list[str] = field(default_factory=list)

    def add(self, key: str, about: dict[str, Any], arrival: Arrival) -> list[Jump]:
        """Count a frame of the bridge with this key; return the jumps that it shows, of its host and of this one."""
        found = self._own_jump(arrival)
        said = about.get("clocks")
        sent = {n: v for n, v in said.items() if type(v) is int and 0 <= v < _MAX_NS} if isinstance(said, dict) else {}
        host = about.get("host")
        name = clean(host).replace("\n", " ")[:100] if isinstance(host, str) and host else clean(key)
        if "realtime" not in sent:
            return found
        clock = self.hosts.get((key, name))
        if clock is None:
            if len(self.hosts) >= _MOST_HOSTS:
                return found
            clock = self.hosts[key, name] = HostClock(name, clean(key))
        sender = about.get("bridge_id")
        jump = clock.add(sent, about.get("time_sync"), sender if isinstance(sender, str) else None, arrival)
        if jump is not None:
            found.append(jump)
            self._tell(("jump", key, name, len(clock.jumps)), str(jump))
        if arrival.tai is not None:
            self.tai_offset_s = round((arrival.tai - arrival.realtime) / 1e9)
        for kind, text in self._problems_of(clock, is_last=False).items():
            self._tell((kind, clock.host, len(clock.jumps), len(self.jumps)), text)
        return found

    def _own_jump(self, arrival: Arrival) -> list[Jump]:
        if arrival.boottime is None:
            return []
        before, self._own = self._own, (arrival.realtime, arrival.boottime)
        if before is None:
            return []
        elapsed = arrival.boottime - before[1]
        size = arrival.realtime - before[0] - elapsed
        if abs(size) <= JUMP_NS + abs(elapsed) * _SLEW_PER_S // 1_000_000_000:
            return []
        jump = Jump("", "", arrival.realtime, size)
        self.jumps = [*self.jumps, jump][:_MOST_JUMPS]
        for clock in self.hosts.values():
            clock.forget_windows()
        self._tell(("jump", "", "", len(self.jumps)), str(jump))
        return [jump]

    def _problems_of(self, clock: HostClock, *, is_last: bool) -> dict[str, str]:
        name = self._name_of(clock)
        problems = {}
        difference, drift = clock.difference_ns(is_last=is_last), clock.drift_ns()
        if difference:
            problems["difference"] = compare(name, difference)
        if drift:
            side = "behind" if drift > 0 else "ahead"
            problems["drift"] = f"the clock of {name} drifts: it fell {side} by {_rounded(drift)} in this recording"
        if None not in (clock.tai_offset_s, self.tai_offset_s) and clock.tai_offset_s != self.tai_offset_s:
            problems["tai"] = compare_tai(name, clock.tai_offset_s, self.tai_offset_s)
        return problems

    def _name_of(self, clock: HostClock) -> str:
        others = [one for one in self.hosts.values() if one.host == clock.host and one is not clock]
        is_one = all(abs(one.least_ns - clock.least_ns) < BEHIND_NS for one in others)
        return clock.host if is_one else f"{clock.host} ({clock.key})"

    def _tell(self, what: tuple[Any, ...], text: str) -> None:
        if what not in self._told and len(self._told) < _MOST_HOSTS:
            self._told[what] = text
            self._new.append(text)

    def news(self) -> list[str]:
        """Return the sentences on hosts whose clocks disagree that this has not returned before."""
        new, self._new = self._new, []
        return new

    def problems(self) -> list[str]:
        """Return a sentence for each disagreement and jump, as known at the end."""
        found = [str(jump) for jump in self.jumps]
        for clock in list(self.hosts.values()):
            found += [str(jump) for jump in clock.jumps]
            now = self._problems_of(clock, is_last=True)
            # What was reported before a jump, or until the clock was set right, holds for that part of the recording.
            found += [t for (kind, host, *_), t in self._told.items() if host == clock.host and kind == "difference"
                      and kind not in now]  # fmt: skip
            found += now.values()
        return list(dict.fromkeys(found))

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dict that JSON can hold."""
        return {
            "tai_offset_s": self.tai_offset_s,
            "jumps": [_as_dict(jump) for jump in self.jumps],
            "hosts": [
                {
                    "host": clock.host, "key": clock.key, "frames": clock.frames, "least_ns": clock.least_ns,
                    "behind_ns": clock.difference_ns(is_last=True), "drift_ns": clock.drift_ns(),
                    "jumps": [_as_dict(jump) for jump in clock.jumps], "tai_offset_s": clock.tai_offset_s,
                    **clock.state,
                }
                for clock in list(self.hosts.values())
            ],
        }  # fmt: skip


def compare(name: str, behind_ns: int) -> str:
    """Return the sentence on a host that is behind this one, or ahead of it for a negative difference."""
    side = "behind this host" if behind_ns > 0 else "ahead of this host"
    return f"{name} is {_rounded(behind_ns)} {side}: set both clocks by the same NTP or PTP server"


def compare_tai(name: str, offset_s: int | None, own_s: int | None) -> str:
    """Return the sentence on a host with another TAI offset."""
    return (
        f'the TAI offset of {name} is {offset_s} s, and that of this host is {own_s} s: grids of loops on clock="tai" '
        "differ; phc2sys or chronyd sets it"
    )


def _as_dict(jump: Jump) -> dict[str, int]:
    return {"time_ns": jump.time_ns, "size_ns": jump.size_ns}


def _rounded(ns: int) -> str:
    """Return a duration with three digits."""
    size = abs(ns)
    unit = 10 ** max(0, len(str(size)) - 3)
    return format_duration((size + unit // 2) // unit * unit)


def _signed(ns: int) -> str:
    return ("+" if ns > 0 else "-") + _rounded(ns)

"""Keywords of a loop, checked and parsed once into one immutable object."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from fractions import Fraction
from typing import Any, Literal, NamedTuple, TypedDict

from rtloop.errors import ConfigError, RTSetupWarning
from rtloop.units import (
    as_index,
    format_duration,
    lcm_of,
    parse_duration,
    parse_exact_duration,
    parse_period,
    parse_phase,
    parse_size,
    show,
)

__all__ = [
    "CALLBACKS",
    "CLOCKS",
    "CLOCK_STEP_POLICIES",
    "OVERRUN_POLICIES",
    "POLICIES",
    "SETTABLE_CLOCKS",
    "Duration",
    "LoopKeywords",
    "Settings",
    "check_call",
    "exact_period",
    "exact_phase",
    "format_policy",
    "make_settings",
    "parse_align",
    "parse_choice",
    "parse_count",
    "parse_name",
    "parse_run_duration",
    "with_cpu",
]

Duration = int | str | timedelta | Fraction
Clock = Literal["monotonic", "boottime", "tai", "realtime"]
ClockStepPolicy = Literal["follow", "stop"]
Policy = Literal["fifo", "rr", "other", "deadline"]
OverrunPolicy = Literal["skip", "catch-up", "shift", "stop"]
LockMode = Literal["all", "onfault", "own", "off"]
GuardMode = Literal["off", "count", "stop"]

#: Methods that a subclass of RTLoop may override, with their declarations. The watchdog's thread calls safe, the loop's
#: thread all others.
CALLBACKS = {
    "enter": "cdef int enter(self) noexcept nogil",
    "step": "cdef int step(self, const Cycle *cycle) noexcept nogil",
    "overrun": "cdef int overrun(self, const Cycle *cycle, int64_t missed) noexcept nogil",
    "wait": "cdef int wait(self, int64_t release) noexcept nogil",
    "leave": "cdef void leave(self) noexcept nogil",
    "on_peer_failure": "cdef int on_peer_failure(self) noexcept nogil",
    "safe": "cdef int safe(self) noexcept nogil",
    "take_over": "cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil",
}
#: The clocks that clock_nanosleep(2) accepts, with their numbers in <time.h>.
CLOCKS = {"monotonic": 1, "boottime": 7, "tai": 11, "realtime": 0}
#: Clocks that can be set while a loop runs.
SETTABLE_CLOCKS = ("tai", "realtime")
#: Reactions of a loop to a step of its clock, with their numbers in loop_clock_step.h.
CLOCK_STEP_POLICIES = {"follow": 0, "stop": 1}
#: Scheduling policies, with their numbers in <sched.h>.
POLICIES = {"other": 0, "fifo": 1, "rr": 2, "deadline": 6}
_POLICY_NAMES = {number: name for name, number in POLICIES.items()} | {3: "batch", 5: "idle", 7: "ext"}
#: Overrun policies, with their numbers in schedule.h.
OVERRUN_POLICIES = {"skip": 0, "catch-up": 1, "shift": 2, "stop": 3}

_LOCK_MODES = ("all", "onfault", "own", "off")
_MIN_STACK_BYTES = 64 << 10
_MAX_STACK_BYTES = 1 << 30
_MAX_RECORD = 1 << 26
#: A year: sums of a clock's time and several of these stay far from the end of 64 bits.
_MAX_TIME_NS = 365 * 86400 * 10**9
_MAX_DMA_LATENCY_NS = (2**31 - 1) * 1000
_INT64_MAX = 2**63 - 1
_MIN_DEADLINE_RUNTIME_NS = 1024
#: The kernel keeps 5 % of each CPU for ordinary threads (sched_rt_runtime_us).
_MAX_UTILISATION = 0.95
#: A period or a phase in ns as stored in JSON.
_EXACT_TIME = re.compile(r"(0|[1-9][0-9]{0,39})(/[1-9][0-9]{0,39})?", re.ASCII)
#: Other common names of a keyword, which are spelled too differently to be found by similarity.
_ALIASES = {"rate": "period", "frequency": "period", "interval": "period", "affinity": "cpu"}


class LoopKeywords(TypedDict, total=False):
    """Keywords of every loop, for type checkers; :func:`make_settings` has their defaults and checks them."""

    phase: Duration
    align: Duration | None
    clock: Clock
    clock_step: ClockStepPolicy
    policy: Policy
    priority: int
    runtime: Duration | None
    deadline: Duration | None
    cpu: Literal["auto"] | int | Iterable[int] | None
    spin: Duration
    overrun: OverrunPolicy
    max_burst: int
    max_overruns: int | None
    warmup: int
    strict: bool
    lock_memory: LockMode
    stack_size: int | str
    tune_malloc: bool
    core_dumps: bool
    dma_latency: Duration | None
    flush_denormals: bool
    guard: GuardMode
    guard_allow: Iterable[str]
    explain: bool | Duration
    record: int
    leave_timeout: Duration
    tunable: bool
    signals_every: int
    signals_capacity: int
    name: str | None


class Settings(NamedTuple):
    """Requested settings. Durations are in nanoseconds and sizes in bytes; the units are in the names.

    `period` and `phase` are exact, Fractions of nanoseconds; `period_ns` and `phase_ns` are the nearest ints.
    """

    name: str
    period: Fraction
    period_ns: int
    phase: Fraction
    phase_ns: int
    align_ns: int | None
    clock: str
    clock_step: str
    policy: str
    priority: int
    runtime_ns: int | None
    deadline_ns: int | None
    cpu: str | tuple[int, ...] | None
    spin_ns: int
    is_spin_auto: bool
    overrun: str
    max_burst: int
    max_overruns: int | None
    warmup: int
    strict: bool
    lock_memory: str
    stack_bytes: int
    tune_malloc: bool
    core_dumps: bool
    dma_latency_us: int | None
    flush_denormals: bool
    guard: str
    guard_allow: tuple[str, ...]
    explain_ns: int | None
    record: int
    leave_timeout_ns: int
    tunable: bool
    signals_every: int
    signals_capacity: int

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict that JSON can hold."""
        values = self._asdict()
        values["period"], values["phase"] = str(self.period), str(self.phase)
        if isinstance(self.cpu, tuple):
            values["cpu"] = list(self.cpu)
        values["guard_allow"] = list(self.guard_allow)
        return values


def format_policy(policy: int, priority: int, times: Sequence[int] = ()) -> str:
    """Write a policy as a grant has it: ``"fifo 80"``, or ``"deadline 1 ms/5 ms/5 ms"``.

    `times` are the runtime, deadline and period of SCHED_DEADLINE, ns. One without a name is its number in <sched.h>.
    """
    name = _POLICY_NAMES.get(policy, f"policy {policy}")
    if name == "deadline" and times:
        return f"{name} " + "/".join(format_duration(ns) for ns in times)
    return f"{name} {priority}" if name in ("fifo", "rr") else name


def parse_choice(value: object, name: str, choices: Iterable[str]) -> str:
    """Check that a value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name}={show(value)} is not one of {', '.join(repr(c) for c in choices)}")
    return value


def _integer(value: object, name: str, minimum: int, maximum: int = _INT64_MAX) -> int:
    number = as_index(value)
    if number is None or not minimum <= number <= maximum:
        span = f"from {minimum} to {maximum}" if maximum < _INT64_MAX else f"of at least {minimum}"
        raise ConfigError(f"{name}={show(value)} must be an int {span}")
    return number


def parse_name(value: object) -> str:
    """Check the name of a loop, a group or a chain."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ConfigError(f"name={show(value)} must be a str of printable characters that is not blank")
    return value


def _system_calls(value: Iterable[str]) -> tuple[str, ...]:
    """Check names of system calls."""
    names = None if isinstance(value, str | bytes) or not isinstance(value, Iterable) else tuple(value)
    if names is None or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"guard_allow={show(value)} must be names of system calls, such as ('sendto', 'recvfrom')")
    if names:
        from rtloop.system.syscalls import UNWATCHED, number_of  # here, because most loops do not need the tables

        unknown = next((name for name in names if number_of(name) is None), None)
        if unknown is not None:
            raise ConfigError(f"guard_allow={show(value)}: {show(unknown)} is not a system call of this machine")
        unwatched = next((name for name in names if name in UNWATCHED), None)
        if unwatched is not None:
            raise ConfigError(
                f"guard_allow={show(value)}: {unwatched} cannot be allowed, because the rest of the step would not be "
                "watched; call it in enter or leave"
            )
    return tuple(dict.fromkeys(names))


def _explain(value: bool | Duration) -> int | None:
    """Return the shortest delay to explain, ns: None for no explanations, 0 for the worst cycles."""
    if value is False:
        return None
    return 0 if value is True else parse_duration(value, "explain", minimum=1)


def _dma_latency(value: Duration | None) -> int | None:
    """Turn the bound on idle latency into microseconds, the kernel's unit."""
    return None if value is None else parse_duration(value, "dma_latency", maximum=_MAX_DMA_LATENCY_NS) // 1000


def parse_count(value: object, name: str, *, maximum: int = _INT64_MAX) -> int:
    """Check a number of cycles, items or the like: an int of at least 1."""
    return _integer(value, name, 1, maximum)


def _flag(value: object, name: str) -> bool:
    if value is True or value is False:
        return value
    raise ConfigError(f"{name}={show(value)} must be True or False")


def parse_run_duration(value: Duration, period_ns: int) -> int:
    """Turn the duration of a run into nanoseconds. A bare int shorter than a period is refused: it lacks a unit."""
    duration_ns = parse_duration(value, "duration", minimum=1)
    if not isinstance(value, (str, timedelta)) and duration_ns < period_ns:
        raise ConfigError(
            f"duration={show(value)} is {format_duration(duration_ns)}, because a bare int is nanoseconds, but the "
            f"period is {format_duration(period_ns)}: did you mean '{duration_ns}s' or '{duration_ns}ms'?"
        )
    return duration_ns


def check_call(kind: type, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Check that a loop's class can run, and that it was called with a period and with existing keywords.

    Raises
    ------
    TypeError
        With the name of the class, and the keyword that was probably meant.
    """
    for name, declaration in CALLBACKS.items():
        if callable(getattr(kind, name, None)):
            raise TypeError(
                f"{kind.__name__}.{name} is a Python method, which a real-time thread cannot call: write it in Cython, "
                f"in a cdef class, as '{declaration}'"
            )
    call = f"{kind.__name__}()"
    known = ["period", *(make_settings.__kwdefaults__ or ())]
    for name in keywords:
        if name not in known:
            from difflib import get_close_matches  # here, because `import rtloop` has to be quick

            near = [_ALIASES[name]] if name in _ALIASES else [k for k in known if k.startswith(name)]
            near = near or get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"the keywords are {', '.join(known)}"
            raise TypeError(f"{call} got an unexpected keyword argument {name!r}; {hint}")
    if len(positional) > 1:
        raise TypeError(
            f"{call} takes one positional argument, the period, and got {len(positional)}; pass the others by keyword"
        )
    if len(positional) + ("period" in keywords) != 1:
        what = "got two values for" if positional else "needs"
        raise TypeError(f"{call} {what} its argument 'period', a time or a rate, such as '1ms' or '1kHz'")


def _cpus(value: object) -> str | tuple[int, ...] | None:
    if value is None or (isinstance(value, str) and value == "auto"):
        return value
    number = as_index(value)
    cpus: set[int] = set()
    if number is not None or isinstance(value, bool):
        cpus = {_integer(value, "cpu", 0, 8191)}
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        cpus = {_integer(item, "cpu", 0, 8191) for item in value}
    if not cpus:
        raise ConfigError(f'cpu={show(value)} must be "auto", None, a CPU number, or a list of CPU numbers')
    return tuple(sorted(cpus))


def _exact(settings: Mapping[str, Any], name: str) -> Fraction:
    nearest = Fraction(settings.get(f"{name}_ns") or 0)
    exact = settings.get(name)
    if isinstance(exact, Fraction):
        return exact
    if not isinstance(exact, str) or not _EXACT_TIME.fullmatch(exact):
        return nearest
    time = Fraction(exact)
    return time if abs(time - nearest) <= Fraction(1, 2) else nearest  # the nearest int wins if the two contradict


def exact_period(settings: Mapping[str, Any]) -> Fraction:
    """Return the exact period, in ns, of settings that were read from JSON; 0 if they have none."""
    return _exact(settings, "period")


def exact_phase(settings: Mapping[str, Any]) -> Fraction:
    """Return the exact phase, in ns, of settings that were read from JSON; 0 if they have none."""
    return _exact(settings, "phase")


def _check_align(align: int, period: Fraction, shown: object) -> int:
    """Check that all multiples of `align` lie on one grid of the period, so that any of them can be the origin."""
    unit = period.numerator  # the shortest time that is a whole number of periods and of nanoseconds
    if align % unit == 0:
        return align
    below, above = align // unit * unit, (align // unit + 1) * unit
    near = [ns for ns in (below, above) if 0 < ns <= _MAX_TIME_NS]
    near.sort(key=lambda ns: abs(ns - align))
    works = f"the nearest that works is '{_exact_text(near[0])}'" if near else "no align works with this period"
    raise ConfigError(
        f"align={show(shown)} is not a whole number of periods of {_exact_text(period)}, so loops that start at "
        f"different times would not be aligned; {works}"
    )


def parse_align(value: Duration, periods: Sequence[Fraction]) -> int:
    """Turn `align` into nanoseconds, and check that it puts loops with these periods on one grid.

    A clock shows whole nanoseconds, so of the multiples of a fraction of them those that are whole count.

    Raises
    ------
    ConfigError
        If it does not; the message has the nearest value that does.
    """
    align_ns = parse_exact_duration(value, "align", minimum=1, maximum=_MAX_TIME_NS).numerator
    for period in dict.fromkeys(periods):
        if align_ns % period.numerator:
            return _check_align(align_ns, lcm_of(periods), value)
    return align_ns


def _exact_text(ns: Fraction | int) -> str:
    """Format a time exactly, in a form that parse_duration reads."""
    for unit, scale in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns >= scale and Fraction(ns, scale).denominator <= 1000 and 1000 % Fraction(ns, scale).denominator == 0:
            return f"{float(Fraction(ns, scale)):.10g}{unit}"
    return f"{ns}ns"


def _deadline(
    policy: str, period: int, runtime: object, deadline: object, cpu: object
) -> tuple[int | None, int | None]:
    if policy != "deadline":
        for name, value in (("runtime", runtime), ("deadline", deadline)):
            if value is not None:
                raise ConfigError(f'{name}={show(value)} needs policy="deadline"; policy is {policy!r}')
        return None, None
    if runtime is None:
        raise ConfigError(
            'policy="deadline" needs runtime=, the CPU time of one cycle (sched_setattr(2)), such as runtime="200us"'
        )
    if cpu not in (None, "auto"):
        raise ConfigError(
            f'cpu={cpu!r} cannot be combined with policy="deadline": the kernel refuses that policy to pinned threads; '
            "leave cpu out"
        )
    runtime_ns = parse_duration(runtime, "runtime", minimum=_MIN_DEADLINE_RUNTIME_NS)  # type: ignore[arg-type]
    deadline_ns = period
    if deadline is not None:
        deadline_ns = parse_duration(deadline, "deadline", minimum=1)  # type: ignore[arg-type]
    if not runtime_ns <= deadline_ns <= period:
        raise ConfigError(
            f"runtime={format_duration(runtime_ns)}, deadline={format_duration(deadline_ns)}, "
            f"period={format_duration(period)}: the kernel requires runtime <= deadline <= period"
        )
    if runtime_ns > _MAX_UTILISATION * period:
        raise ConfigError(
            f"runtime={format_duration(runtime_ns)} is {100 * runtime_ns / period:.1f} % of a CPU; the kernel keeps "
            "5 % for other threads (sched_rt_runtime_us): reduce runtime, or lengthen the period"
        )
    return runtime_ns, deadline_ns


def with_cpu(settings: Settings, cpu: object) -> Settings:
    """Return the settings with another ``cpu=``, checked like the original one.

    Raises
    ------
    ConfigError
        If it does not name CPUs, or would pin a loop with SCHED_DEADLINE.
    """
    cpus = _cpus(cpu)
    _deadline(settings.policy, int(settings.period), settings.runtime_ns, settings.deadline_ns, cpus)
    return settings._replace(cpu=cpus)


def make_settings(
    default_name: str,
    period: Duration,
    *,
    phase: Duration = 0,
    align: Duration | None = None,
    clock: str = "monotonic",
    clock_step: str = "follow",
    policy: str = "fifo",
    priority: int = 80,
    runtime: Duration | None = None,
    deadline: Duration | None = None,
    cpu: int | Iterable[int] | str | None = "auto",
    spin: Duration = 0,
    overrun: str = "skip",
    max_burst: int = 8,
    max_overruns: int | None = None,
    warmup: int = 10,
    strict: bool = True,
    lock_memory: str = "all",
    stack_size: int | str = "512K",
    tune_malloc: bool = False,
    core_dumps: bool = True,
    dma_latency: Duration | None = 0,
    flush_denormals: bool = False,
    guard: str = "off",
    guard_allow: Iterable[str] = (),
    explain: bool | Duration = False,
    record: int = 65536,
    leave_timeout: Duration = "2s",
    tunable: bool = True,
    signals_every: int = 1,
    signals_capacity: int = 16384,
    name: str | None = None,
) -> Settings:
    """Check every keyword and parse its units.

    Raises
    ------
    ConfigError
        For a bad value; the message has the argument, its value and what is accepted.
    """
    exact = parse_period(period, maximum=_MAX_TIME_NS)
    period_ns = parse_duration(exact / 10**9, "period")
    exact_offset = parse_phase(phase, exact, maximum=_MAX_TIME_NS)
    policy = parse_choice(policy, "policy", POLICIES)
    priority = _integer(priority, "priority", 1, 99)
    if policy in ("fifo", "rr"):
        if priority == 99:
            warnings.warn(
                "priority=99 competes with the kernel's own threads (migration, watchdog); "
                "80, the default, is already above every interrupt thread",
                RTSetupWarning,
                stacklevel=2,
            )
    else:
        priority = 0
    cpus = _cpus(cpu)
    runtime_ns, deadline_ns = _deadline(policy, int(exact), runtime, deadline, cpus)
    is_spin_auto = isinstance(spin, str) and spin == "auto"
    spin_ns = 0 if is_spin_auto else parse_duration(spin, "spin")
    if spin_ns >= period_ns:
        raise ConfigError(
            f"spin={format_duration(spin_ns)} must be less than period={format_duration(period_ns)}: "
            "otherwise the loop would never sleep"
        )
    if runtime_ns is not None and spin_ns >= runtime_ns:
        raise ConfigError(
            f"spin={format_duration(spin_ns)} would use up runtime={format_duration(runtime_ns)} before the step: "
            "spin less, or set a longer runtime"
        )
    stack_bytes = parse_size(stack_size, "stack_size", minimum=_MIN_STACK_BYTES, maximum=_MAX_STACK_BYTES)
    return Settings(
        name=default_name if name is None else parse_name(name),
        period=exact,
        period_ns=period_ns,
        phase=exact_offset,
        phase_ns=parse_duration(exact_offset / 10**9, "phase"),
        align_ns=None if align is None else parse_align(align, [exact]),
        clock=parse_choice(clock, "clock", CLOCKS),
        clock_step=parse_choice(clock_step, "clock_step", CLOCK_STEP_POLICIES),
        policy=policy,
        priority=priority,
        runtime_ns=runtime_ns,
        deadline_ns=deadline_ns,
        cpu=cpus,
        spin_ns=spin_ns,
        is_spin_auto=is_spin_auto,
        overrun=parse_choice(overrun, "overrun", OVERRUN_POLICIES),
        max_burst=_integer(max_burst, "max_burst", 1, 2**31 - 1),
        max_overruns=None if max_overruns is None else _integer(max_overruns, "max_overruns", 1),
        warmup=_integer(warmup, "warmup", 0),
        strict=_flag(strict, "strict"),
        lock_memory=parse_choice(lock_memory, "lock_memory", _LOCK_MODES),
        # At least the minimum of the C library, 128K on arm64, and a multiple of every page size.
        stack_bytes=-(-max(stack_bytes, os.sysconf("SC_THREAD_STACK_MIN")) // 65536) * 65536,
        tune_malloc=_flag(tune_malloc, "tune_malloc"),
        core_dumps=_flag(core_dumps, "core_dumps"),
        dma_latency_us=_dma_latency(dma_latency),
        flush_denormals=_flag(flush_denormals, "flush_denormals"),
        guard=parse_choice(guard, "guard", ("off", "count", "stop")),
        guard_allow=_system_calls(guard_allow),
        explain_ns=_explain(explain),
        record=_integer(record, "record", 0, _MAX_RECORD),
        leave_timeout_ns=parse_duration(leave_timeout, "leave_timeout", minimum=1, maximum=_MAX_TIME_NS),
        tunable=_flag(tunable, "tunable"),
        signals_every=_integer(signals_every, "signals_every", 1, 2**48),
        signals_capacity=_integer(signals_capacity, "signals_capacity", 1, 2**31 - 1),
    )


#: Types of every setting, as in its annotation, whose text a NamedTuple keeps in a ForwardRef.
SETTING_KINDS = {key: str(getattr(kind, "__forward_arg__", kind)) for key, kind in Settings.__annotations__.items()}
SETTING_KINDS |= {"has_own_wait": "bool", "group": "str", "origin_ns": "int", "last_ns": "int"}


def _is_of(value: object, kind: str) -> bool:
    """Return True if a JSON value has the given type of a field."""
    if kind == "Fraction":
        return isinstance(value, str) and _EXACT_TIME.fullmatch(value) is not None
    if kind == "tuple[int, ...]":
        return isinstance(value, list) and all(type(item) is int for item in value)
    if kind == "tuple[str, ...]":
        return isinstance(value, list) and all(type(item) is str and item.isidentifier() for item in value)
    return type(value).__name__.removesuffix("Type") == kind


def is_setting(key: str, value: object) -> bool:
    """Return True if a value has the type of a setting; an unknown setting may have any value."""
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return False
    return key not in SETTING_KINDS or any(_is_of(value, kind) for kind in SETTING_KINDS[key].split(" | "))

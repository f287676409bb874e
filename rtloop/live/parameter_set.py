"""ParameterSet: the parameters of a loop of this process, in its runs and between them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from rtloop.errors import ConfigError, StateError
from rtloop.live.declared_parameters import Declaration, Parameter, merge, parse_name, parse_type
from rtloop.live.parameter_block import MOST, MOST_BYTES, ParameterRun, Used, Writer, assign, pack_place
from rtloop.live.value_text import plain_value
from rtloop.live.write_lock import write_lock
from rtloop.process.python_threads import name_of_this_thread
from rtloop.process.signal_shield import ShieldedLock
from rtloop.stats.figures import ParameterChange
from rtloop.system.host import uname

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["ParameterSet", "acting_for", "describe_parameters", "this_writer"]

_acting = threading.local()


class ParameterSet:
    """The parameters of a loop of this process.

    Between two runs the values are kept here, and a change is written to the loop's fields at once. In a run they are
    in the run's block, from which the loop takes them.

    Attributes
    ----------
    name : str
        Name of the loop.
    declared : dict
        The parameters by name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.declared: dict[str, Parameter] = {}
        self._addresses: dict[str, int] = {}
        self._values = bytearray()
        self._initial: dict[str, bytes] = {}  # the values as declared
        self._writer: Writer | None = None
        self._fresh: set[str] = set()  # declared since the last run
        self._run: ParameterRun | None = None
        self._last: Used | None = None
        self._before: bytes | None = None  # the values before others were taken over
        self._taken: dict[str, bytes] = {}  # the values that were taken over
        self._begun: dict[str, bytes] = {}  # the values of the same parameters that this step began with
        self._recorded: ParameterChange | None = None  # the values that a recorded step began with
        self._is_retired = False
        self._told = (0, 0)  # changes and refusals of this run that were reported before it was retired
        self._lock = ShieldedLock()

    def declare(
        self, name: str, address: int, value: Any, dtype: DTypeLike = "f8",
        check: Callable[[Parameter, int], None] | None = None,
    ) -> Declaration:  # fmt: skip
        """Add a parameter, whose values the loop writes to an address.

        A parameter that setup() declares again in every run, in the same way, keeps its value. `check` may refuse the
        parameter and its address, before anything is written.

        Raises
        ------
        ConfigError
            If the name, the type, the value or the address is invalid.
        StateError
            In a run.
        """
        parse_name(name)
        base, shape = parse_type(dtype, f"the parameter {name!r}")
        if not address:
            raise ConfigError(f"the address of the parameter {name!r} is NULL: give that of a field, such as &self.kp")
        with self._lock:
            self._check_idle(name)
            former = self.declared.get(name)
            if former is not None:
                again = (self._addresses[name], former.dtype, former.shape)
                if name in self._fresh or again != (address, base, shape):
                    raise ConfigError(f"name={name!r} is already the name of another parameter of this loop")
                self._fresh.add(name)
                return Declaration(former, self._change_declaration)
            offset = -(-len(self._values) // base.itemsize) * base.itemsize
            made = Parameter(name, base, shape, offset)
            packed = made.pack(value)
            size = -(-(offset + made.size) // 8) * 8
            if len(self.declared) == MOST or size > MOST_BYTES:
                raise ConfigError(
                    f"the parameter {name!r} does not fit: it would be number {len(self.declared) + 1}, for {size} "
                    f"bytes in all, and a loop can have {MOST} parameters of {MOST_BYTES} bytes in all; pass a large "
                    "table in a Latest"
                )
            if check is not None:
                check(made, address)
            self._values.extend(bytes(offset - len(self._values)) + packed)
            self.declared[name], self._addresses[name], self._initial[name] = made, address, packed
            self._fresh.add(name)
            assign(address, packed)
            return Declaration(made, self._change_declaration)

    def places(self) -> list[tuple[Parameter, int]]:
        """Return the parameters with their addresses."""
        addresses = self._addresses.copy()  # without the lock, which a thread that declares holds
        return [(self.declared[name], address) for name, address in addresses.items()]

    def _change_declaration(self, made: Parameter) -> None:
        with self._lock:
            self._check_idle(made.name)
            made.pack(made.unpack(self._values))
            self.declared[made.name] = made

    def _check_idle(self, name: str) -> None:
        if self._run is not None:
            raise StateError(
                f"the parameter {name!r} cannot be declared now, because {self.name} is running: declare it in "
                "__init__ or setup"
            )

    def changed(self) -> dict[str, Any]:
        """Return the values that differ from the declared ones."""
        asked = self.asked()
        return {
            name: one.unpack(asked)
            for name, one in self.declared.items()
            if one.unpack_bytes(asked) != self._initial[name]
        }

    def take_over(self, former: ParameterSet, keep: str = "all") -> None:
        """Take over the values of another step's parameters that have the same name and type.

        With ``keep="changed"`` only those that have been changed, and that are within the limits of this step.

        Raises
        ------
        ConfigError
            With ``keep="all"``, if such a value is outside of the limits that this step sets.
        """
        asked = former.asked()
        changed = former.changed() if keep == "changed" else former.declared
        values, taken = {}, {}
        for name, one in self.declared.items():
            other = former.declared.get(name)
            if other is None or (other.dtype, other.shape) != (one.dtype, one.shape):
                continue
            taken[name] = other.unpack_bytes(asked)
            if name in changed:
                with suppress(ConfigError) if keep == "changed" else nullcontext():
                    values[name] = one.pack(other.unpack(asked))
        with self._lock:
            self._before, self._taken = bytes(self._values), taken
            self._values[:] = merge(self.declared, bytes(self._values), values)
            self._begun = {name: self.declared[name].unpack_bytes(self._values) for name in taken}

    def catch_up(self, former: ParameterSet) -> None:
        """Request what was requested of the former step after its values were taken over."""
        with former._lock:  # whoever changes the former's values after that finds the new step, too
            latest = former.asked()
            declared = former.declared
            late = {name: declared[name].unpack_bytes(latest) for name in self._taken}
            missed = {name: value for name, value in late.items() if value != self._taken[name]}
            self._before, self._taken = None, {}
            self.change_like(former, missed)

    def take_back(self, successor: ParameterSet) -> None:
        """Repeat the changes that were requested of the step on trial, which had taken over the values of this one."""
        asked, own = successor.asked(), self.asked()
        changes, seen = {}, {}
        for name, begun in successor._begun.items():
            value = seen[name] = successor.declared[name].unpack_bytes(asked)
            if value not in (begun, self.declared[name].unpack_bytes(own)):
                changes[name] = value
        self.change_like(successor, changes)
        successor._begun = seen  # a second call is about what was requested since

    def change_like(self, former: ParameterSet, changes: Mapping[str, bytes]) -> None:
        """Request packed values of another step's parameters, as far as this step has and accepts them."""
        values = {}
        for name, packed in changes.items():
            one, other = self.declared.get(name), former.declared[name]
            if one is not None and (one.dtype, one.shape) == (other.dtype, other.shape):
                with suppress(ConfigError):  # outside of the limits of this step
                    values[name] = one.pack(other._replace(offset=0).unpack(packed))
        if values:
            self.change(values)

    def open(self, name: str, *, is_shared: bool, is_tunable: bool, is_later: bool = False) -> ParameterRun:
        """Begin a run: map its block, with the present values in it and in the fields of the step.

        With `is_later` the loop runs already, with another step; it sets the fields when it takes this one over.

        Raises
        ------
        OSError
            If the kernel refuses the block.
        """
        import json  # here, because importing rtloop has to be quick

        with self._lock:
            self.name = name
            recorded, self._recorded = self._recorded, None
            if recorded is not None:
                self._values[:] = merge(self.declared, bytes(self._values), self._pack(recorded.values))
                self._writer = _writer_of(recorded)
            values = bytes(self._values) + bytes(-len(self._values) % 8)
            items = [(one, self._addresses[one.name]) for one in self.declared.values()]
            text = json.dumps(describe_parameters(name, self.declared)).encode()
            writer = self._writer or this_writer()
            self._run = ParameterRun(
                items, values, writer, text, name, is_shared=is_shared, is_tunable=is_tunable, is_later=is_later
            )
            self._fresh.clear()
            self._last, self._told = None, (0, 0)
            return self._run

    def close(self) -> None:
        """End a run, after its thread has ended: keep the values that were requested last."""
        with self._lock:
            run = self._run
            if run is None:
                return
            try:
                if run.is_wiped:
                    return
                self._last = run.used()
                if self._is_retired:
                    self._close_retired(run)
                else:
                    self._store(self._asked_of(run))
                    run.end()
            finally:
                self._run = None
                run.close()

    def retire(self) -> None:
        """Note that another step has replaced this one: :meth:`close` leaves the fields alone.

        They may be those of the step that goes on, if both have the same data.
        """
        with self._lock:
            self._is_retired = self._run is not None
            if self._run is not None:
                records, lost = self._run.records()
                self._told = lost + len(records), self._run.used().refused

    def recall(self) -> None:
        """Undo :meth:`retire`: the loop has gone back to this step."""
        with self._lock:
            self._is_retired = False

    def _close_retired(self, run: ParameterRun) -> None:
        with suppress(StateError, OSError), write_lock(run.fd, self.name):
            run.end()  # a writer of another process that comes later finds this
        run.end()  # also if a writer was stopped in the middle of a set
        self._values[:] = self._asked_of(run)[: len(self._values)]
        self._is_retired = False

    def discard(self) -> None:
        """Undo a beginning that the loop has not taken over."""
        with self._lock:
            run, self._run, self._recorded = self._run, None, None
            if run is not None:
                run.end()
                run.close()
            if self._before is not None:
                self._values[:], self._before = self._before, None

    def _store(self, values: bytes) -> None:
        self._values[:] = values[: len(self._values)]
        for name, one in self.declared.items():
            assign(self._addresses[name], values[one.offset : one.offset + one.size])

    @staticmethod
    def _asked_of(run: ParameterRun) -> bytes:
        """Return the set that was published last, or the one in use if a hostile writer has made that invalid."""
        asked = run.asked().values
        return asked if run.is_sound(asked) else run.used().values

    def asked(self) -> bytes:
        """Return the set that was requested last."""
        with self._lock:
            return bytes(self._values) if self._present is None else self._asked_of(self._present)

    def used(self) -> Used | None:
        """Return the set that the loop uses, or has used last; None before the first run."""
        with self._lock:
            return self._last if self._present is None else self._present.used()

    def refused(self) -> int:
        """Return the number of sets that the loop has refused, without those that were reported before."""
        used = self.used()
        return 0 if used is None else used.refused - self._told[1]

    def change(self, changes: Mapping[str, bytes], writer: Writer | None = None) -> None:
        """Request a set with some values changed. They are packed already, and therefore within their limits.

        Raises
        ------
        StateError
            If this process is a fork of the one that runs the loop.
        OSError
            If the block cannot be read or locked.
        """
        with self._lock:
            writer = writer or this_writer()
            run = self._present
            if run is None:
                self._store(merge(self.declared, bytes(self._values), changes))
                self._writer = writer
                return
            if run.is_inherited:
                raise StateError(
                    f"{self.name} runs in process {run.pid}, and this process ({os.getpid()}) is a fork of it: change "
                    f"its parameters with rtloop.connect({self.name!r}, pid={run.pid}).parameters"
                )
            with write_lock(run.fd, self.name):
                run.publish(merge(self.declared, self._asked_of(run), changes), writer)
            if self._run is not run:  # a signal handler has ended the run meanwhile
                self.change(changes, writer)

    @property
    def _present(self) -> ParameterRun | None:
        """Parameters of the present run; None without one, and in a child that was forked from a simulated one."""
        return None if self._run is None or self._run.is_wiped else self._run

    @property
    def run(self) -> ParameterRun | None:
        """Parameters of the present run."""
        return self._run

    def plan_replay(self, changes: Iterable[ParameterChange]) -> tuple[list[int], list[bytes]]:
        """Take the values that a recorded run began with, and return its changes: cycles, and places of the block.

        Raises
        ------
        KeyError
            If there is no such parameter.
        ConfigError
            If a value is invalid, or the record does not go back to the beginning of its run.
        """
        first, *others = (ParameterChange(*change) for change in changes)
        self._check_first(first)
        with self._lock:
            self._check_idle(next(iter(first.values)))
            self.change(self._pack(first.values), _writer_of(first))
            return self._plan(self.asked() + bytes(-len(self._values) % 8), others)

    def plan_replay_of_swap(self, changes: Iterable[ParameterChange], cycle: int) -> tuple[list[int], list[bytes]]:
        """Do the same for a step that replaces another before `cycle`, with the values that it then began with."""
        first, *others = [ParameterChange(*change) for change in changes] or [ParameterChange(cycle, {})]
        if self.declared and first.cycle != cycle:
            raise ConfigError(
                f"parameters: no change begins the step of cycle {cycle}: the earliest ones were lost, or the swaps "
                "are not those of the run"
            )
        self._check_first(first)
        with self._lock:
            self._check_idle(next(iter(self.declared), ""))
            self._recorded = first
            packed = merge(self.declared, bytes(self._values), self._pack(first.values))
            return self._plan(packed + bytes(-len(packed) % 8), others)

    def _check_first(self, first: ParameterChange) -> None:
        lacking = self.declared.keys() - first.values.keys()
        if lacking:
            raise ConfigError(
                f"parameters: the first change does not set {', '.join(sorted(lacking))}: either the changes are of "
                "another loop, or the earliest ones were lost, so that they do not go back to the start of the run"
            )

    def _plan(self, values: bytes, others: Iterable[ParameterChange]) -> tuple[list[int], list[bytes]]:
        cycles, places = [], []
        for change in others:
            values = merge(self.declared, values, self._pack(change.values))
            cycles.append(change.cycle)
            places.append(pack_place(_writer_of(change), values))
        return cycles, places

    def _pack(self, values: Mapping[str, Any]) -> dict[str, bytes]:
        unknown = values.keys() - self.declared.keys()
        if unknown:
            raise KeyError(f"{self.name} has no parameter {', '.join(sorted(map(repr, unknown)))}")
        return {name: self.declared[name].pack(value) for name, value in values.items()}

    def changes(self) -> tuple[tuple[ParameterChange, ...], int]:
        """Return the record of the present run, oldest first, and the number of earlier changes that are lost."""
        with self._lock:
            run = self._present
            if run is None:
                return (), 0
            records, lost = run.records()
        gone = max(0, self._told[0] - lost)
        records, lost = records[gone:], max(0, lost - self._told[0])
        changes = []
        before: bytes | None = None
        for cycle, writer, values in records:
            changed = {
                name: plain_value(one.unpack(values))
                for name, one in self.declared.items()
                if before is None or one.unpack_bytes(values) != one.unpack_bytes(before)
            }
            changes.append(ParameterChange(cycle, changed, writer.pid, writer.tid, writer.host, writer.program))
            before = values
        return tuple(changes), lost


def describe_parameters(loop: str, declared: Mapping[str, Parameter]) -> dict[str, Any]:
    """Return the description of all parameters, as it is in their block."""
    return {"loop": loop, "parameters": [one.to_dict() for one in declared.values()]}


@contextmanager
def acting_for(writer: Writer) -> Iterator[None]:
    """Record the changes that this thread makes in the block as those of another writer, for whom it acts."""
    _acting.writer = writer
    try:
        yield
    finally:
        _acting.writer = None


def this_writer(program: str | None = None) -> Writer:
    """Return this thread as the writer of a set, or the one for whom it acts."""
    acting: Writer | None = getattr(_acting, "writer", None)
    if acting is not None:
        return acting
    if program is None:
        name = name_of_this_thread()
        path = sys.argv[0] if sys.argv else ""
        path = os.path.dirname(path) if os.path.basename(path) == "__main__.py" else path
        program = os.path.basename(path) if path not in ("", "-c") else "python"
        if name and threading.main_thread().ident != threading.get_ident():
            program = f"{program}: {name}"
    return Writer(os.getpid(), threading.get_native_id(), time.time_ns(), uname().nodename, program)


def _writer_of(change: ParameterChange) -> Writer:
    return Writer(change.pid, change.tid, 0, change.host, change.program)

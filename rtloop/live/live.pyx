"""Live: the parameters and signals of one loop, and what a run of it acquires for them."""

from rtloop.headers.live cimport rt_live_init

import os

from rtloop.errors import ConfigError, SetupError
from rtloop.live.declared_parameters import element
from rtloop.live.parameter_set import ParameterSet
from rtloop.live.signal_set import SignalSet
from rtloop.live.signals import Signals
from rtloop.memory.own_locks import lock_range
from rtloop.system import refusal_cause
from rtloop.units import format_size


# Changes of parameters that are kept of the former steps of a run.
_MOST_CHANGES = 4096


def add_figures(first, second):
    """Add the figures of two steps of one run, which are dicts as of :meth:`Live.figures`; either may be empty."""
    if not first or not second:
        return first or second
    changes = first["parameter_changes"] + second["parameter_changes"]
    gone = max(0, len(changes) - _MOST_CHANGES)
    return {
        "parameter_changes": changes[gone:],
        "lost_parameter_changes": first["lost_parameter_changes"] + second["lost_parameter_changes"] + gone,
        "refused_parameter_sets": first["refused_parameter_sets"] + second["refused_parameter_sets"],
    }


cdef class Live:
    """Live(settings)

    Parameters and signals of one loop, made when the first is declared.

    Parameters
    ----------
    settings : Settings
        Settings of the loop.

    Attributes
    ----------
    parameters : ParameterSet
        The parameters.
    signals : SignalSet
        The signals.
    samples : Signals
        The samples, as readers in this process see them.
    """

    def __init__(self, settings):
        self._parameters = ParameterSet(settings.name)
        self._signals = SignalSet(settings)
        self._samples = Signals(self._signals)
        self._run = None
        self._is_later = False

    @property
    def parameters(self):
        """The parameters."""
        return self._parameters

    @property
    def signals(self):
        """The signals."""
        return self._signals

    @property
    def samples(self):
        """The signals, as the readers in this process use them."""
        return self._samples

    def check_field(self, what, end, made, address):
        """Check that a field of an object that ends at `end` is not declared with a type that it does not have.

        Nothing tells the type of a field, but fields do not overlap, and none of them passes the end of its object.

        Parameters
        ----------
        what : str
            ``"parameter"`` or ``"signal"``.
        end : int
            Address behind the object.
        made : Parameter or Signal
            The declaration.
        address : int
            Address of the field.

        Raises
        ------
        ConfigError
            If it passes the end, or begins within another field of another type or the other way round, and one of
            them is a float.
        """
        kind, name = made.dtype.str[1:], made.name
        hint = f"a C float needs its type, self.{what}({name!r}, ..., 'f4'), because the default is 'f8'"
        if address < end < address + made.size:
            raise ConfigError(
                f"the {what} {name!r} is declared as {made.size} bytes of {kind}, but its object ends before; {hint}"
            )
        for others, declared in (("parameter", self._parameters), ("signal", self._signals)):
            for other, at in declared.places():
                apart = address - at
                if apart == 0 or not -made.size < apart < other.size:
                    continue  # one field may be shown twice, as another type as well
                one, two = element(made.dtype), element(other.dtype)
                if "f" in (one.kind, two.kind) and (one != two or apart % one.itemsize):
                    raise ConfigError(
                        f"the {what} {name!r}, declared as {kind}, is {abs(apart)} bytes "
                        f"{'after' if apart > 0 else 'before'} the {others} {other.name!r}, declared as "
                        f"{other.dtype.str[1:]}, and they overlap: one of them has another type; {hint}"
                    )

    def acquire(self, settings, stack):
        """Begin a run on a thread: map, seal and lock the blocks. Returns the grants."""
        rt_live_init(self._state)
        grants = self._acquire_parameters(settings, stack) if self.parameters.declared else []
        return grants + (self._acquire_signals(settings, stack) if self.signals.declared else [])

    def open_simulated(self, settings, stack):
        """Begin a run in virtual time, which no other process sees."""
        rt_live_init(self._state)
        if self.parameters.declared:
            self._open_parameters(settings, stack, is_shared=False)
        if self.signals.declared:
            self.signals.block.attach(<size_t>self._state)

    def stage(self, settings, stack, former, is_simulated, keep="all"):
        """Do the same for a step that a running loop is to go on with, in this object's own state.

        `former` is the Live of the present step, None without one. Returns the grants. If the loop does not go on with
        this step, :meth:`forget` comes before the stack is closed.
        """
        self._is_later = True
        if former is not None and self.parameters.declared:
            self.parameters.take_over(former.parameters, keep)
        try:
            if is_simulated:
                self.open_simulated(settings, stack)
                return []
            return self.acquire(settings, stack)
        except BaseException:
            self.forget()
            raise

    def forget(self):
        """Undo :meth:`stage`: the loop has not gone on with this step."""
        self.parameters.discard()
        self._is_later = False

    def move(self, size_t state):
        """Note where the state of the loop that has this step is now: an rt_live_t; 0 if no loop has it."""
        self._state = <rt_live_t *>state
        self._is_later = False

    def retire(self):
        """End the part of this step in a run that goes on with another one, which has the state by now."""
        self.move(0)
        self.parameters.retire()

    def recall(self):
        """Return to the run in which this step was retired, because the step in its place has failed its trial."""
        self.parameters.recall()

    def _open_parameters(self, settings, stack, is_shared):
        run = self.parameters.open(settings.name, is_shared=is_shared, is_tunable=settings.tunable,
                                   is_later=self._is_later)
        stack.callback(self._close_parameters)
        run.attach(<size_t>self._state)
        self._run = run
        return run

    def _close_parameters(self):
        self.parameters.close()
        if self._state is not NULL:
            rt_live_init(self._state)
        self._run = None

    def _acquire_parameters(self, settings, stack):
        """Open the block. Lock it and the private memory that the loop trusts, as the telemetry block is locked."""
        hidden = None
        count = len(self.parameters.declared)
        try:
            run = self._open_parameters(settings, stack, is_shared=True)
        except OSError as error:
            hidden = _hide("parameters", count, error, settings)
            run = self._open_parameters(settings, stack, is_shared=False)
        block, own = run.ranges
        detail = f"{count} parameters, other processes can {'change' if settings.tunable else 'read'} them"
        shared = lock_range(settings.lock_memory, stack, "parameters", detail, *block, True)
        detail = f"descriptors, and a record of {format_size(run.own_bytes)}"
        return [hidden or shared, lock_range(settings.lock_memory, stack, "parameter state", detail, *own, True)]

    def _acquire_signals(self, settings, stack):
        """Attach the signals' block, which is made once and kept, to the loop; lock it and the sampler."""
        count = len(self.signals.declared)
        try:
            block = self.signals.block
        except OSError as error:
            raise SetupError(error.errno, f"the memory of {count} signals: {error.strerror}") from error
        block.attach(<size_t>self._state)
        shared, own = block.ranges
        detail = f"{count} signals, the last {settings.signals_capacity:,} samples"
        locked = lock_range(settings.lock_memory, stack, "signals", detail, *shared, True)
        if block.inode is None:
            locked = _hide("signals", count, OSError(block.refusal, os.strerror(block.refusal)), settings)
        return [
            locked,
            lock_range(settings.lock_memory, stack, "sampler", "addresses of the signals", *own, True),
        ]

    @property
    def ranges(self):
        """Addresses and sizes of what each grant has locked."""
        run, found = self._run, {}
        if run is not None:
            found |= {"parameters": run.ranges[0], "parameter state": run.ranges[1]}
        if self.signals.declared:
            found |= dict(zip(("signals", "sampler"), self.signals.block.ranges, strict=True))
        return found

    @property
    def inodes(self):
        """Inodes of the blocks' files, by which other processes find them."""
        run, found = self._run, {}
        if run is not None:
            found["parameters"] = run.inode
        if self.signals.declared:
            found["signals"] = self.signals.block.inode
        return {kind: inode for kind, inode in found.items() if inode is not None}

    def figures(self):
        """Return the part of the run's Stats that is about parameters."""
        changes, lost = self.parameters.changes()
        return {
            "parameter_changes": changes,
            "lost_parameter_changes": lost,
            "refused_parameter_sets": self.parameters.refused(),
        }


def _hide(kind, count, error, settings):
    """Return the grant for parameters or signals that only this process sees; raise SetupError in strict mode."""
    subject = f"the memory of {count} {kind}"
    return refusal_cause.hidden_grant(kind, f"{count}, shared", subject, error, is_strict=settings.strict)

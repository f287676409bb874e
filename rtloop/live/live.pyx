"""Live: the parameters and signals of one loop, and what a run of it acquires for them."""

from rtloop.headers.live cimport rt_live_init

from rtloop.errors import SetupError
from rtloop.live.parameter_set import ParameterSet
from rtloop.memory.own_locks import lock_range
from rtloop.system import refusal_cause
from rtloop.system.grant import Grant
from rtloop.units import format_size


cdef class Live:
    """Live(name)

    Parameters and signals of one loop, made when the first is declared.

    Parameters
    ----------
    name : str
        Name of the loop.

    Attributes
    ----------
    parameters : ParameterSet
        The parameters.
    """

    def __init__(self, name):
        self._parameters = ParameterSet(name)
        self._run = None

    @property
    def parameters(self):
        """The parameters."""
        return self._parameters

    def acquire(self, settings, stack):
        """Begin a run on a thread: map, seal and lock the blocks. Returns the grants."""
        rt_live_init(self._state)
        return self._acquire_parameters(settings, stack) if self.parameters.declared else []

    def open_simulated(self, settings, stack):
        """Begin a run in virtual time, which no other process sees."""
        rt_live_init(self._state)
        if self.parameters.declared:
            self._open_parameters(settings, stack, is_shared=False)

    def _open_parameters(self, settings, stack, is_shared):
        run = self.parameters.open(settings.name, is_shared=is_shared, is_tunable=settings.tunable)
        stack.callback(self._close_parameters)
        run.attach(<size_t>self._state)
        self._run = run
        return run

    def _close_parameters(self):
        self.parameters.close()
        rt_live_init(self._state)
        self._run = None

    def _acquire_parameters(self, settings, stack):
        """Open the block. Lock it and the private memory that the loop trusts, as the telemetry block is locked."""
        hidden = None
        count = len(self.parameters.declared)
        try:
            run = self._open_parameters(settings, stack, is_shared=True)
        except OSError as error:
            why, fix = refusal_cause.explain("memfd_create", error.errno or 0)
            if settings.strict or not fix:
                text = f"the memory of {count} parameters: {error.strerror}" + (f"; {why}\n{fix}" if fix else "")
                raise SetupError(error.errno, text) from error
            detail = f"{why}; no other process can see or change them"
            hidden = Grant("parameters", f"{count}, shared", "of this process alone", False, detail, fix,
                           error.errno or 0)
            run = self._open_parameters(settings, stack, is_shared=False)
        block, own = run.ranges
        detail = f"{count} parameters, other processes can {'change' if settings.tunable else 'read'} them"
        shared = lock_range(settings.lock_memory, stack, "parameters", detail, *block, True)
        detail = f"descriptors, and a record of {format_size(run.own_bytes)}"
        return [hidden or shared, lock_range(settings.lock_memory, stack, "parameter state", detail, *own, True)]

    @property
    def ranges(self):
        """Addresses and sizes of what each grant has locked."""
        run = self._run
        return {} if run is None else {"parameters": run.ranges[0], "parameter state": run.ranges[1]}

    @property
    def inodes(self):
        """Inodes of the blocks' files, by which other processes find them."""
        run = self._run
        return {} if run is None or run.inode is None else {"parameters": run.inode}

    def figures(self):
        """Return the part of the run's Stats that is about parameters."""
        changes, lost = self.parameters.changes()
        used = self.parameters.used()
        return {
            "parameter_changes": changes,
            "lost_parameter_changes": lost,
            "refused_parameter_sets": 0 if used is None else used.refused,
        }

"""SwapRequest: what is asked of a loop's thread for a swap, and what it answers (include/rtloop/swap.h)."""

from rtloop.headers.loop cimport (
    RT_COMMAND_SWAP,
    RT_INCIDENT_CODE,
    RT_INCIDENT_GUARD,
    RT_INCIDENT_LATE,
    RT_INCIDENT_NONFINITE,
    RT_INCIDENT_OVERRUN,
    RT_SWAP_ASKED,
    RT_SWAP_DONE,
    RT_SWAP_NONE,
    RT_SWAP_ON_TRIAL,
    RT_SWAP_REFUSED,
    RT_SWAP_REVERTED,
    RT_SWAP_TAKEN,
    rt_floats_t,
    rt_swap_ask,
    rt_swap_state,
    rt_swap_t,
    rt_swap_withdraw,
)
from rtloop.loop.thread cimport LoopThread

from array import array

from rtloop.loop.thread import ENDS

_STATES = {RT_SWAP_NONE: None, RT_SWAP_ASKED: "asked", RT_SWAP_TAKEN: "taken", RT_SWAP_DONE: "done",
           RT_SWAP_REFUSED: "refused", RT_SWAP_ON_TRIAL: "on trial", RT_SWAP_REVERTED: "reverted"}
# Incidents that a trial can watch for, as a user names them.
INCIDENTS = {"overrun": RT_INCIDENT_OVERRUN, "guard": RT_INCIDENT_GUARD, "late": RT_INCIDENT_LATE,
             "nonfinite": RT_INCIDENT_NONFINITE}


cdef class SwapRequest:
    """Request that the thread of a running loop go on with the step of another loop.

    It must exist until the thread has answered, and until the end of the trial if there is one.

    Parameters
    ----------
    thread : LoopThread
        The running loop's.
    """

    def __init__(self, LoopThread thread):
        self._thread = thread

    def ask(self, LoopThread other, successor, former, size_t acting, trial):
        """Ask the thread to go on with the step of another loop, which has staged it.

        `acting` is the address of the object that the callbacks get, `successor` or one in front of it. `trial` is the
        number of cycles that the new step is on trial for, and the incidents to watch for; None: no trial.
        """
        cdef LoopThread thread = self._thread
        cdef rt_swap_t *swap = &thread.rt.swap
        cycles, incidents = (0, ()) if trial is None else trial
        swap.trial, swap.watched = cycles, sum(INCIDENTS[name] for name in incidents)
        swap.floats = self._find_floats(other) if "nonfinite" in incidents else NULL
        swap.self, swap.successor, swap.former = <void *>acting, <void *>successor, <void *>former
        swap.take_over = thread._take_over
        swap.live = NULL if other.live is None else &other.rt.live
        rt_swap_ask(swap)
        thread.send(RT_COMMAND_SWAP)

    cdef const rt_floats_t *_find_floats(self, LoopThread other) except? NULL:
        """Return the floating-point numbers among the signals of the other loop, NULL if there are none."""
        if other.live is None:
            return NULL
        doubles, floats, halves = [array("Q", addresses) for addresses in other.live.signals.floats()]
        self._float_addresses = doubles, floats, halves
        cdef size_t first = doubles.buffer_info()[0]
        cdef size_t second = floats.buffer_info()[0]
        cdef size_t third = halves.buffer_info()[0]
        self._floats.doubles, self._floats.double_count = <const double **>first, len(doubles)
        self._floats.floats, self._floats.float_count = <const float **>second, len(floats)
        self._floats.halves, self._floats.half_count = <const void **>third, len(halves)
        return &self._floats if doubles or floats or halves else NULL

    def state(self):
        """Return how far the thread is: None, ``"asked"``, ``"taken"``, ``"done"``, ``"refused"``, ``"on trial"`` or
        ``"reverted"``."""
        return _STATES[rt_swap_state(&self._thread.rt.swap)]

    def answer(self):
        """Return the index of the new step's first cycle, and the code that take_over() has returned."""
        return self._thread.rt.swap.cycle, self._thread.rt.swap.code

    def revert_answer(self):
        """Return the index of the first cycle of the former step after a trial, and the reason."""
        swap = self._thread.rt.swap
        found = [name for name, bit in INCIDENTS.items() if swap.incidents & bit]
        if swap.incidents & RT_INCIDENT_CODE:
            found.insert(0, f"{ENDS[swap.incident_end]} returned {swap.incident_code}")
        return swap.reverted, ", ".join(found)

    def withdraw(self):
        """Withdraw the request. Returns True, or False if the thread has taken it."""
        return rt_swap_withdraw(&self._thread.rt.swap) != 0

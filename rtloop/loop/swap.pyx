"""Swap: a running loop goes on with the step of another loop object.

The control thread stages everything that the new step needs, and asks; the loop's thread takes the step over between
two cycles (include/rtloop/swap.h). From the answer on, both objects are handles of the one loop.
"""

from rtloop.headers.loop cimport RT_PHASE_DONE
from rtloop.loop.lifecycle cimport Control

import time
from contextlib import ExitStack, contextmanager, suppress
from math import ceil

from rtloop.errors import ConfigError, StateError, SwapError
from rtloop.loop import resources
from rtloop.loop.outcome import run_warnings
from rtloop.loop.outcome.failure import add_note
from rtloop.layouts import check_casts
from rtloop.loop.swap_request import INCIDENTS, SwapRequest
from rtloop.process.interpreter import with_filters_of_caller
from rtloop.process.nap import nap
from rtloop.process.signal_shield import shielded, shielded_method
from rtloop.stats.figures import Swap
from rtloop.system.grant_errors import setup_errors
from rtloop.units import format_duration, format_size, parse_duration, show

# Interval at which the caller looks for the answer: the loop's thread makes no system call to wake it.
_LOOK_S = 0.0005
# Longest wait for a check of the watchdog, which takes microseconds unless it has found the loop stuck.
_WATCHDOG_S = 0.1
_PERIODS = 2


class StepChange:
    """One swap of a loop, from the request to the end of the former step.

    Its outcome is None until the loop's thread has answered, then ``"done"``, ``"refused"``, ``"withdrawn"`` or
    ``"ended"``: the run had ended before. :meth:`settle` determines it; the caller of the swap calls it, and whoever
    releases the run. After a swap with a trial, the keeper calls it to determine how the trial has ended.

    Parameters
    ----------
    control : Control
        Of the running loop.
    owner, successor : RTLoop
        The object that the loop was made as, and the one whose step it is to go on with.
    own : Control
        The successor's own.
    hand_over : callable
        Makes an object a handle of a loop: ``hand_over(loop, control)``. Returns the former control.
    acting : callable
        Returns the object that the callbacks get for the successor, and its address.
    keep : str
        The parameters that keep their values: ``"all"`` or ``"changed"``.
    trial : tuple, optional
        Number of cycles that the successor is on trial for, and the names of the incidents that end it.
    """

    def __init__(self, Control control, owner, successor, Control own, hand_over, acting, keep="all", trial=None):
        self.trial, self.is_on_trial, self._back = trial, False, None
        self.control, self.successor, self.own = control, successor, own
        self.owner = owner
        self.former = owner if control.step is None else control.step
        self.outcome = None
        self.keep = keep
        self.cycle = self.code = 0
        self._hand_over = hand_over
        self._make_acting, self._acting = acting, None
        self._stack, self._undo = ExitStack(), None
        self._grants, self._former_live = [], None
        self._made, self._before, self._raised = None, None, None
        self._is_finished = self._is_staged = self._is_asked = self._is_deciding = self._has_caught_up = False
        self._warn = with_filters_of_caller(run_warnings.warn_reverted)
        self.run, self._request = control.runs, SwapRequest(control.thread)

    def stage(self):
        """Acquire what the new step needs. On an exception nothing stays acquired."""
        cdef Control control = self.control
        cdef Control own = self.own
        settings, grants = control.settings, []
        is_simulated = control.is_simulated()
        try:
            with setup_errors(settings.name, grants):
                grants += own.thread.stage(settings, self._stack, control.thread.live, is_simulated, self.keep)
                if not is_simulated:
                    resources.raise_if_refused(settings, grants)
        except BaseException:
            self._give_up()
            raise
        self._grants, self._is_staged = grants, True

    @shielded_method
    def drop(self):
        """Release what was staged for a swap that was not asked for; do nothing to one that was."""
        if self._is_staged and not self._is_asked:
            self.outcome, self._is_staged = "withdrawn", False
            self._give_up()

    @contextmanager
    def _decide(self):
        """Hold the loop's lock, and then release what was staged for a swap that is not made.

        The release is not under the lock, because the keeper does it, and may need the lock first to reap this loop.
        For the same reason the main thread never holds the lock here: a signal handler may interrupt it, and wait for
        the end of this loop.
        """
        cdef Control control = self.control
        with control._lock:
            self._is_deciding = True
            try:
                yield
            finally:
                self._is_deciding = False
            is_given_up = self._is_staged and self.outcome not in (None, "done")
            if is_given_up:
                self._is_staged = False
        if is_given_up:
            self._give_up()

    @shielded_method
    def ask(self):
        """Ask the loop's thread to take the step over.

        Raises
        ------
        StateError
            If the loop has ended.
        """
        cdef Control control = self.control
        cdef Control own = self.own
        with self._decide():
            if _is_running(control):
                self.run = control.runs
                self._acting, address = self._make_acting(self.successor, control, own)
                self._hand_over(self.successor, control)
                control.change, control.trial_error, self._is_asked = self, None, True
                self._request.ask(own.thread, self.successor, self.former, address, self.trial)
            else:
                self.outcome = "ended"
        if self.outcome == "ended":
            raise _ended(control)

    def settle(self, must_answer=False):
        """Find out the outcome, if there is one; with `must_answer` the run has ended, and there is one."""
        if must_answer or self._has_news():
            self._settle(must_answer)

    def _has_news(self):
        """Return False if there is nothing to find out: without the lock, because most looks are in vain."""
        cdef Control control = self.control
        is_on_trial = self.is_on_trial
        if is_on_trial or self.outcome is None:
            state = self._request.state() if self.run == control.runs else None
            if state not in (("on trial",) if is_on_trial else ("asked", "taken")):
                return True
        return self._is_deciding  # last: another thread may be finding it out, and has not set all attributes

    @shielded_method
    def _settle(self, must_answer):
        cdef Control control = self.control
        with self._decide():
            if self.outcome is not None and not self.is_on_trial:
                return
            state = self._request.state() if self.run == control.runs else None
            if self.outcome is None and state in ("done", "on trial", "reverted"):
                self._commit()
                self.is_on_trial = self.trial is not None
            elif self.outcome is None and (state == "refused" or must_answer or state is None):
                self.cycle, self.code = self._request.answer()
                self._back_out("refused" if state == "refused" else "ended")
            if self.is_on_trial and (state != "on trial" or must_answer):
                self.is_on_trial = False
                if state == "reverted":
                    self._revert()

    @shielded_method
    def withdraw(self, outcome="withdrawn"):
        """Withdraw the request, if the loop's thread has not taken it."""
        with self._decide():
            if self.outcome is None and self._request.withdraw():
                self._back_out(outcome)

    def _back_out(self, outcome):
        cdef Control control = self.control
        self.outcome = outcome
        control.change = None
        self._hand_over(self.successor, self.own)

    def _give_up(self):
        """Release what was staged: the loop does not go on with this step."""
        cdef Control own = self.own
        try:
            own.thread.forget()
            self._stack.close()
        finally:
            own.abandon()

    def _commit(self):
        """Note that the loop goes on with the new step."""
        cdef Control control = self.control
        cdef Control own = self.own
        thread = control.thread
        self.outcome = "done"
        self.cycle, self.code = self._request.answer()
        self._former_live = thread.live
        self._made = Swap(self.cycle, name_of(self.former), name_of(self.successor))
        thread.note_swap(self._made)
        parts = thread.parts
        self._undo, grants = thread.use(own.thread.parts, self._stack, self._grants)
        self._before = control.step, control.step_own, control.acting, parts, grants
        control.step, control.step_own, control.acting = self.successor, own, self._acting
        if self.trial is None:
            self._part_with_former()

    def _part_with_former(self):
        """Make the former step a loop of its own again, unless it is the one that was started."""
        _, former_own, *_ = self._before
        if former_own is not None:
            give_back(self.former, former_own, self._hand_over)

    def _revert(self):
        """Note that the loop goes on with the former step, because the new one has not passed its trial."""
        cdef Control control = self.control
        thread = control.thread
        cycle, reason = self._request.revert_answer()
        self._back = Swap(cycle, self._made.successor, self._made.former, reason)
        thread.note_swap(self._back)
        control.step, control.step_own, control.acting, parts, grants = self._before
        self._undo, _ = thread.use(parts, self._undo, grants)
        if self._former_live is not None:
            self._former_live.recall()
            self._take_back()  # under the lock: whoever changes the former's values after that must not be overruled
        self._raised, control.trial_error = control.trial_error, None
        give_back(self.successor, self.own, self._hand_over)

    def _take_back(self):
        """Request of the former step what was requested of the one on trial."""
        if self.own.thread.live is not None:
            with suppress(StateError):  # a writer was stopped in the middle of a set
                self._former_live.parameters.take_back(self.own.thread.live.parameters)

    @property
    def former_parameters(self):
        """Parameters of the former step while the new one is on trial, None if there are none."""
        return self._former_live.parameters if self.is_on_trial and self._former_live is not None else None

    def catch_up(self):
        """Request of the new step the changes that the former one got meanwhile. A second call does nothing."""
        cdef Control control = self.control
        with control._lock:
            if self._has_caught_up or self.outcome != "done":
                return
            self._has_caught_up = True
        new, former = self.own.thread.live, self._former_live
        if new is not None and former is not None and self._back is None:
            new.parameters.catch_up(former.parameters)

    def finish(self):
        """Release the resources of the former step, and call its released(). A second call does nothing.

        During a trial this does nothing. If the loop has gone back after it, this releases the new step.
        """
        cdef Control control = self.control
        self.catch_up()
        with control._lock:
            if self._is_finished or self.outcome != "done" or self.is_on_trial:
                return
            self._is_finished = True
            control.change = None
            if self.trial is not None and self._back is None:
                self._part_with_former()
        gone = self.former if self._back is None else self.successor
        gone_own = self.own if self._back is not None else self._before[1]
        deadline = time.monotonic() + _WATCHDOG_S
        while control.thread.is_watchdog_at_work():
            if time.monotonic() > deadline:  # it has tripped, and safe() of the former step has not returned
                control.kept.append(gone)
                break
            nap(_LOOK_S)
        try:
            if self._undo is not None:
                shielded(self._undo.close)
        finally:
            if gone_own is not None:  # None: the step that the loop was made as
                gone_own.is_releasing = False
        if self._back is not None and self._former_live is not None:
            self._take_back()  # a process may have changed them until now
        gone.released()
        if self._back is not None:
            run_warnings.warn_off_keeper(self._warn, control.settings.name, self._made, self._back, self._raised)


def give_back(loop, Control own, hand_over, is_releasing=True):
    """Make a loop object that was a step of another loop a loop of its own again.

    With `is_releasing` a start of it waits until the caller has released what it had as a step of the other loop.
    """
    own.is_releasing = is_releasing
    hand_over(loop, own)
    own.thread.take_back()
    own.abandon()


def remember(Control control):
    """Return what :func:`restore` needs to give a loop its present step again."""
    return control.step, control.step_own, control.acting, control.thread.parts


def restore(Control control, remembered, hand_over):
    """Give a loop that does not run the step that it had when :func:`remember` was called."""
    step, own, acting, parts = remembered
    if control.step is step:
        return
    give_back(control.step, control.step_own, hand_over, is_releasing=False)
    control.step, control.step_own, control.acting = step, own, acting
    control.thread.take_parts(parts)
    if step is not None:
        hand_over(step, control)
        own.claim(None, None)


def name_of(loop):
    """Return the name of a step: of its function, or of its class."""
    function = getattr(loop, "callable", None) or getattr(loop, "callback", None)
    return str(getattr(function, "__name__", None) or type(loop).__name__)


def swap(Control control, owner, successor, Control own, hand_over, acting, populate, timeout_ns, keep="all",
         trial=(None, ())):
    """Implement RTLoop.swap. Returns the index of the new step's first cycle."""
    control.check_not_in_child()
    if control.is_on_own_thread():
        raise StateError(f"{control.settings.name} runs on this very thread, which cannot wait for its own swap")
    trial = parse_trial(control, *trial)
    if control.is_simulated() and control.is_under_way():
        raise StateError(f"{control.settings.name} runs in virtual time: give simulate(swaps={{cycle: successor}})")
    if not control.swapping.acquire(False):
        raise StateError(f"another swap of {control.settings.name} is under way: wait for it to return")
    try:
        earlier = control.change  # one whose caller has given up waiting
        if earlier is not None:
            earlier.settle()
            earlier.finish()
        check_no_change(control)
        change = begin(control, owner, successor, own, hand_over, acting, populate, keep, trial)
        return _await(change, timeout_ns)
    finally:
        control.swapping.release()


def check_no_change(Control control):
    """Raise StateError if a swap is under way, or the step in place is on trial."""
    change = control.change
    if change is not None and change.is_on_trial:
        raise StateError(
            f"{name_of(change.successor)} is on trial in {control.settings.name}, up to cycle "
            f"{change.cycle + change.trial[0]:,}: wait until loop.on_trial is False"
        )
    if change is not None:
        raise StateError(f"another swap of {control.settings.name} is under way: its take_over() has not returned")


def parse_trial(Control control, trial, revert_on):
    """Return a trial as a number of cycles and names of incidents; None without a trial.

    Raises
    ------
    ConfigError
        If a value is invalid.
    """
    names = ", ".join(map(repr, INCIDENTS))
    if isinstance(revert_on, str) or not all(isinstance(one, str) and one in INCIDENTS for one in revert_on):
        raise ConfigError(f"revert_on={show(revert_on)} must be a sequence of some of these: {names}")
    if trial is None:
        return None
    period = control.settings.period
    return ceil(parse_duration(trial, "trial", minimum=1) / period), tuple(dict.fromkeys(revert_on))


def begin(Control control, owner, successor, Control own, hand_over, acting, populate, keep="all", trial=None):
    """Check a swap, call setup() of the successor, and stage it."""
    if not _is_running(control):
        raise _ended(control)
    check_agreement(control, own)
    if own.state != "new":
        raise StateError(
            f"{own.settings.name} cannot take the place of a step: it has been started before, and is {own.state}; "
            "make a new one"
        )
    check_casts(owner if control.step is None else control.step, successor)
    own.claim(None, None)
    try:
        successor.setup()
        populate(successor)
    except BaseException:
        own.abandon()
        raise
    change = StepChange(control, owner, successor, own, hand_over, acting, keep, trial)
    try:
        shielded(change.stage)
    except BaseException:
        change.drop()  # an exception of a signal handler, after it was staged
        raise
    return change


def check_agreement(Control control, Control own):
    """Check that a step fits into a running loop.

    Raises
    ------
    ConfigError
        With the keyword that differs.
    """
    now, new = control.settings, own.settings
    name = f"{new.name} cannot take the place of the step of {now.name}"
    for keyword, present, given in (
        ("period", now.period, new.period), ("clock", now.clock, new.clock),
        ("flush_denormals", now.flush_denormals, new.flush_denormals),
    ):
        if present != given:
            text = f"{given!r}, and the loop runs with {present!r}"
            if keyword == "period":
                text = f"{format_duration(new.period_ns)}, and the loop runs with {format_duration(now.period_ns)}"
            raise ConfigError(f"{name}: its {keyword} is {text}: give both the same")
    if new.stack_bytes > now.stack_bytes:
        raise ConfigError(
            f"{name}: it asks for stack_size={format_size(new.stack_bytes)}, and the thread's stack has "
            f"{format_size(now.stack_bytes)}: start the loop with the larger one"
        )
    if control.thread.has_own_wait != own.thread.has_own_wait:
        paced = {True: "its own wait()", False: "the clock"}
        raise ConfigError(
            f"{name}: it is paced by {paced[own.thread.has_own_wait]}, and the loop by "
            f"{paced[control.thread.has_own_wait]}"
        )


def _await(change, timeout_ns):
    cdef Control control = change.control
    limit_ns = timeout_ns + _PERIODS * control.settings.period_ns
    try:
        change.ask()
        deadline = time.monotonic_ns() + limit_ns
        while not _has_answer(change, deadline):
            nap(_LOOK_S)
    except BaseException:
        change.drop()
        change.withdraw()
        change.settle()
        change.finish()
        raise
    if change.outcome == "withdrawn":
        raise SwapError(
            f"{control.settings.name} goes on with its former step: its present cycle has not ended within "
            f"{format_duration(limit_ns)}, and nothing has changed"
        )
    return conclude(change)


def _has_answer(change, deadline):
    """Return True if the swap has an outcome, or nothing is left to wait for."""
    cdef Control control = change.control
    change.settle()
    if change.outcome is None and not _is_running(control):
        change.withdraw("ended")
        change.settle()
    if change.outcome is None and time.monotonic_ns() > deadline:
        change.withdraw()
        return True  # else take_over() runs
    return change.outcome is not None


def conclude(change):
    """Return the index of the new step's first cycle of a swap that was answered, or raise the reason why not."""
    cdef Control control = change.control
    change.settle()
    name = control.settings.name
    if change.outcome == "done":
        try:
            change.finish()
        except BaseException as error:
            add_note(error, f"{name} goes on with the new step since cycle {change.cycle} all the same.")
            raise
        return change.cycle
    if change.outcome == "refused":
        raise SwapError(
            f"{name} goes on with its former step: take_over() of {name_of(change.successor)} returned {change.code} "
            f"before cycle {change.cycle}", change.code,
        )
    if change.outcome == "ended":
        raise _ended(control)
    raise SwapError(
        f"{name}: take_over() of {name_of(change.successor)} has not returned in time. The swap is made when it returns"
    )


cdef bint _is_running(Control control):
    if control.is_simulated():
        return control.is_under_way()
    return control._activity == "running" and control.thread.phase() != RT_PHASE_DONE


cdef object _ended(Control control):
    state = control.state
    what = {"new": "has not been started", "running": "is ending"}.get(state, f"is {state}")
    return StateError(f"{control.settings.name} {what}: only a running loop can go on with another step")

"""Main function of the process of a rehearsal: it makes the loops, runs them in virtual time, and reports."""

from __future__ import annotations

import importlib
import os
import pickle
import resource
import signal
import socket
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rtloop.process.crash_report import end_with_parent, leave_network, report_crashes
from rtloop.process.signal_shield import give_up_policy

if TYPE_CHECKING:
    from rtloop.loop.loop import RTLoop
    from rtloop.simulation.rehearsal import Order

__all__ = ["main"]

_NETWORK = "the rehearsal could reach the network, because the kernel refused it a network of its own"


def main(channel_number: int, crash_number: int, modules: str) -> None:
    """Rehearse the step that the parent describes.

    Parameters
    ----------
    channel_number, crash_number : int
        The ends of the socket for messages and of the pipe for crashes.
    modules : str
        Modules to import before the order arrives, separated by commas.
    """
    end_with_parent()
    signal.signal(signal.SIGINT, lambda number, frame: None)  # Ctrl-C ends the parent, and the parent this process
    give_up_policy()
    notes = [] if leave_network() else [_NETWORK]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (channel_number, crash_number):
        os.set_inheritable(number, False)
    from rtloop.child.carried_error import carry
    from rtloop.child.channel import Channel

    channel = Channel(socket.socket(fileno=channel_number))
    with suppress(ImportError):
        for name in ("rtloop.simulation.simulation", *filter(None, modules.split(","))):
            importlib.import_module(name)
    report_crashes(crash_number)  # after the imports, which may set handlers of their own
    channel.send("awake", notes)
    try:
        _, order = channel.wait()
    except EOFError:
        os._exit(1)
    try:
        said = _rehearse(order)
    except BaseException as error:
        channel.send("failed", carry(error))
    else:
        channel.send("passed", said)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what the step has left behind, such as threads, does not matter


def _rehearse(order: Order) -> list[str]:
    """Make the loops, and run them. Returns notes."""
    from rtloop.child.target import run_main_script

    if order.main is not None:
        run_main_script(order.main)
    made = pickle.loads(order.pickled)()
    former, new = made if isinstance(made, tuple) else (None, made)
    period = new.settings.period
    cycles = max(1, -(-order.duration_ns // period))
    notes = []
    if former is not None:
        for name, value in order.values.items():
            with suppress(Exception):  # a parameter of a former law, which is gone
                former.parameters[name] = value
        why = _replace(former, new, int(cycles))
        if why is None:
            return []
        notes.append(f"take_over() was not rehearsed, because the former step ended in its first cycle{why}")
    new.simulate(cycles=int(cycles))
    return notes


def _replace(former: RTLoop, new: RTLoop, cycles: int) -> str | None:
    """Run one cycle of a step, and go on with the new one. Returns None, or why the former step did not finish it."""
    from rtloop.errors import RTSetupWarning, SwapError
    from rtloop.simulation.simulation import simulate_loop

    trial = f"{(cycles + 1) * former.settings.period_ns}ns", ("nonfinite",)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", RTSetupWarning)
        error: Any = None
        try:
            stats = simulate_loop(former, None, cycles + 1, swaps={1: new}, trial=trial, keep="changed")
        except BaseException as raised:
            stats, error = former.stats, raised
    swaps = stats.swaps or ()
    if len(swaps) > 1:
        reverted = next((str(one.message) for one in seen if "on trial" in str(one.message)), swaps[1].reason)
        count = swaps[1].cycle - swaps[0].cycle
        reason = str(swaps[1].reason).replace("nonfinite", "nonfinite (a signal is infinite or not a number)")
        raise SwapError(
            f"the new step has failed in its rehearsal, in its cycle {count}: {reason}"
            + (f"\n{reverted}" if "Error" in str(reverted) else "")
        )
    if not swaps and (error is None or former.state == "failed"):
        return f": {error}" if error is not None else ""
    if error is not None:
        raise error
    return None

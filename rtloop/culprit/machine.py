"""Facts about the machine that a trace does not contain: policies of threads, names of idle states, loops."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from rtloop.system.cpu import parse_cpu_list
from rtloop.system.fileio import parse_field, read_text

__all__ = ["counts_interrupts", "idle_state_name", "loop_name", "policy_text", "tick_ns"]

#: Its resolution is the time between two ticks (time.h).
_CLOCK_MONOTONIC_COARSE = 6
_POLICIES = {os.SCHED_FIFO: "FIFO", os.SCHED_RR: "RR"}


def policy_text(pid: int, prio: int | None) -> str:
    """Return the policy of a thread as text, given the kernel's priority in the trace; empty if it is not known.

    FIFO and RR have the same priorities: the thread itself is asked, if it still has that priority.
    """
    if prio is None or prio > 139:
        return ""
    if prio < 0:
        return "DEADLINE"
    if prio >= 100:
        return f"nice {prio - 120}"
    with suppress(OSError):
        policy = os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK
        if os.sched_getparam(pid).sched_priority == 99 - prio and policy in _POLICIES:
            return f"{_POLICIES[policy]} {99 - prio}"
    return f"real-time {99 - prio}"


def loop_name(pid: int) -> str:
    """Return the name of the rtloop loop whose thread this is; empty if it is none that is still running."""
    from rtloop.telemetry.attach import running  # here, because it is only needed if a loop was late

    name = ""
    with suppress(Exception):
        process = parse_field(read_text(f"/proc/{pid}/status"), "Tgid")
        if process is None:
            return name
        for reader in running(int(process)):
            with reader:
                if reader.tid == pid:
                    name = reader.name
    return name


def idle_state_name(cpu: int, state: int) -> str:
    """Return the name of an idle state of a CPU, with its exit latency as its driver has it."""
    folder = f"/sys/devices/system/cpu/cpu{cpu}/cpuidle/state{state}"
    try:
        return f"idle state {read_text(f'{folder}/name').strip()} ({read_text(f'{folder}/latency').strip()} us)"
    except OSError:
        return f"idle state {state}"


def counts_interrupts() -> bool:
    """Return True if the kernel counts the time of interrupts by its clock, and not in the CPU time of threads.

    Without CONFIG_IRQ_TIME_ACCOUNTING, a tick never finds the CPU in an interrupt, so that their time stays at 0.
    """
    try:
        fields = read_text("/proc/stat").partition("\n")[0].split()
    except OSError:
        return True
    return len(fields) < 7 or fields[6] != "0"


def tick_ns(cpu: int) -> int:
    """Return the time between two ticks of a CPU that is not idle (1 / CONFIG_HZ); 0 if they may stop (nohz_full)."""
    with suppress(OSError, ValueError):
        if cpu in parse_cpu_list(read_text("/sys/devices/system/cpu/nohz_full").strip()):
            return 0
    return round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)

"""Checks of the time of day among hosts: the TAI offset, and the services that keep the clock."""

from __future__ import annotations

from collections.abc import Iterator

from rtloop.machine.doctor.machine_files import Machine
from rtloop.system.checks import Check
from rtloop.system.time_sync import TimeSync
from rtloop.units import format_duration

__all__ = ["examine"]

_PTP = ("ptp4l", "phc2sys", "ts2phc")
_NTP = ("chronyd", "ntpd", "systemd-timesyn", "openntpd")


def examine(machine: Machine, sync: TimeSync | None) -> Iterator[Check]:
    """Yield the checks that loops on `clock="tai"` of several hosts need; a single host needs none of them."""
    running = _running(machine)
    yield _tai(sync)
    yield _keeper(sync, running)


def _running(machine: Machine) -> list[str]:
    names = {machine.text(f"/proc/{pid}/comm") for pid in machine.numbered("/proc")}
    return sorted(names & {*_PTP, *_NTP})


def _tai(sync: TimeSync | None) -> Check:
    name, source = "TAI offset", "adjtimex(2)"
    why = 'loops on clock="tai" of several hosts line up only if all kernels have the same offset'
    fix = "now:        sudo phc2sys -a -r   # of linuxptp; chronyd sets it with: leapsectz right/UTC"
    if sync is None:
        return Check("clock", name, "not read", source, "note", why)
    if sync.tai_offset_s:
        return Check("clock", name, f"{sync.tai_offset_s} s", source, "ok", why)
    return Check("clock", name, "not set: CLOCK_TAI is the time of day", source, "note", why, fix)


def _keeper(sync: TimeSync | None, running: list[str]) -> Check:
    name, source = "time of day", "adjtimex(2), /proc/*/comm"
    why = "releases of several hosts line up only as well as their clocks are kept"
    ptp, ntp = [x for x in running if x in _PTP], [x for x in running if x in _NTP]
    found = f"kept by {', '.join(ptp + ntp)}" if ptp or ntp else "no PTP and no NTP service runs here"
    if sync is not None:
        state = "synchronised" if sync.is_synchronised else "not synchronised"
        found += f"; {state}, error at most {format_duration(sync.max_error_ns)}" if sync.max_error_ns else f"; {state}"
        found += f", {format_duration(abs(sync.offset_ns))} left to correct" if sync.offset_ns else ""
    if "phc2sys" in ptp and ntp:
        fix = f"now:        sudo systemctl stop {' '.join(ntp)}   # and disable it; phc2sys keeps the clock"
        return Check("clock", name, f"{found}: two services keep one clock", source, "warn", why, fix)
    if "ptp4l" in ptp and "phc2sys" not in ptp:
        fix = "now:        sudo phc2sys -a -r   # not if ptp4l runs with -S, which keeps the system's clock itself"
        return Check("clock", name, f"{found}: ptp4l keeps only the network card's clock", source, "note", why, fix)
    return Check("clock", name, found, source, "ok" if ptp else "note", why)

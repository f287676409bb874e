"""``rtloop.use_rtkit`` without a bus, without the extra, and with a loop that the kernel refuses."""

from __future__ import annotations

import errno
import os
import resource
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import rtloop
from rtloop.errors import SetupError
from rtloop.loop import scheduling
from rtloop.settings import make_settings
from rtloop.system.grant import Grant
from rtloop.system.session import rtkit
from rtloop.system.session.rtkit import Rtkit

REFUSED = Grant("policy", "rr 20", "other", False, "sched_setattr: EPERM", "sudo ...", errno.EPERM, "priority")
REPORT = {"policy_rc": -errno.EPERM, "tid": 4711}


@pytest.fixture(autouse=True)
def unused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtkit, "_in_use", None)


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jeepney", None)
    with pytest.raises(SetupError, match=r"pip install 'rtloop\[rtkit\]'"):
        rtloop.use_rtkit()
    assert rtkit.limits_in_use() is None


def test_without_a_bus_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jeepney", reason="needs jeepney: pip install 'rtloop[rtkit]'")
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nowhere/bus")
    with pytest.raises(SetupError, match="the system bus of D-Bus cannot be reached"):
        rtloop.use_rtkit()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((), "MaxRealtimePriority is not a number"),
        ((("s", "abc"),), "MaxRealtimePriority is not a number"),
        ((("x", 0),), "RealtimeKit grants nothing"),
        ((("t", 2**63 + 5),), "RealtimeKit grants nothing"),
        (KeyError(b"\xff"), "RealtimeKit is not available"),
        (ConnectionResetError(104, "reset"), "RealtimeKit is not available"),
    ],
)
def test_what_the_bus_sends_is_checked(monkeypatch: pytest.MonkeyPatch, reply: Any, words: str) -> None:
    pytest.importorskip("jeepney", reason="needs jeepney: pip install 'rtloop[rtkit]'")

    def answer(message: Any, timeout: float) -> Any:
        if isinstance(reply, Exception):
            raise reply
        return SimpleNamespace(header=SimpleNamespace(message_type=None), body=reply)

    connection = SimpleNamespace(send_and_get_reply=answer, close=lambda: None)
    monkeypatch.setattr("jeepney.io.blocking.open_dbus_connection", lambda bus: connection)
    with pytest.raises(SetupError, match=words):
        rtloop.use_rtkit()
    assert rtkit.limits_in_use() is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((-1, -1), (150_000, 200_000)),
        ((-1, 100_000), (75_000, 100_000)),
        ((50_000, 200_000), (50_000, 200_000)),
        ((1_000_000, 1_000_000), (150_000, 200_000)),
    ],
)
def test_the_limit_is_only_ever_lowered(
    monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: tuple[int, int]
) -> None:
    infinite = tuple(resource.RLIM_INFINITY if value < 0 else value for value in before)
    now = [infinite]
    monkeypatch.setattr(rtkit, "read_limit", lambda which: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: now.append(limits))
    rtkit._limit_cpu_time(200_000)
    assert now[-1] == after


def ask(monkeypatch: pytest.MonkeyPatch, answer: str, granted: tuple[int, int], **settings: Any) -> list[Grant]:
    monkeypatch.setattr(rtkit, "_in_use", Rtkit(20, 200_000))
    monkeypatch.setattr(rtkit, "make_real_time", lambda tid, priority: answer)
    monkeypatch.setattr(os, "sched_getscheduler", lambda tid: granted[0] | os.SCHED_RESET_ON_FORK)
    monkeypatch.setattr(os, "sched_getparam", lambda tid: SimpleNamespace(sched_priority=granted[1]))
    monkeypatch.setattr(scheduling, "read_limit", lambda which: (150_000, 200_000))
    grants = [REFUSED]
    scheduling.through_rtkit(make_settings("loop", "1kHz", **settings), REPORT, grants)
    return grants


def test_what_it_grants_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, time = ask(monkeypatch, "", (os.SCHED_RR, 20), policy="rr", priority=20)
    assert policy.ok and policy.granted == "rr 20" and policy.errno == 0
    assert time.ok and "SIGXCPU after 150000 us without a sleep, SIGKILL after 200000 us" in time.detail


def test_a_refusal_stays_one_with_the_reason_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    (policy,) = ask(monkeypatch, "RealtimeKit refused priority 20: x", (0, 0), policy="rr", priority=20)
    assert not policy.ok and policy.detail == "sched_setattr: EPERM; RealtimeKit refused priority 20: x"


def test_a_period_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtkit, "_in_use", Rtkit(20, 200_000))
    monkeypatch.setattr(scheduling, "read_limit", lambda which: (150_000, 200_000))
    (time,) = scheduling._cpu_time_grants(make_settings("loop", "1s", policy="rr", priority=20))
    assert not time.ok and time.granted == "150000 us without blocking"


@pytest.mark.parametrize("report", [{"policy_rc": 0, "tid": 1}, {"policy_rc": -errno.EINVAL, "tid": 1}])
def test_it_is_not_asked_for_anything_else(monkeypatch: pytest.MonkeyPatch, report: dict[str, int]) -> None:
    monkeypatch.setattr(rtkit, "_in_use", Rtkit(20, 200_000))
    monkeypatch.setattr(rtkit, "make_real_time", lambda tid, priority: pytest.fail("asked"))
    assert scheduling.through_rtkit(make_settings("loop", "1kHz"), report, []) is None
    monkeypatch.setattr(rtkit, "_in_use", None)
    assert scheduling.through_rtkit(make_settings("loop", "1kHz"), REPORT, []) is None

"""Messages of loops that cannot start or have failed: the loop, the cycle, the cause and the fix."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import time
import warnings
from types import ModuleType
from typing import Any

import pytest

import rtloop
from rtloop import RTLoop
from rtloop.errors import setup_error
from rtloop.loop import resources, scheduling
from rtloop.loop.outcome.failure import end_error
from rtloop.loop.outcome.run_warnings import warn_degraded
from rtloop.memory import kernel, process_lock
from rtloop.system.grant import Grant
from rtloop.system.grant_errors import setup_errors


def failed(loop: Any) -> Any:
    """Wait until a loop that runs has failed by itself, and return it."""
    deadline = time.monotonic() + 20
    while loop.state == "running" and time.monotonic() < deadline:
        time.sleep(0.002)
    assert loop.state == "failed"
    return loop


def start_failed(probes: ModuleType, ordinary: dict[str, Any]) -> Any:
    """A loop that has failed by itself, in cycle 3, and that nobody has joined."""
    loop = probes.Probe("1ms", name="arm", **ordinary)
    loop.fail_at, loop.fail_code = 3, -errno.EIO
    loop.start()
    return failed(loop)


@pytest.mark.parametrize(("where", "cycle"), [("enter", None), ("step", 4), ("overrun", 0), ("wait", 0)])
def test_a_callback_error_tells_the_loop_the_cycle_and_the_errno(
    probes: ModuleType, ordinary: dict[str, Any], where: str, cycle: int | None
) -> None:
    loop = (probes.Paced if where == "wait" else probes.Probe)("2ms", name="arm", **ordinary)
    if where == "enter":
        loop.enter_code = -errno.ENODEV
    elif where == "step":
        loop.fail_at, loop.fail_code = 4, -errno.ENODEV
    elif where == "overrun":
        loop.overrun_code, loop.busy_ns = -errno.ENODEV, 5_000_000
    else:
        loop.wait_code = -errno.ENODEV
    with pytest.raises(rtloop.CallbackError) as caught:
        loop.run()
    error = caught.value
    assert (error.name, error.callback, error.cycle, error.code, error.symbol) == ("arm", where, cycle, -19, "ENODEV")
    when = "" if cycle is None else f" in cycle {cycle}"
    assert str(error).startswith(f"arm: {where}() returned -19{when} (-ENODEV, No such device, if it is an errno)")


def test_a_code_that_is_no_errno_is_not_explained() -> None:
    for code in (7, -4000):
        error = rtloop.CallbackError(code, "step", "arm", 2)
        assert error.symbol is None and str(error) == f"arm: step() returned {code} in cycle 2; the loop has stopped"


def test_an_overrun_error_tells_the_loop_the_cycle_and_how_late(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("2ms", name="arm", overrun="stop", warmup=0, **ordinary)
    loop.busy_ns, loop.busy_every = 5_000_000, 3
    with pytest.raises(rtloop.OverrunError) as caught:
        loop.run(cycles=50)
    error, records = caught.value, loop.stats.records
    late = records["end"][-1] - records["release"][-1] - 2_000_000
    assert (error.name, error.cycle, error.late_ns) == ("arm", loop.stats.cycles - 1, late)
    assert late > 0 and str(error).startswith(
        f"arm was stopped by its first overrun (overrun='stop'): cycle {error.cycle} "
    )
    assert str(error).endswith("after the next release, with period=2 ms")


@pytest.mark.parametrize(("limit", "text"), [(1, "by 1 overrun (max"), (3, "by 3 overruns in a row (max")])
def test_one_overrun_is_not_in_a_row(limit: int, text: str) -> None:
    error = end_error(RTLoop("1ms", max_overruns=limit).settings, "overruns", 0, 9, 1500)
    assert text in str(error) and "cycle 9 ended 1.5 us after" in str(error)


def test_RT_STOP_from_overrun_does_not_make_a_failure_a_normal_end(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    loop = probes.Probe("2ms", overrun="stop", **ordinary)
    loop.overrun_code, loop.busy_ns = 1, 5_000_000
    with pytest.raises(rtloop.OverrunError):
        loop.run(cycles=50)
    assert loop.overruns == 1 and loop.state == "failed"
    loop = probes.Probe("2ms", overrun="skip", **ordinary)
    loop.overrun_code, loop.busy_ns = 1, 5_000_000
    assert loop.run(cycles=50).cycles == 1 and loop.state == "stopped", "and elsewhere it does"


def test_the_errors_survive_pickling() -> None:
    callback = rtloop.CallbackError(-5, "wait", "arm", 7)
    overrun = rtloop.OverrunError("text", "arm", 3, 99)
    setup = setup_error(1, "text", privilege=True, grants=(Grant("policy", "fifo", "other", ok=False),))
    for error in (callback, overrun, setup):
        twin = pickle.loads(pickle.dumps(error))
        assert type(twin) is type(error) and str(twin) == str(error) and vars(twin) == vars(error)


def test_a_loop_that_had_failed_warns_once_when_it_is_only_stopped(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    for end in ("stop", "close"):
        loop = start_failed(probes, ordinary)
        with pytest.warns(
            rtloop.RTSetupWarning, match=r"already failed.*arm: step\(\) returned -5 in cycle 3"
        ) as caught:
            getattr(loop, end)()
        assert caught[0].filename == __file__, "the warning points at the caller"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loop.stop()
            loop.close()


def test_a_loop_whose_failure_was_raised_or_that_ended_well_stops_without_a_warning(
    probes: ModuleType, ordinary: dict[str, Any]
) -> None:
    loop = start_failed(probes, ordinary)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(rtloop.CallbackError):
            loop.join()
        loop.stop()
        loop.close()
        with RTLoop("1ms", **ordinary) as well:
            well.stop()
        well.close()
    again = start_failed(probes, ordinary)
    with pytest.warns(rtloop.RTSetupWarning):
        again.stop()
    with pytest.raises(rtloop.CallbackError):
        again.run()
    again.start()
    failed(again)
    with pytest.warns(rtloop.RTSetupWarning):
        again.stop()  # each run has its own end


def test_an_exception_of_the_with_body_gets_a_note_of_the_failure(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", name="arm", **ordinary)
    loop.fail_at = 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError) as caught, loop:
            failed(loop)
            raise KeyError("the body's own")
    (note,) = caught.value.__notes__
    assert "arm: step() returned -5 in cycle 2" in note
    loop.fail_at = -1
    with pytest.raises(KeyError) as caught, loop:
        raise KeyError("the loop was well")
    assert not hasattr(caught.value, "__notes__")


def test_a_loop_cannot_be_pickled_nor_copied(probes: ModuleType, ordinary: dict[str, Any]) -> None:
    loop = probes.Probe("1ms", **ordinary)
    for function in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="Probe cannot be pickled or copied, because it is a thread"):
            function(loop)
    pickle.dumps(loop.settings)


def test_a_setup_error_without_an_errno_does_not_show_one() -> None:
    assert str(rtloop.SetupError(0, "refused")) == "refused"
    assert str(rtloop.PrivilegeError(1, "refused")) == "[Errno 1] refused"
    assert str(rtloop.SetupError("refused")) == "refused"


def test_a_strict_start_lists_everything_that_was_refused(
    ordinary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_lock.memory_lock, "acquire_range", lambda *_, **__: -errno.ENOMEM)
    loop = RTLoop("1ms", name="arm", cpu=4095, **{**ordinary, "lock_memory": "own"})
    with pytest.raises(rtloop.SetupError) as caught:
        loop.start()
    error, text = caught.value, str(caught.value)
    names = [grant.name for grant in error.refused]
    assert names == ["telemetry", "state", "stack", "cpu"]
    assert isinstance(error, rtloop.MemoryLockError) and error.errno == errno.ENOMEM, "the type is that of the first"
    assert "arm: 4 requests were refused" in text and text.count("strict=False") == 1
    assert text.count("99-rtloop.conf") <= 1, "a fix is listed once, whatever needs it"
    assert all(f"{name}: asked for" in text for name in names) and "allowed here" in text
    assert {grant.name for grant in error.grants} > set(names), "those that were granted are there, too"
    assert not hasattr(error, "__notes__"), "it says so once"
    assert loop.state == "new" and loop.grants == ()


def test_one_refusal_is_told_alone(ordinary: dict[str, Any]) -> None:
    with pytest.raises(rtloop.SetupError, match=r"^(\[Errno 22\] )?cpu: asked for 4095") as caught:
        RTLoop("1ms", cpu=4095, **ordinary).start()
    assert str(caught.value).endswith("Or run degraded: strict=False")
    assert [grant.name for grant in caught.value.refused] == ["cpu"]


@pytest.mark.parametrize(
    ("module", "step"), [(scheduling, "rt_bandwidth"), (resources, "TelemetryBlock"), (scheduling, "thread_grants")]
)
def test_a_step_that_cannot_be_done_notes_what_was_refused_before(
    ordinary: dict[str, Any], monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    def refuse(mode: str, **_: object) -> Grant:
        return Grant("memory_lock", mode, "nothing", ok=False, detail="ENOMEM", errno=errno.ENOMEM)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(process_lock.memory_lock, "acquire", refuse)
    monkeypatch.setattr(module, step, fail)
    for strict in (True, False):
        with pytest.raises(rtloop.SetupError, match="Cannot allocate memory") as caught:
            RTLoop("1ms", strict=strict, **{**ordinary, "lock_memory": "all"}).start()
        assert [grant.name for grant in caught.value.refused] == ["memory_lock"]
        assert "memory_lock: asked for all" in caught.value.__notes__[0]


def test_malloc_is_not_tuned_for_a_start_that_is_bound_to_fail(
    ordinary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = []
    refused = Grant("memory_lock", "all", "nothing", ok=False, errno=errno.ENOMEM, kind="lock")
    monkeypatch.setattr(process_lock.memory_lock, "acquire", lambda mode, **_: refused)
    monkeypatch.setattr(kernel, "tune_malloc", lambda: tuned.append(1) or True)
    settings = {**ordinary, "lock_memory": "all", "tune_malloc": True}
    with pytest.raises(rtloop.MemoryLockError):
        RTLoop("1ms", **settings).start()
    assert tuned == [], "it is for the rest of the process's life"
    with pytest.warns(rtloop.RTSetupWarning):
        RTLoop("1ms", strict=False, **settings).run(cycles=1)
    assert tuned == [1]


def test_a_degraded_loop_is_not_told_to_run_degraded(ordinary: dict[str, Any]) -> None:
    with pytest.warns(rtloop.RTSetupWarning, match="cpu: asked for 4095") as caught:
        RTLoop("1ms", cpu=4095, strict=False, **ordinary).run(cycles=1)
    assert "strict=False" not in str(caught[0].message)
    assert caught[0].filename == __file__, "the warning points at the caller"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_degraded((Grant("policy", "other", "other", ok=True),), "arm")


class Thread:
    """What a loop's thread reports of a kernel that refuses."""

    def __init__(self, loop: RTLoop, policy_rc: int = 0, *, is_read_back: bool = True) -> None:
        self.settings = loop.settings
        number = {"other": 0, "fifo": 1, "deadline": 6}[self.settings.policy]
        runtime, deadline = self.settings.runtime_ns or 0, self.settings.deadline_ns or 0
        asked = {
            "size": 48, "sched_policy": number, "sched_flags": 1, "sched_priority": self.settings.priority,
            "sched_runtime": runtime, "sched_deadline": deadline, "sched_period": self.settings.period_ns,
        }  # fmt: skip
        got = asked if is_read_back and not policy_rc else dict.fromkeys(asked, 0) | {"size": 48 * is_read_back}
        slack = 50_000 if number == 0 or policy_rc else 0
        self.request = {"attr": asked, "is_pinned": False, "cpus": [0]}
        self.report = {
            "attr": got, "policy_rc": policy_rc, "signal_stack_rc": 0, "mask_rc": 0, "slack_ns": slack, "slack_rc": 0,
            "cpus": [1], "allowed": [3], "cpu_rc": 0, "tid": 0,
        }  # fmt: skip

    def grants(self) -> dict[str, Grant]:
        return {g.name: g for g in scheduling.thread_grants(self.settings, self.request, self.report)}


def test_a_deadline_loop_that_finds_the_cpus_taken_is_told_what_to_do() -> None:
    loop = RTLoop("2ms", policy="deadline", runtime="500us", deadline="1ms")
    grant = Thread(loop, -errno.EBUSY).grants()["policy"]
    assert not grant.ok and grant.granted == "other"
    assert "25.0 % of a CPU (runtime / period)" in grant.detail
    for word in ("less runtime", "longer period", "ps -eLo", "sched_rt_runtime_us", "policy='fifo'"):
        assert word in grant.fix
    grant = Thread(loop, -errno.EINVAL).grants()["policy"]
    assert "sched_deadline_period_min_us" in grant.fix


def test_a_control_group_without_runtime_is_named_below_a_filter_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, which has both: the filter was named, though it allowed the call."""
    monkeypatch.setattr(scheduling, "is_capable", lambda _: True)
    monkeypatch.setattr(scheduling.refusal_cause, "has_seccomp_filter", lambda: True)
    monkeypatch.setattr(scheduling, "rt_group_file", lambda: "/sys/fs/cgroup/cpu/box/cpu.rt_runtime_us")
    monkeypatch.setattr(scheduling, "rt_group_runtime", lambda: 0)
    grant = Thread(RTLoop("1ms"), -errno.EPERM).grants()["policy"]
    assert "no real-time runtime" in grant.detail and "filter" not in grant.detail
    assert "/sys/fs/cgroup/cpu/box/cpu.rt_runtime_us" in grant.fix and "--cpu-rt-runtime" in grant.fix
    deadline = RTLoop("2ms", policy="deadline", runtime="500us", deadline="1ms")
    assert "filter" in Thread(deadline, -errno.EPERM).grants()["policy"].detail, "the group's runtime is not for these"
    monkeypatch.setattr(scheduling, "rt_group_runtime", lambda: 950000)
    assert "filter forbids sched_setattr" in Thread(RTLoop("1ms"), -errno.EPERM).grants()["policy"].detail


def test_slack_is_told_of_ordinary_threads_only() -> None:
    assert "timer_slack" in Thread(RTLoop("1ms", policy="other")).grants()
    assert "timer_slack" not in Thread(RTLoop("1ms")).grants()
    assert "timer_slack" in Thread(RTLoop("1ms"), -errno.EPERM).grants(), "a refused one is ordinary"
    assert "timer_slack" not in Thread(RTLoop("1ms"), is_read_back=False).grants(), "it is real-time, but not read back"


def test_a_policy_that_cannot_be_read_back_is_not_granted() -> None:
    grant = Thread(RTLoop("1ms"), is_read_back=False).grants()["policy"]
    assert not grant.ok and grant.granted == "not known" and "sched_getattr" in grant.detail
    assert Thread(RTLoop("1ms")).grants()["policy"].ok


def test_a_start_without_proc_names_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/proc/self/status")
    with pytest.raises(rtloop.SetupError) as told, setup_errors("axis", []):
        raise missing
    assert "not mounted" not in str(told.value)
    monkeypatch.setattr("os.path.exists", lambda path: False)
    cause = r"is not mounted, and the start reads it\nmount -t proc proc /proc"
    with pytest.raises(rtloop.SetupError, match=cause), setup_errors("axis", []):
        raise missing

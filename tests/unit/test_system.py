"""Parsers of system information, with texts in the kernel's format."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from resource import RLIM_INFINITY
from typing import Any

import pytest

import rtloop
from rtloop.system import checks, refusal_cause
from rtloop.system.cpu import format_cpu_list, isolated_cpus, mask_to_cpus, parse_cpu_list
from rtloop.system.fileio import parse_field, parse_fields, parse_sizes, read_text
from rtloop.system.fixes import device_fix, filter_fix, for_container, limit_fix
from rtloop.system.grant import Grant, GrantKind, describe_refused, describe_refused_briefly
from rtloop.system.grant_errors import raise_if_refused
from rtloop.system.host import host_facts, uname
from rtloop.system.privilege import (
    CAP_IPC_LOCK,
    CAP_SYS_NICE,
    has_capability,
    has_seccomp_filter,
    rt_group_file,
    rt_group_runtime,
)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3\n", (0, 1, 2, 3)), ("0,2-3,8\n", (0, 2, 3, 8)), ("\n", ()), ("5", (5,)), ("0-1,1-2", (0, 1, 2))],
)
def test_a_cpu_list_is_parsed(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


def test_a_read_that_a_signal_handler_breaks_off_leaves_no_file_open() -> None:
    before, broken = len(os.listdir("/proc/self/fd")), 0
    former = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for _ in range(20_000):
            try:
                signal.setitimer(signal.ITIMER_REAL, 5e-6)
                read_text("/proc/self/comm")
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                broken += 1
            if broken == 100:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert broken > 0 and len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("text", ["0-2,5", "0", "0-127", "1,3,5-6", ""])
def test_a_cpu_list_is_written_as_it_was_read(text: str) -> None:
    assert format_cpu_list(parse_cpu_list(text)) == text


def test_a_mask_names_cpus_by_their_numbers_and_not_by_their_place() -> None:
    assert mask_to_cpus([1 << 63 | 0b1001, 0b10]) == (0, 3, 63, 65)
    assert mask_to_cpus([0, 0]) == ()


def test_isolated_cpus_are_read_and_may_be_none(tmp_path: Path) -> None:
    file = tmp_path / "isolated"
    assert isolated_cpus(str(file)) == ()
    file.write_text("\n")
    assert isolated_cpus(str(file)) == ()
    file.write_text("0,4000\n")
    assert isolated_cpus(str(file)) == (0,), "one that is offline is of no use"


def test_a_capability_is_a_bit_of_the_effective_set() -> None:
    status = "CapInh:\t0000000000000000\nCapPrm:\t000001ffffffffff\nCapEff:\t0000000000804000\n"
    assert has_capability(CAP_IPC_LOCK, status) and has_capability(CAP_SYS_NICE, status)
    assert not has_capability(24, status)
    assert not has_capability(CAP_IPC_LOCK, "Name:\tpython\n")


def test_a_control_group_without_real_time_is_found(tmp_path: Path) -> None:
    cgroup, mount = tmp_path / "cgroup", tmp_path / "cpu"
    cgroup.write_text("7:cpu,cpuacct:/user.slice/shell\n2:memory:/\n0::/\n")
    group = mount / "user.slice" / "shell"
    group.mkdir(parents=True)
    assert rt_group_runtime(str(cgroup), str(mount)) is None, "a kernel without RT_GROUP_SCHED"
    (group / "cpu.rt_runtime_us").write_text("0\n")
    assert rt_group_runtime(str(cgroup), str(mount)) == 0
    assert rt_group_file(str(cgroup), str(mount)) == str(group / "cpu.rt_runtime_us")
    cgroup.write_text("7:cpu,cpuacct:/docker/of/the/host\n")
    (mount / "cpu.rt_runtime_us").write_text("950000\n")
    assert rt_group_runtime(str(cgroup), str(mount)) == 950000, "in a container the root is the container's group"
    cgroup.write_text("0::/user.slice\n")
    assert rt_group_runtime(str(cgroup), str(mount)) is None, "version 2 control groups have no such limit"


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("RLIMIT_MEMLOCK", ("memlock unlimited", "LimitMEMLOCK=infinity", "--ulimit memlock=-1:-1")),
        ("RLIMIT_RTPRIO", ("rtprio 95", "LimitRTPRIO=95", "--ulimit rtprio=95")),
        ("RLIMIT_RTTIME", ("prlimit --pid $$ --rttime=unlimited", "LimitRTTIME=infinity", "--ulimit rttime=-1:-1")),
    ],
)
def test_the_fix_has_the_lines_for_login_systemd_and_container(limit: str, words: tuple[str, ...]) -> None:
    text = limit_fix(limit, 95)
    for word in (*words, "login:", "systemd:", "container:", "kubernetes:"):
        assert word in text
    assert "strict=False" not in text, "that is advice for a strict loop only"
    assert "setcap" not in text, "a capability on the interpreter would be everybody's"


def test_a_grant_says_what_was_asked_and_what_was_given() -> None:
    grant = Grant("policy", "fifo 80", "other", ok=False, detail="EPERM", fix="a\nb", errno=1)
    assert str(grant) == "policy: asked fifo 80, granted other [REFUSED] EPERM"
    assert describe_refused(grant).splitlines()[1:] == ["How to fix:", "  a", "  b"]
    assert Grant(**grant.to_dict()) == grant


def test_the_fix_for_a_device_makes_the_group_and_passes_the_device_in() -> None:
    text = device_fix("/dev/cpu_dma_latency")
    for word in (
        "groupadd -f realtime", "usermod -aG realtime", 'KERNEL=="cpu_dma_latency", GROUP="realtime"',
        "udevadm control --reload && sudo udevadm trigger",
        "DeviceAllow=/dev/cpu_dma_latency rw", "docker run --device /dev/cpu_dma_latency",
    ):  # fmt: skip
        assert word in text, word


@pytest.mark.parametrize(
    ("container", "labels"),
    [
        ("", ["login:", "systemd:"]),
        ("docker", ["container:"]),
        ("podman", ["container:"]),
        ("kubernetes", ["kubernetes:"]),
        ("lxc", ["login:", "systemd:", "container:", "kubernetes:"]),
    ],
)
def test_a_fix_keeps_what_is_for_here(container: str, labels: list[str]) -> None:
    fix = limit_fix("RLIMIT_MEMLOCK") + "\nor lock less"
    lines = for_container(fix, container).splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == [*labels, "or"]
    assert ("            LimitMEMLOCK=infinity" in lines) == ("systemd:" in labels), "with the lines that belong to it"


@pytest.mark.parametrize(
    ("limit", "verdict"), [(0, "fail"), (10, "fail"), (79, "fail"), (80, "ok"), (RLIM_INFINITY, "ok")]
)
def test_the_limit_has_to_reach_the_priority(limit: int, verdict: str) -> None:
    check = checks.real_time_priority(limit, is_capable=False, needed=80)
    assert check.verdict == verdict and ("RLIMIT_RTPRIO" in check.found)
    assert checks.real_time_priority(limit, is_capable=True).verdict == "ok"


@pytest.mark.parametrize(
    ("limit", "needed", "verdict"),
    [(RLIM_INFINITY, None, "ok"), (900, None, "warn"), (900, 1000, "fail"), (900, 100, "ok")],
)
def test_the_cpu_time_is_judged_by_what_is_needed(limit: int, needed: int | None, verdict: str) -> None:
    check = checks.real_time_cpu_time(limit, needed)
    assert check.verdict == verdict and bool(check.fix) == (verdict in ("warn", "fail"))


def test_a_line_for_a_systemd_unit_has_no_comment_behind_it() -> None:
    """A unit file knows no comments at the end of a line: what follows would be part of the value."""
    text = device_fix("/dev/cpu_dma_latency") + limit_fix("RLIMIT_MEMLOCK") + limit_fix("RLIMIT_RTPRIO", 95)
    lines = [line.strip() for line in text.splitlines()]
    for line in (
        "DeviceAllow=/dev/cpu_dma_latency rw",
        "SupplementaryGroups=realtime",
        "LimitMEMLOCK=infinity",
        "LimitRTPRIO=95",
    ):
        assert line in lines


def test_several_refused_grants_list_each_fix_once() -> None:
    fixes = {"a": "x", "b": "y", "c": "x"}
    grants = [Grant(name, "all", "none", ok=False, detail="why", fix=fix) for name, fix in fixes.items()]
    assert describe_refused(*grants).splitlines() == [
        "a: asked for all, granted none (why)", "b: asked for all, granted none (why)",
        "c: asked for all, granted none (why)", "How to fix a, c:", "  x", "How to fix b:", "  y",
    ]  # fmt: skip


def test_on_the_terminal_a_command_that_fixes_several_refusals_is_shown_once_with_their_names() -> None:
    fixes = {
        "memory_lock": limit_fix("RLIMIT_MEMLOCK") + "\nor lock only what the loop itself uses: lock_memory='own'",
        "dma_latency": device_fix("/dev/cpu_dma_latency"),
        "policy": limit_fix("RLIMIT_RTPRIO", 95),
        "cpu": "leave it out",
    }
    grants = [Grant(name, "all", "none", ok=False, detail="why", fix=fix) for name, fix in fixes.items()]
    command = limit_fix("RLIMIT_MEMLOCK").partition("   #")[0].removeprefix("login:").strip()
    assert describe_refused_briefly(*grants).splitlines()[4:] == [
        "How to fix memory_lock, dma_latency, policy:",
        f"  {command}   # then log in again",
        "  or lock only what the loop itself uses: lock_memory='own'",
        "  by hand, or in a systemd unit or a container: see rtloop doctor",
        "How to fix cpu:",
        "  leave it out",
    ]
    assert describe_refused_briefly(grants[2]) == describe_refused(grants[2]), "what it fixes alone has every way"
    inside = [grant._replace(fix=for_container(grant.fix, "docker")) for grant in grants]
    assert describe_refused_briefly(*inside) == describe_refused(*inside), "in a container the command is of no use"


def test_the_facts_of_the_host_are_ready_for_json() -> None:
    facts = json.loads(json.dumps(host_facts()))
    assert facts["kernel"] and facts["cpus"] >= 1 and facts["cpu"]
    assert isinstance(facts["preempt_rt"], bool)


def test_the_names_of_the_system_are_known_though_uname_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(os.uname())

    def refuse() -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "uname", refuse)
    assert tuple(uname()) == names


def test_a_thread_may_have_any_bytes_for_a_name(script: Callable[..., Any]) -> None:
    """The kernel's texts have it in them: a loop starts all the same."""
    done = script("""
    import ctypes, rtloop
    ctypes.CDLL(None).prctl(15, b"caf\\xe9\\xff", 0, 0, 0)
    loop = rtloop.RTLoop("1ms", policy="other", lock_memory="off", dma_latency=None)
    print(loop.run(cycles=2).cycles, rtloop.memory.status().locked_bytes)
    """)
    assert done.stdout.split() == ["2", "0"], done.stderr


@pytest.mark.parametrize(
    ("kind", "error", "expected"),
    [
        ("lock", errno.EPERM, rtloop.errors.MemoryLockPrivilegeError),
        ("lock", errno.EINVAL, rtloop.MemoryLockError),
        ("priority", errno.EPERM, rtloop.PrivilegeError),
        ("device", errno.EACCES, rtloop.PrivilegeError),
        ("cpu", errno.EINVAL, rtloop.SetupError),
    ],
)
def test_the_exception_follows_from_the_kind_of_the_first_refusal(
    kind: GrantKind, error: int, expected: type[rtloop.SetupError]
) -> None:
    """No name decides it: a grant called 'clock' is not a lock."""
    grants = [Grant("clock", "a", "b", ok=False, errno=error, kind=kind), Grant("lock", "a", "b", ok=True, kind="lock")]
    with pytest.raises(rtloop.SetupError) as caught:
        raise_if_refused(grants)
    assert type(caught.value) is expected and caught.value.grants == tuple(grants)
    raise_if_refused(grants[1:])


@pytest.mark.parametrize("error", [errno.EPERM, errno.EACCES, errno.ENOSYS])
def test_a_seccomp_filter_is_named_with_its_call(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_seccomp_filter("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n")
    assert not has_seccomp_filter("Seccomp:\t0\n") and not has_seccomp_filter("Name:\tx\n")
    monkeypatch.setattr(refusal_cause, "has_seccomp_filter", lambda: True)
    text, fix = refusal_cause.explain("sched_setattr", error)
    assert errno.errorcode[error] in text and "a seccomp filter forbids sched_setattr" in text
    for word in ("RestrictRealtime=no", "SystemCallFilter=sched_setattr", "seccomp=PROFILE.json"):
        assert word in fix
    assert "RestrictRealtime" not in filter_fix("mlockall") and "@memlock" in filter_fix("mlockall")
    assert refusal_cause.explain("sched_setattr", errno.EINVAL)[1] == ""
    assert "filter forbids sched_setattr" in refusal_cause.explain("sched_setattr", errno.EUCLEAN)[0], "any errno"
    if error != errno.ENOSYS:
        text, fix = refusal_cause.explain("sched_setattr", error, is_privileged=False)
        assert "filter" not in text and fix == "", "a missing privilege explains it"


def test_a_thread_that_a_limit_forbids_names_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was 'Resource temporarily unavailable'."""
    full, roomy = {"/g/pids.max": (0, 64)}, {"/g/pids.max": (3, 64)}
    monkeypatch.setattr(refusal_cause, "thread_room", lambda: full)
    text, fix = refusal_cause.explain_thread(errno.EAGAIN)
    assert "EAGAIN" in text and "/g/pids.max allows 64 threads" in text and "TasksMax=" in fix and "--pids-limit" in fix
    monkeypatch.setattr(refusal_cause, "thread_room", lambda: roomy)
    monkeypatch.setattr(refusal_cause, "is_capable", lambda capability: False)
    monkeypatch.setattr(refusal_cause.os, "getuid", lambda: 1000)
    monkeypatch.setattr(refusal_cause.resource, "getrlimit", lambda limit: (4096, 8192))
    text, fix = refusal_cause.explain_thread(errno.EAGAIN)
    assert "RLIMIT_NPROC allows this user 4,096 threads" in text and "LimitNPROC=" in fix
    assert refusal_cause.explain_thread(errno.ENOMEM)[1] == ""


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x1c", "\x85", "\u2028"])
def test_the_name_of_a_thread_cannot_pass_for_another_field(tmp_path: Path, end: str) -> None:
    """The kernel escapes a newline in the name, and nothing else (proc_pid_status(5))."""
    file = tmp_path / "status"
    file.write_bytes(f"Name:\ta{end}Uid:\t0\nUid:\t1000\t1000\nVmLck:\t      16 kB\n".encode())
    text = read_text(str(file))
    assert parse_fields(text)["Uid"].split() == ["1000", "1000"] and parse_sizes(text) == {"VmLck": 16384}
    assert parse_field(text, "Uid") == "1000\t1000" and parse_field(text, "Name") == f"a{end}Uid:\t0".strip()
    assert parse_field(text, "Gid") is None and parse_field(text, "ame") is None

"""Findings of the doctor on several machines, from captured texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rtloop_test_machines import MACHINES, by_name, files_of, unpack

from rtloop.machine.doctor.machine_files import Machine
from rtloop.machine.doctor.run_all import TOPICS, examine
from rtloop.system.checks import VERDICTS

#: For each machine: check, verdict, what the finding says, what the fix says.
EXPECTED = {
    "microvm": [
        ("preemption", "warn", "PREEMPT_DYNAMIC, none unless changed since", "host:       6.18.44"),
        ("version", "ok", "6.18.44", ""),
        ("real-time priority", "ok", "RLIMIT_RTPRIO is 0, not enforced because of CAP_SYS_NICE", ""),
        ("locked memory", "ok", "RLIMIT_MEMLOCK is 8388608 bytes, not enforced because of CAP_IPC_LOCK", ""),
        ("capabilities", "ok", "CAP_SYS_NICE, CAP_IPC_LOCK; missing: CAP_SYS_RESOURCE", ""),
        ("limits of the login", "ok", "nothing for root", ""),
        ("user", "ok", "root", ""),
        ("control group's real-time runtime", "ok", "950000 us", ""),
        ("control group's CPU limit", "ok", "none", ""),
        ("fair server", "note", "could not be read (debugfs is not mounted", "mount -t debugfs"),
        ("container", "ok", "none", ""),  # though /.dockerenv is there
        ("virtual machine", "warn", "KVM", "pin"),
        ("stolen time", "ok", "0.0", ""),
        ("interrupts", "note", "2; no CPU is isolated from them", ""),
        ("isolated CPUs", "note", "none of 0-1", "isolcpus=managed_irq,domain,1 rcu_nocbs=1"),
        ("idle states", "ok", "haltpoll idle, exit latency 1 us", ""),
        ("frequency governor", "note", "no frequency scaling is visible", ""),
        ("clocksource", "ok", "tsc (also available: kvm-clock)", ""),
        ("transparent huge pages", "ok", "madvise", ""),
        ("khugepaged", "ok", "that programs offer", ""),
        ("compaction of locked pages", "warn", "allowed", "vm.compact_unevictable_allowed=0"),
        ("huge page pool", "note", "empty", "vm.nr_hugepages=32"),
    ],
    "rt-qemu": [
        ("preemption", "ok", "PREEMPT_RT", ""),
        ("version", "ok", "6.1.0-56-rt-amd64", ""),
        ("capabilities", "ok", "CAP_SYS_NICE, CAP_IPC_LOCK, CAP_SYS_RESOURCE", ""),
        ("limits of the login", "note", "could not be read (no limits.conf)", ""),
        ("fair server", "ok", "none in this kernel", ""),
        ("CPUs of this process", "ok", "0 of 0-1; may move to isolated 1", ""),
        ("virtual machine", "warn", "QEMU", "pin"),
        ("isolated CPUs", "ok", "1 of 0-1 (domain, managed_irq)", ""),
        ("nohz_full", "note", "1", "remove nohz_full=1"),
        ("rcu_nocbs", "ok", "1", ""),
        ("preemption mode", "ok", "PREEMPT_RT", ""),
        ("threaded interrupts", "ok", "forced by PREEMPT_RT", ""),
        ("interrupts", "warn", "3 of 5 may arrive on isolated CPUs 1: 1 (i8042), 4 (ttyS0), 9 (acpi)", "echo 0 |"),
        ("clocksource", "warn", "hpet (also available: acpi_pm)", "dmesg | grep -i tsc"),
        ("idle states", "note", "none visible (none)", ""),
        ("transparent huge pages", "ok", "none in this kernel", ""),
        ("khugepaged", "ok", "idle", ""),
        ("compaction of locked pages", "ok", "not allowed", ""),
    ],
    "rt-desktop": [
        ("preemption", "ok", "PREEMPT_RT", ""),
        ("real-time priority", "ok", "RLIMIT_RTPRIO is 95 and CAP_SYS_NICE is missing", ""),
        ("locked memory", "ok", "RLIMIT_MEMLOCK is unlimited", ""),
        ("user", "ok", "ada", ""),
        ("limits of the login", "ok", "for ada: rtprio 95 (99-realtime.conf), memlock unlimited (99-", ""),
        ("real-time throttling", "ok", "none; all of the CPUs for SCHED_DEADLINE", ""),
        ("fair server", "note", "50 ms of each 1 s on CPUs 0-1, although sched_rt_runtime_us is -1", "echo 0 | sudo"),
        ("control group's real-time runtime", "ok", "not limited", ""),
        ("CPUs of this process", "ok", "0-1 of 0-3", ""),
        ("container", "ok", "none", ""),
        ("virtual machine", "ok", "none", ""),
        ("isolated CPUs", "ok", "2-3 of 0-3 (domain, managed_irq)", ""),
        ("nohz_full", "note", "2-3", "remove nohz_full=2-3"),
        ("rcu_nocbs", "ok", "2-3", ""),
        ("interrupts", "warn", "1 of 2 may arrive on isolated CPUs 2-3: 124 (nvme", "echo 0-1 | sudo tee /proc/irq"),
        ("irqbalance", "ok", "CPUs banned", ""),
        ("threads per core", "ok", "1", ""),
        ("frequency governor", "ok", "performance, 0.80 to 3.50 GHz", ""),
        ("idle states", "ok", "C1, exit latency 2 us", ""),
        ("timer resolution", "ok", "high-resolution timers are built in", ""),
        ("transparent huge pages", "ok", "never", ""),
        ("khugepaged", "ok", "idle", ""),
        ("compaction of locked pages", "ok", "not allowed", ""),
        ("huge page pool", "ok", "56 of 64 pages of 2 MiB free", ""),
    ],
    "laptop": [
        ("preemption", "warn", "PREEMPT_DYNAMIC, mode could not be read", "pro enable realtime-kernel   #"),
        ("real-time priority", "fail", "RLIMIT_RTPRIO is 0 and CAP_SYS_NICE is missing", "rtprio 95"),
        ("locked memory", "fail", "RLIMIT_MEMLOCK is 67108864 bytes and CAP_IPC_LOCK is missing", "memlock unlimited"),
        ("limits of the login", "warn", "for ada: rtprio 95 (99-realtime.conf), memlock unlimited (99-realtime.conf); "
         "this session has rtprio 0, memlock 65536: the session belongs to user@", "systemctl edit user@.service"),
        ("fair server", "ok", "none in this kernel", ""),
        ("isolated CPUs", "note", "none of 0-3", "GRUB_CMDLINE_LINUX"),
        ("threaded interrupts", "note", "not forced", "threadirqs"),
        ("irqbalance", "note", "runs", "disable --now irqbalance"),
        ("threads per core", "note", "2", "nosmt"),
        ("frequency governor", "warn", "powersave, 0.40 to 4.70 GHz", "scaling_governor"),
        ("idle states", "note", "C10, exit latency 890 us (intel_idle)", "intel_idle.max_cstate=1"),
        ("idle latency bound", "note", "could not be read", ""),
        ("transparent huge pages", "warn", "always", "echo madvise"),
        ("khugepaged", "warn", "all memory", "echo madvise"),
        ("same-page merging (KSM)", "warn", "runs", "echo 2"),
        ("swap", "note", "512 MiB of 2 GiB used, on /swap.img; swappiness 60", "swapoff"),
    ],
    "raspberry-pi": [
        ("machine", "ok", "Raspberry Pi 4 Model B Rev 1.4, 4 CPUs", ""),
        ("preemption", "warn", "full", "Raspberry Pi OS"),
        ("real-time priority", "ok", "RLIMIT_RTPRIO is 95", ""),
        ("real-time CPU time", "warn", "RLIMIT_RTTIME is 200000 us without blocking", "prlimit --pid $$ --rttime"),
        ("limits of the login", "ok", "for pi: rtprio 95 (limits.conf)", ""),
        ("virtual machine", "ok", "none", ""),
        ("isolated CPUs", "note", "none of 0-3", "/boot/firmware/cmdline.txt"),
        ("frequency governor", "warn", "ondemand, 0.60 to 1.80 GHz", "force_turbo=1"),
        ("clocksource", "ok", "arch_sys_counter", ""),
        ("NUMA balancing", "note", "could not be read (No such file or directory)", ""),
    ],
    "container": [
        ("container", "note", "docker", ""),
        ("virtual machine", "warn", "Amazon EC2", "on the host, not in the container"),
        ("preemption", "warn", "PREEMPT_DYNAMIC, full by the kernel's command line",
         "on the host, not in the container:\na kernel with CONFIG_PREEMPT_RT=y"),
        ("stolen time", "warn", "5.00 % since boot", "host:"),
        ("real-time priority", "fail", "RLIMIT_RTPRIO is 0", "container:  docker run --ulimit rtprio=95"),
        ("locked memory", "fail", "RLIMIT_MEMLOCK is 65536 bytes", "docker run --ulimit memlock=-1:-1"),
        ("limits of the login", "warn", "a docker container does not read limits.conf", "docker run"),
        ("control group's CPU limit", "warn", "1.50 CPUs: 150000 of each 100000 us", "without --cpus"),
        ("CPUs of this process", "warn", "the isolated 2-3 are not in its cpuset", "--cpuset-cpus"),
        ("threads per core", "warn", "2; 0-1 share cores with isolated CPUs", "nosmt"),
        ("nohz_full", "ok", "none: every CPU has its tick", ""),
        ("clocksource", "warn", "xen", "echo tsc"),
        ("same-page merging (KSM)", "note", "could not be read", ""),
        ("transparent huge pages", "note", "could not be read", ""),
    ],
    "server": [
        ("preemption", "ok", "PREEMPT_RT", ""),
        ("version", "warn", "4.18.0", ""),
        ("real-time throttling", "warn", "500000 of each 1000000 us (50 %)", "kernel.sched_rt_runtime_us=950000"),
        ("control group's real-time runtime", "fail", "no real-time runtime", "cpu/user.slice/cpu.rt_runtime_us"),
        ("control group's CPU limit", "warn", "4.00 CPUs", "CPUQuota="),
        ("limits of the login", "warn", "sshd_config says UsePAM no", "UsePAM yes"),
        ("isolated CPUs", "note", "none of 0-7", "grubby"),
        ("NUMA nodes", "note", "2 (0: 0-3, 1: 4-7)", "numactl"),
        ("NUMA balancing", "warn", "on", "kernel.numa_balancing=0"),
        ("clocksource", "warn", "hpet", "dmesg | grep -i tsc"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_a_machine_is_read(machine: Callable[..., Machine], name: str) -> None:
    found = by_name(examine(machine(name)))
    wrong = []
    for check_name, verdict, words, fix in EXPECTED[name]:
        check = found[check_name]
        if check.verdict != verdict or words not in check.found or (fix not in check.fix if fix else check.fix):
            wrong.append((check_name, check))
    assert not wrong


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.name)
def test_every_check_is_whole(path: Path, tmp_path: Path) -> None:
    checks = examine(unpack(files_of(path), tmp_path))
    assert len(checks) > 30
    for check in checks:
        assert check.topic in TOPICS and check.verdict in VERDICTS
        assert check.found and check.source and check.why, check
        assert "\n" not in check.found + check.why + check.source
        assert str(tmp_path) not in check.found + check.fix, "the folder of the test instead of the machine's path"
        if check.verdict == "fail":
            assert check.fix, check


def test_what_cannot_be_read_is_never_ok(tmp_path: Path) -> None:
    """A machine without any file: nothing is known of it, so nothing of it is good."""
    checks = examine(Machine(str(tmp_path), {}, "x86_64"))
    assert [check for check in checks if check.verdict not in ("note",)] == []
    known = ("not ", "no ", "none")
    assert [check for check in checks if not any(word in check.found for word in known)] == []


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.name)
def test_a_file_that_cannot_be_read_never_makes_a_warning_ok(path: Path, tmp_path: Path) -> None:
    """Each file in turn is there and cannot be read: what it warned of may become unknown, and never ok."""
    files = files_of(path)
    machine = unpack(files, tmp_path)
    whole = by_name(examine(machine))
    better = []
    for name in files:
        file, kept = tmp_path / name.lstrip("/"), tmp_path / "kept"
        if not name.startswith("/") or file.is_symlink():
            continue
        file.rename(kept)
        file.symlink_to(file.name)
        found = by_name(examine(Machine(machine.root, machine.env, machine.machine)))
        kept.replace(file)
        for check_name in set(whole) & set(found):
            if whole[check_name].verdict in ("warn", "fail") and found[check_name].verdict == "ok":
                better.append((name, found[check_name]))
    assert better == []


def test_the_fix_is_for_where_one_is(tmp_path: Path) -> None:
    machines = {path.name: unpack(files_of(path), tmp_path / path.name) for path in MACHINES}
    fixes = {name: by_name(examine(machine))["locked memory"].fix for name, machine in machines.items()}
    assert "login:" in fixes["laptop"] and "systemd:" in fixes["laptop"] and "container:" not in fixes["laptop"]
    assert fixes["container"].startswith("container:") and "login:" not in fixes["container"]

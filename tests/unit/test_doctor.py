"""What the doctor makes of several machines, from texts as they write them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rtloop.system.check import VERDICTS, Check
from rtloop.tools.doctor import samples
from rtloop.tools.doctor.clocks import ClockCost
from rtloop.tools.doctor.examination import TOPICS, Evidence, examine
from rtloop.tools.doctor.machine import Machine
from rtloop.tools.doctor.probe import examine as examine_probe
from rtloop.tools.doctor.probe import run_probe
from rtloop.tools.doctor.timesync import TimeSync, read_time_sync
from rtloop.tools.doctor.toolchain import Toolchain, read_toolchain

MACHINES = sorted(path for path in (Path(__file__).parent / "machines").iterdir() if not path.suffix)


def files_of(path: Path) -> dict[str, str]:
    """Read a captured machine: the text of each file by its path, or what follows its path in the header."""
    files: dict[str, str] = {}
    for part in ("\n" + path.read_text()).split("\n==> ")[1:]:
        header, _, text = part.partition("\n")
        name, blank, rest = header.partition(" ")
        files[name] = f"\0{rest}" if blank else text
    return files


def unpack(files: dict[str, str], root: Path) -> Machine:
    """Write a machine's files below a folder, and return the machine there."""
    env = dict(line.partition("=")[::2] for line in files.get("env", "").splitlines())
    for name, text in files.items():
        if name.startswith("/"):
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("\0-> "):
                path.symlink_to(text[4:])
            elif text == "\0!":
                path.symlink_to(path.name)  # to itself: there, and nobody can read it, not even root
            else:
                path.write_text(text + "\n")
    return Machine(str(root), env, files.get("uname", "x86_64").strip())


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    """One of the machines, by name, with some of its files replaced, or taken away (None)."""

    def make(name: str, /, **changes: str | None) -> Machine:
        files = files_of(Path(__file__).parent / "machines" / name)
        for key, text in changes.items():
            if text is None:
                del files[key]
            else:
                files[key] = text
        return unpack(files, tmp_path)

    return make


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks if check.topic != "probe"}
    assert len(found) == len([check for check in checks if check.topic != "probe"]), "two checks with one name"
    return found


VERSION, RELEASE, CONFIG = "/proc/sys/kernel/version", "/proc/sys/kernel/osrelease", "/boot/config-5.4"

#: For each machine: check, verdict, what the finding says, what the fix says.
EXPECTED = {
    "microvm": [
        ("preemption", "warn", "PREEMPT_DYNAMIC, none unless changed since", "host:       6.18.44"),
        ("version", "ok", "6.18.44", ""),
        ("real-time priority", "ok", "RLIMIT_RTPRIO is 0, not applied with CAP_SYS_NICE", ""),
        ("locked memory", "ok", "RLIMIT_MEMLOCK is 8388608 bytes, not applied with CAP_IPC_LOCK", ""),
        ("capabilities", "ok", "CAP_SYS_NICE, CAP_IPC_LOCK; missing: CAP_SYS_RESOURCE", ""),
        ("limits of the login", "ok", "nothing for root", ""),
        ("user", "ok", "root", ""),
        ("control group's real-time runtime", "ok", "950000 us", ""),
        ("control group's CPU limit", "ok", "none", ""),
        ("fair server", "note", "could not be read (debugfs is not there", "mount -t debugfs"),
        ("container", "ok", "none", ""),  # though /.dockerenv is there
        ("virtual machine", "warn", "KVM", "pin"),
        ("stolen time", "ok", "0.0", ""),
        ("interrupts", "note", "2, and no isolated CPU", ""),
        ("isolated CPUs", "note", "none of 0-1", "isolcpus=managed_irq,domain,1 nohz_full=1 rcu_nocbs=1"),
        ("idle states", "ok", "haltpoll idle, 1 us", ""),
        ("frequency governor", "note", "no frequency scaling is visible", ""),
        ("clocksource", "ok", "tsc (also there: kvm-clock)", ""),
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
        ("nohz_full", "ok", "1", ""),
        ("rcu_nocbs", "ok", "1", ""),
        ("interrupts", "warn", "3 of 5 may come to isolated CPUs 1: 1 (i8042), 4 (ttyS0), 9 (acpi)", "echo 0 |"),
        ("clocksource", "warn", "hpet (also there: acpi_pm)", "dmesg | grep -i tsc"),
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
        ("fair server", "ok", "50 ms of each 1 s on CPUs 0-1", ""),
        ("control group's real-time runtime", "ok", "not limited", ""),
        ("CPUs of this process", "ok", "0-1 of 0-3", ""),
        ("container", "ok", "none", ""),
        ("virtual machine", "ok", "none", ""),
        ("isolated CPUs", "ok", "2-3 of 0-3 (domain, managed_irq)", ""),
        ("nohz_full", "ok", "2-3", ""),
        ("rcu_nocbs", "ok", "2-3", ""),
        ("interrupts", "warn", "1 of 2 may come to isolated CPUs 2-3: 124 (nvme0q3)", "echo 0-1 | sudo tee /proc/irq"),
        ("irqbalance", "ok", "CPUs banned", ""),
        ("threads per core", "ok", "1", ""),
        ("frequency governor", "ok", "performance, 0.80 to 3.50 GHz", ""),
        ("idle states", "ok", "C1, 2 us", ""),
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
         "this session has rtprio 0, memlock 65536: it belongs to user@.service", "systemctl edit user@.service"),
        ("fair server", "ok", "none in this kernel", ""),
        ("isolated CPUs", "note", "none of 0-3", "GRUB_CMDLINE_LINUX"),
        ("irqbalance", "note", "runs", "disable --now irqbalance"),
        ("threads per core", "note", "2", "nosmt"),
        ("frequency governor", "warn", "powersave, 0.40 to 4.70 GHz", "scaling_governor"),
        ("idle states", "note", "C10, 890 us to leave it (intel_idle)", "intel_idle.max_cstate=1"),
        ("idle latency bound", "note", "could not be read", ""),
        ("transparent huge pages", "warn", "always", "echo madvise"),
        ("khugepaged", "warn", "at all memory", "echo madvise"),
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
        ("nohz_full", "note", "none; the isolated 2-3 are not in it", "nohz_full=2-3"),
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


def stat(tid: int, name: str, policy: int, priority: int, ticks: int, flags: int = 0) -> str:
    """Write a line of /proc/<pid>/task/<tid>/stat."""
    values = [0] * 52
    values[9], values[14], values[39], values[40], values[41] = flags, ticks, 1, priority, policy
    return f"{tid} ({name}) R " + " ".join(str(value) for value in values[4:])


def hog_machine(root: Path, ticks: int, run_ns: int | None) -> Machine:
    files = {"/proc/1/stat": "1 (init) S 0", "/proc/stat": f"cpu 0 0 0 {1000 + ticks} 0 0 0 {ticks} 0 0"}
    for tid, name, policy, priority in ((500, "spin) R 1 (", 1, 1), (501, "quiet", 2, 50), (502, "plain", 0, 0)):
        files[f"/proc/{tid}/task/{tid}/stat"] = stat(tid, name, policy, priority, ticks if tid != 501 else 0)
        if run_ns is not None:
            files[f"/proc/{tid}/task/{tid}/schedstat"] = f"{run_ns if tid != 501 else 0} 0 1"
    return unpack(files, root)


@pytest.mark.parametrize("has_schedstat", [True, False])
def test_a_real_time_hog_is_named_with_its_share(tmp_path: Path, has_schedstat: bool) -> None:
    before = samples.take_sample(hog_machine(tmp_path / "a", 0, 0 if has_schedstat else None))
    later = hog_machine(tmp_path / "b", 60, 600_000_000 if has_schedstat else None)
    after = samples.take_sample(later)._replace(seconds=before.seconds + 1)
    (check,) = samples.examine(later, before, after)
    assert check.verdict == "warn"
    assert "spin) R 1 ( (pid 500, tid 500, fifo 1) took 60 % of a CPU in 1.0 s, lastly CPU 1" in check.found
    assert "chrt --other --pid 0 500" in check.fix

    (check,) = samples.examine(later, after._replace(seconds=0), after)
    assert check.verdict == "ok" and check.found.startswith("2 visible, 2 of them programs'")
    assert examine(later, Evidence(before, after))[0].topic == "probe"


def test_steal_between_two_looks_counts_too(tmp_path: Path) -> None:
    before = samples.take_sample(hog_machine(tmp_path / "a", 0, None))
    later = hog_machine(tmp_path / "b", 4, None)  # 4 of 1008 ticks since boot would be by chance
    after = samples.take_sample(later)._replace(seconds=before.seconds + 1)
    check = by_name(examine(later, Evidence(before, after)))["stolen time"]
    assert check.verdict == "warn" and "50.0 % in the last 1.0 s" in check.found


@pytest.mark.parametrize(
    ("cost", "verdict", "words"),
    [
        (ClockCost(23, 180, 1), "ok", "23 ns; the bare system call takes 180 ns: through the vDSO"),
        (ClockCost(190, 180, 1), "warn", "not through the vDSO"),
        (ClockCost(1500, 1600, 1), "warn", "not through the vDSO"),
    ],
)
def test_C5_a_clock_without_vdso_is_found(tmp_path: Path, cost: ClockCost, verdict: str, words: str) -> None:
    check = by_name(examine(Machine(str(tmp_path)), Evidence(cost=cost)))["clock_gettime"]
    assert check.verdict == verdict and words in check.found


def test_C5_the_clock_of_this_machine_is_measured() -> None:
    import time

    from rtloop.errors import SetupError
    from rtloop.system.clock import clock_cost

    call, bare = clock_cost(time.CLOCK_MONOTONIC)
    assert 0 < call < 1e6 and 0 < bare < 1e6
    # This clock has no vDSO: both ways enter the kernel, and cost more than a read through the vDSO can save.
    call, bare = clock_cost(time.CLOCK_THREAD_CPUTIME_ID)
    assert call > 0.6 * bare
    with pytest.raises(SetupError, match="clock 99"):
        clock_cost(99)


def test_a_coarse_timer_fails(tmp_path: Path) -> None:
    evidence = Evidence(cost=ClockCost(20, 100, 4_000_000))
    check = by_name(examine(Machine(str(tmp_path)), evidence))["timer resolution"]
    assert check.verdict == "fail" and check.found == "4 ms" and check.fix


@pytest.mark.parametrize(
    ("files", "model"),
    [
        ({"/sys/kernel/realtime": "1", VERSION: "#1 SMP PREEMPT"}, "PREEMPT_RT"),  # each of the three alone is enough
        ({VERSION: "#1 SMP PREEMPT_RT Debian"}, "PREEMPT_RT"),
        ({VERSION: "#1 SMP PREEMPT", RELEASE: "5.4", CONFIG: "CONFIG_PREEMPT_RT=y"}, "PREEMPT_RT"),
        ({VERSION: "#1 SMP PREEMPT_DYNAMIC", "/sys/kernel/debug/sched/preempt": "none voluntary full (lazy)"},
         "PREEMPT_DYNAMIC, lazy"),
        ({"/sys/kernel/realtime": "0", VERSION: "#1 SMP PREEMPT"}, "full"),
        ({VERSION: "#1 SMP", RELEASE: "5.4", CONFIG: "CONFIG_PREEMPT_VOLUNTARY=y"}, "voluntary"),
        ({VERSION: "#1 SMP"}, "none or voluntary"),
    ],
)  # fmt: skip
def test_the_preemption_model_is_told_from_what_there_is(tmp_path: Path, files: dict[str, str], model: str) -> None:
    from rtloop.tools.doctor.kernel import preemption

    assert preemption(unpack(files, tmp_path))[0] == model


@pytest.mark.parametrize("outer", ["50000 100000", "200000 100000", "max 100000"])
def test_the_smallest_quota_of_all_groups_above_counts(tmp_path: Path, outer: str) -> None:
    files = {
        "/sys/devices/system/cpu/online": "0-7", "/proc/self/cgroup": "0::/a/b",
        "/sys/fs/cgroup/a/cpu.max": outer, "/sys/fs/cgroup/a/b/cpu.max": "100000 100000",
    }  # fmt: skip
    check = by_name(examine(unpack(files, tmp_path)))["control group's CPU limit"]
    assert check.found.startswith("0.50 CPUs" if outer.startswith("50000") else "1.00 CPUs")


def test_a_quota_of_more_than_all_cpus_does_not_matter(tmp_path: Path) -> None:
    files = {
        "/sys/devices/system/cpu/online": "0-1",
        "/proc/self/cgroup": "0::/",
        "/sys/fs/cgroup/cpu.max": "200000 100000",
    }
    assert by_name(examine(unpack(files, tmp_path)))["control group's CPU limit"].verdict == "ok"


@pytest.mark.parametrize(
    ("arguments", "nohz", "verdict"),
    [
        ("nohz_full=2-3", "2-3", "ok"),  # takes the callbacks along
        ("rcu_nocbs=all", "", "ok"),
        ("rcu_nocbs=2", "", "note"),
        ("rcu_nocbs=1-N", "", "ok"),
        ("rcu_nocbs=0-N:1/2", "", "note"),
        ("rcu_nocbs=2-N,x", "", "note"),
        ("", "", "note"),
    ],
)
def test_callbacks_are_kept_from_isolated_cpus(
    machine: Callable[..., Machine], arguments: str, nohz: str, verdict: str
) -> None:
    made = machine("rt-desktop", **{"/proc/cmdline": arguments, "/sys/devices/system/cpu/nohz_full": nohz})
    assert by_name(examine(made))["rcu_nocbs"].verdict == verdict


def test_what_the_kernel_is_not_built_for_is_neither_found_nor_proposed(machine: Callable[..., Machine]) -> None:
    """An argument that the kernel does not know changes nothing, on its command line or in a fix."""
    release = "/boot/config-6.18.44"
    config = "CONFIG_RCU_NOCB_CPU=y\n# CONFIG_NO_HZ_FULL is not set"
    found = by_name(examine(machine("microvm", **{release: config, "/proc/cmdline": "nohz_full=1 rcu_nocbs=1"})))
    assert found["rcu_nocbs"].found == "1" and found["rcu_nocbs"].verdict == "ok"
    assert (found["nohz_full"].verdict, found["nohz_full"].source) == ("note", release)
    assert found["nohz_full"].found == "none: this kernel is built without CONFIG_NO_HZ_FULL"
    assert "isolcpus=managed_irq,domain,1 rcu_nocbs=1" in found["isolated CPUs"].fix


@pytest.mark.parametrize(
    ("release", "option", "runtime", "verdict"),
    [
        ("6.12.48+deb13-rt-amd64", "# CONFIG_RT_GROUP_SCHED is not set", "0", "ok"),
        ("6.12.48+deb13-rt-amd64", "CONFIG_RT_GROUP_SCHED=y", "0", "fail"),
        ("6.12.48+deb13-rt-amd64", "", "0", "fail"),  # not known: then what could be worse
        ("6.11.0", "# CONFIG_RT_GROUP_SCHED is not set", "0", "fail"),
        ("6.11.0", "# CONFIG_RT_GROUP_SCHED is not set", "-1", "note"),
    ],
)
def test_T7_throttling_is_that_of_the_kernels_version(
    machine: Callable[..., Machine], release: str, option: str, runtime: str, verdict: str
) -> None:
    """From 6.12 on the fair server has its place, but with RT_GROUP_SCHED."""
    files = {RELEASE: release, f"/boot/config-{release}": option, "/proc/sys/kernel/sched_rt_runtime_us": runtime}
    assert by_name(examine(machine("rt-desktop", **files)))["real-time throttling"].verdict == verdict


def test_a_fix_of_the_boot_loader_is_for_the_one_there(machine: Callable[..., Machine], tmp_path: Path) -> None:
    made = machine("laptop", **{"/etc/default/grub": None})
    fix = by_name(examine(made))["isolated CPUs"].fix
    assert "grub" not in fix and fix.startswith("boot:       add to the kernel's command line: isolcpus=")
    (tmp_path / "etc/default").mkdir(exist_ok=True)
    (tmp_path / "etc/default/grub").write_text("")
    fix = by_name(examine(Machine(made.root, made.env, made.machine)))["isolated CPUs"].fix
    assert "sudo update-grub" in fix


def test_a_virtual_machine_with_packaged_kernels_installs_another(machine: Callable[..., Machine]) -> None:
    """And one whose kernel came from outside cannot: see the microvm."""
    made = machine("microvm", **{"/lib/modules/6.18.44/modules.dep": ""})
    assert "sudo apt install linux-image-rt-amd64" in by_name(examine(made))["preemption"].fix


def test_a_comment_bans_no_cpu_from_irqbalance(machine: Callable[..., Machine]) -> None:
    files = {"/etc/default/irqbalance": "#IRQBALANCE_BANNED_CPULIST=2-3", "/sys/devices/system/cpu/isolated": ""}
    assert by_name(examine(machine("rt-desktop", **files)))["irqbalance"].verdict == "note"


@pytest.mark.parametrize(("kilobytes", "verdict"), [(65536, "ok"), (131072, "warn")])
def test_limits_conf_counts_memlock_in_kilobytes(machine: Callable[..., Machine], kilobytes: int, verdict: str) -> None:
    """The laptop's session has 64 MiB."""
    files = {"/etc/security/limits.conf": f"ada - memlock {kilobytes}", "/etc/security/limits.d/99-realtime.conf": ""}
    assert by_name(examine(machine("laptop", **files)))["limits of the login"].verdict == verdict


def test_the_fix_is_for_where_one_is(tmp_path: Path) -> None:
    machines = {path.name: unpack(files_of(path), tmp_path / path.name) for path in MACHINES}
    fixes = {name: by_name(examine(machine))["locked memory"].fix for name, machine in machines.items()}
    assert "login:" in fixes["laptop"] and "systemd:" in fixes["laptop"] and "container:" not in fixes["laptop"]
    assert fixes["container"].startswith("container:") and "login:" not in fixes["container"]


def test_ssh_without_pam_limits_is_told_by_its_cause(machine: Callable[..., Machine]) -> None:
    has_pam = {"/etc/ssh/sshd_config.d/50-cloud.conf": "UsePAM yes", "/etc/pam.d/sshd": "@include common-session"}
    made = machine("server", **has_pam, **{"/etc/pam.d/common-session": "session optional pam_umask.so"})
    assert "pam_limits.so is not in /etc/pam.d/sshd" in by_name(examine(made))["limits of the login"].found


def test_pam_limits_that_are_included_are_found(machine: Callable[..., Machine]) -> None:
    files = {"/etc/ssh/sshd_config": "UsePAM yes", "/etc/pam.d/sshd": "session include password-auth"}
    made = machine("server", **files, **{"/etc/pam.d/password-auth": "session required pam_limits.so"})
    assert "logged in before" in by_name(examine(made))["limits of the login"].found


def test_tailscale_ssh_is_told_by_its_name(machine: Callable[..., Machine]) -> None:
    """Its sessions do not go through PAM's limits, and nothing but their parent shows it."""
    parents = {"/proc/4000/status": "Name:\tbash\nPPid:\t3999", "/proc/3999/status": "Name:\ttailscaled\nPPid:\t1"}
    check = by_name(examine(machine("server", **parents)))["limits of the login"]
    assert "tailscaled" in check.found and "Tailscale SSH" in check.fix


def test_capabilities_of_a_user_namespace_do_not_count(machine: Callable[..., Machine]) -> None:
    found = by_name(examine(machine("microvm", **{"/proc/self/uid_map": "0 1000 1"})))
    assert found["capabilities"].verdict == "note" and "user namespace" in found["capabilities"].found
    assert found["real-time priority"].verdict == found["locked memory"].verdict == "fail"


def test_who_examines_through_sudo_is_told_whose_session_that_is(machine: Callable[..., Machine]) -> None:
    check = by_name(examine(machine("microvm", env="SUDO_USER=ada")))["user"]
    assert check.verdict == "note" and "says nothing of ada's own sessions" in check.found


def test_a_hard_limit_that_would_do_is_named(machine: Callable[..., Machine]) -> None:
    limits = "Max realtime priority     0                    99                   \n"
    check = by_name(examine(machine("laptop", **{"/proc/self/limits": limits})))["real-time priority"]
    assert "the hard limit is 99" in check.found and "ulimit -Sr 99" in check.fix.splitlines()[0]


def test_a_process_off_the_isolated_cpus_may_go_there(machine: Callable[..., Machine]) -> None:
    """The kernel starts every process off the isolated CPUs: only a cpuset keeps it from them."""
    inside = {"/sys/fs/cgroup/cpuset.cpus.effective": "0-3"}
    check = by_name(examine(machine("container", **inside)))["CPUs of this process"]
    assert check.verdict == "ok" and "may move to isolated 2-3" in check.found


@pytest.mark.parametrize(
    ("marks", "kind"),
    [
        ({"env": "KUBERNETES_SERVICE_HOST=10.0.0.1"}, "kubernetes"),
        ({"/run/.containerenv": ""}, "podman"),
        ({"/run/systemd/container": "lxc"}, "lxc"),
        ({"env": "container=systemd-nspawn"}, "systemd-nspawn"),
        ({"/proc/1/cgroup": "0::/docker/abc"}, "docker"),
        ({}, ""),
    ],
)
def test_containers_are_told_apart(tmp_path: Path, marks: dict[str, str], kind: str) -> None:
    assert unpack(marks, tmp_path).place.container == kind


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"/proc/sys/kernel/osrelease": "5.15.153.1-microsoft-standard", "/proc/cpuinfo": "flags : hypervisor"}, "WSL"),
        ({"/proc/cpuinfo": "flags : fpu hypervisor", "/sys/class/dmi/id/sys_vendor": "VMware, Inc."}, "VMware"),
        ({"/proc/cpuinfo": "flags : fpu hypervisor"}, "unknown kind"),
        ({"/proc/cpuinfo": "Features : fp", "/sys/class/dmi/id/sys_vendor": "QEMU"}, "QEMU"),
        ({"/proc/cpuinfo": "flags : fpu", "/sys/class/dmi/id/sys_vendor": "Amazon EC2"}, ""),  # a .metal instance
        ({"/proc/cpuinfo": "flags : fpu", "/sys/class/dmi/id/sys_vendor": "QEMU"}, "QEMU"),  # that hides the flag
        ({"/proc/cpuinfo": "flags : fpu", "/sys/class/dmi/id/sys_vendor": "Google"}, ""),  # a Chromebook
        ({"/proc/cpuinfo": "flags : fpu", "/sys/hypervisor/type": "xen"}, "Xen"),
    ],
)  # fmt: skip
def test_hypervisors_are_told_apart(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    from rtloop.tools.doctor.surroundings import hypervisor

    assert hypervisor(unpack(files, tmp_path))[0] == kind


def test_the_tools_that_are_missing_are_named() -> None:
    from rtloop.tools.doctor.toolchain import examine as examine_tools

    bare = Toolchain("CPython 3.13.0", True, False, False, "", "", False)
    python, cython, compiler = examine_tools(bare, "debian")
    assert "free-threaded, GIL off" in python.found
    assert cython.verdict == "note" and "pip install cython" in cython.fix
    assert compiler.found == "no C compiler and no Python.h" and "python3-dev" in compiler.fix
    assert next(examine_tools(read_toolchain())).verdict in ("ok", "note")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL: so end a finite RLIMIT_RTTIME"),
        ("raise RuntimeError('no such luck')", "did not start: RuntimeError: no such luck"),
        ("import time; time.sleep(60)", "did not end within 0.3 s"),
        ("pass", "did not start: exit code 0"),
    ],
)
def test_an_experiment_that_goes_wrong_fails(program: str, words: str) -> None:
    (check,) = examine_probe(run_probe(program, 0.3 if "sleep" in program else 20))
    assert check.verdict == "fail" and words in check.found


def test_the_examination_of_this_machine_reads_and_does_not_write() -> None:
    """No file is opened for writing but by the child that holds the idle latency."""
    import sys

    from rtloop.tools.doctor.examination import gather

    opened: list[tuple[object, object]] = []
    is_on = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if is_on and event == "open":
            mode, flags = arguments[1], int(str(arguments[2] or 0))
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or (isinstance(mode, str) and set(mode) & set("wax+")):
                opened.append((arguments[0], mode))

    sys.addaudithook(hook)
    machine = Machine()
    limits = Path("/proc/self/limits").read_text()
    checks = examine(machine, gather(machine, 0.05))
    is_on = False
    assert [path for path in opened if not isinstance(path[0], int) and "pyc" not in str(path[0])] == []
    assert Path("/proc/self/limits").read_text() == limits
    assert {check.topic for check in checks} >= set(TOPICS) - {"measured"}


@pytest.mark.parametrize(("value", "verdict"), [("1\n", "warn"), ("0\n", "ok")])
def test_M11_compaction_that_moves_locked_pages_is_found_with_its_fix(tmp_path: Path, value: str, verdict: str) -> None:
    file = tmp_path / "proc/sys/vm/compact_unevictable_allowed"
    file.parent.mkdir(parents=True)
    file.write_text(value)
    (check,) = (check for check in examine(Machine(str(tmp_path), {}, "x86_64")) if "compaction" in check.name)
    assert check.verdict == verdict
    assert ("vm.compact_unevictable_allowed=0" in check.fix) == (verdict == "warn")
    assert file.read_text() == value, "rtloop writes no sysctl by itself"


@pytest.mark.parametrize(
    ("sync", "running", "name", "verdict", "words", "fix"),
    [
        (None, (), "TAI offset", "note", "not read", ""),
        (TimeSync(37, True, 0, 0), (), "TAI offset", "ok", "37 s", ""),
        (TimeSync(0, True, 0, 0), (), "TAI offset", "note", "not set", "phc2sys -a -r"),
        (TimeSync(0, False, 10**10, 0), (), "time of day", "note", "no PTP and no NTP service runs here; not sync", ""),
        (TimeSync(37, True, 500_000, -90), ("ptp4l", "phc2sys"), "time of day", "ok", "by phc2sys, ptp4l; sync", ""),
        (TimeSync(37, True, 500_000, -90), ("ptp4l", "phc2sys"), "time of day", "ok", "90 ns left to correct", ""),
        (TimeSync(37, True, 0, 0), ("ptp4l",), "time of day", "note", "the network card's clock", "phc2sys -a -r"),
        (TimeSync(37, True, 0, 0), ("chronyd",), "time of day", "note", "kept by chronyd", ""),
        (TimeSync(37, True, 0, 0), ("phc2sys", "ptp4l", "chronyd"), "time of day", "warn", "two that keep one clock",
         "systemctl stop chronyd"),
    ],
)  # fmt: skip
def test_who_keeps_the_clock_among_hosts_is_said(
    tmp_path: Path, sync: TimeSync | None, running: tuple[str, ...], name: str, verdict: str, words: str, fix: str
) -> None:
    for pid, comm in enumerate((*running, "bash"), 100):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/comm").write_text(f"{comm}\n")
    check = by_name(examine(Machine(str(tmp_path)), Evidence(sync=sync)))[name]
    assert check.verdict == verdict and words in check.found and fix in check.fix, check


def test_the_kernels_offset_of_tai_is_read() -> None:
    sync = read_time_sync()
    offset = round((time.clock_gettime_ns(time.CLOCK_TAI) - time.clock_gettime_ns(time.CLOCK_REALTIME)) * 1e-9)
    assert sync is None or sync.tai_offset_s == offset
    assert sync is None or sync.max_error_ns >= 0

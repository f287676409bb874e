"""The doctor's page beside the kernel's pages: every check has its row, its verdicts, and its document."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rtloop_test_machines import MACHINES, by_name, files_of, unpack

from rtloop.machine.doctor.machine_files import Machine
from rtloop.machine.doctor.references import ITEMS, PAGES, VERDICTS_OF, plain_name, references
from rtloop.machine.doctor.run_all import examine
from rtloop.machine.doctor.samples import Sample

DOCS = Path(__file__).parents[2] / "docs"
#: Checks that describe the machine or the tools; no document asks for them.
WITHOUT = {"machine", "container", "Python", "Cython", "C compiler", "wake-up latency"}


def test_the_page_has_the_checks_as_they_are() -> None:
    script = runpy.run_path(str(DOCS / "draw_doctor.py"))
    page = (DOCS / "reference" / "doctor.md").read_text()
    assert script["written"](page) == page, "the checks have changed: python docs/draw_doctor.py"


def test_each_item_names_checks_that_there_are() -> None:
    named = {check for item in ITEMS for check in item.checks}
    assert named <= set(VERDICTS_OF)
    assert set(VERDICTS_OF) - named == WITHOUT
    assert all(item.checks or item.remark for item in ITEMS), "an item without a check says why"
    assert {item.page for item in ITEMS} == set(PAGES)
    assert len({(item.page, item.name) for item in ITEMS}) == len(ITEMS)


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.name)
def test_each_verdict_of_a_machine_is_on_the_page(path: Path, tmp_path: Path) -> None:
    checks = examine(unpack(files_of(path), tmp_path))
    missing = [(x.name, x.verdict) for x in checks if x.verdict not in VERDICTS_OF.get(plain_name(x.name), {})
               and x.topic != "probe"]  # fmt: skip
    assert missing == []


def test_a_check_names_its_document() -> None:
    (first,) = references("lock debugging")
    assert first["item"] == "CONFIG_PROVE_LOCKING"
    assert first["url"].endswith("real-time/kernel-configuration.html#config-prove-locking")
    assert [entry["item"] for entry in references("KSM")] == []
    assert references("same-page merging (KSM)")[0]["url"] == "https://docs.kernel.org/admin-guide/mm/ksm.html"
    assert plain_name("known problem: deletion of a timer") == "known problem"
    assert plain_name("known problems") == "known problems"


RT = "6.12.48+deb13-rt-amd64"
CONFIG = f"/boot/config-{RT}"
TRACING = "/sys/kernel/tracing"
MASK = "/sys/devices/virtual/workqueue/cpumask"
#: On a PREEMPT_RT machine with the CPUs 2-3 of 0-3 isolated: what is planted, the check, its verdict and its finding.
PLANTED: list[tuple[dict[str, str], str, str, str]] = [
    ({}, "preemption mode", "ok", "PREEMPT_RT"),
    ({"/sys/kernel/debug/sched/preempt": "full (lazy)"}, "preemption mode", "ok", "PREEMPT_RT, lazy for ordinary"),
    ({}, "threaded interrupts", "ok", "forced by PREEMPT_RT"),
    ({"/proc/cmdline": "nohz=off"}, "idle tick", "ok", "steady: nohz=off"),
    ({CONFIG: "CONFIG_HZ_PERIODIC=y"}, "idle tick", "ok", "steady: this kernel was built"),
    ({CONFIG: "CONFIG_NO_HZ_IDLE=y"}, "idle tick", "note", "stops on an idle CPU"),
    ({CONFIG: "CONFIG_X=y"}, "idle tick", "note", "could not be read"),
    ({f"{TRACING}/current_tracer": "nop", f"{TRACING}/events/enable": "0"}, "tracing", "ok", "built in, and off"),
    ({f"{TRACING}/current_tracer": "function", f"{TRACING}/events/enable": "X",
      f"{TRACING}/rv/enabled_monitors": "sleep"}, "tracing", "warn",
     "on: the tracer function, events, the monitor sleep"),
    ({f"{TRACING}/current_tracer": "nop"}, "tracing", "note", "could not be read"),
    ({CONFIG: "# CONFIG_TRACING is not set"}, "tracing", "note", "not built in"),
    ({CONFIG: "CONFIG_PROVE_LOCKING=y"}, "lock debugging", "warn", "built in: CONFIG_PROVE_LOCKING"),
    ({CONFIG: "CONFIG_X=y"}, "lock debugging", "ok", "not built in"),
    ({CONFIG: "CONFIG_KASAN=y\nCONFIG_DEBUG_VM=y"}, "debug options", "warn", "built in: CONFIG_KASAN, CONFIG_DEBUG_VM"),
    ({CONFIG: "CONFIG_DEBUG_PREEMPT=y"}, "debug options", "note", "built in: CONFIG_DEBUG_PREEMPT"),
    ({CONFIG: "CONFIG_DEBUG_KMEMLEAK=y"}, "debug options", "warn", "built in: CONFIG_DEBUG_KMEMLEAK"),
    ({CONFIG: "CONFIG_DEBUG_KMEMLEAK=y\nCONFIG_DEBUG_KMEMLEAK_DEFAULT_OFF=y"}, "debug options", "ok", "none"),
    ({CONFIG: "CONFIG_DEBUG_ATOMIC_SLEEP=y\nCONFIG_DEBUG_INFO=y"}, "debug options", "ok", "none"),
    ({"/sys/firmware/efi/runtime": "1", "/sys/devices/virtual/workqueue/efi_runtime/cpumask": "3"},
     "EFI runtime services", "ok", "on, confined to CPUs 0-1"),
    ({"/sys/firmware/efi/runtime": "1", "/sys/devices/virtual/workqueue/efi_runtime/cpumask": "f"},
     "EFI runtime services", "note", "on"),
    ({MASK: "3"}, "unbound kernel work", "ok", "on CPUs 0-1"),
    ({MASK: "7"}, "unbound kernel work", "warn", "on CPUs 0-2, of which 2 is isolated"),
    ({MASK: "x"}, "unbound kernel work", "note", "could not be read"),
    ({"/proc/irq/default_smp_affinity": "f"}, "new interrupts", "note", "on CPUs 0-3, of which 2-3 are isolated"),
    ({"/sys/devices/system/cpu/cpu2/cache/index3/level": "3",
      "/sys/devices/system/cpu/cpu2/cache/index3/shared_cpu_list": "0-3"}, "shared caches", "note",
     "L3 of CPUs 0-3; 0-1 share it with isolated CPUs"),
    ({"/sys/devices/system/cpu/cpu2/cache/index2/level": "2",
      "/sys/devices/system/cpu/cpu2/cache/index2/shared_cpu_list": "2-3"}, "shared caches", "ok", "L2 of CPUs 2-3"),
    ({"/sys/fs/cgroup/cpuset.cpus.effective": "0-1", "/sys/fs/cgroup/rt/cpuset.cpus.partition": "isolated",
      "/sys/fs/cgroup/rt/cpuset.cpus.effective": "3"}, "cpuset partitions", "ok", "/rt: isolated (3)"),
    ({"/sys/fs/cgroup/cpuset.cpus.effective": "0-3", "/sys/fs/cgroup/rt/cpuset.cpus.partition":
      "isolated invalid (Cpu list in cpuset.cpus not exclusive)"}, "cpuset partitions", "warn", "/rt: isolated"),
    ({"/sys/class/net/eth0/device/vendor": "x", "/sys/class/net/eth0/threaded": "1", "/sys/class/net/lo/threaded": "0"},
     "threaded NAPI", "ok", "eth0: on"),
    ({"/sys/class/net/eth0/device/vendor": "x", "/sys/class/net/eth0/threaded": "0"}, "threaded NAPI", "note",
     "eth0: off"),
    ({"/sys/class/net/eth0/device/vendor": "x"}, "threaded NAPI", "note", "eth0: could not be read"),
    ({"/sys/class/net/lo/threaded": "0"}, "threaded NAPI", "ok", "none"),
    ({"/sys/class/drm/card0/device/driver": "\0-> ../../bus/pci/drivers/i915"}, "graphics", "note", "card0 (i915)"),
    ({"/sys/class/drm/card0/device/driver": "\0-> ../../bus/pci/drivers/ast"}, "graphics", "ok", "card0 (ast)"),
    ({"/sys/module/pcie_aspm/parameters/policy": "default [performance] powersave"}, "PCIe power management", "ok",
     "performance"),
    ({"/sys/module/pcie_aspm/parameters/policy": "[default] performance powersave"}, "PCIe power management", "note",
     "default"),
    ({"/sys/module/pcie_aspm/parameters/policy": "default performance [powersave]"}, "PCIe power management", "warn",
     "powersave"),
    ({"uname": "aarch64", "/proc/device-tree/firmware/optee/method": "smc"}, "secure world (OP-TEE)", "note", "OP-TEE"),
    ({"uname": "aarch64", "/proc/device-tree/model": "x"}, "secure world (OP-TEE)", "ok", "none is described"),
    ({"/sys/devices/system/cpu/cpu0/cpufreq/scaling_available_governors": "performance powersave"},
     "available governors", "ok", "performance, powersave"),
    ({"/sys/devices/system/cpu/cpu0/cpufreq/scaling_available_governors": "performance schedutil"},
     "available governors", "note", "performance, schedutil"),
    ({"/proc/sys/kernel/sched_rt_runtime_us": "950000"}, "fair server", "ok", "50 ms of each 1 s"),
    ({"/proc/sys/kernel/sched_rt_runtime_us": "40000"}, "fair server", "warn", "50 ms of each 1 s on CPUs 0-1; "),
]  # fmt: skip


@pytest.mark.parametrize(("files", "name", "verdict", "found"), PLANTED)
def test_what_is_planted_is_found(
    machine: Callable[..., Machine], files: dict[str, str], name: str, verdict: str, found: str
) -> None:
    check = by_name(examine(machine("rt-desktop", **{"/proc/sys/kernel/osrelease": RT, CONFIG: "", **files})))[name]
    assert (check.verdict, check.found[: len(found)]) == (verdict, found)
    assert verdict in VERDICTS_OF[name]
    assert check.fix or verdict != "warn"


@pytest.mark.parametrize(
    ("files", "verdict", "found"),
    [
        ({"/sys/kernel/debug/sched/preempt": "(none) voluntary full lazy"}, "note", "PREEMPT_DYNAMIC, none"),
        ({"/sys/kernel/debug/sched/preempt": "none voluntary full (lazy)"}, "ok", "PREEMPT_DYNAMIC, lazy"),
        ({"/proc/cmdline": "preempt=full"}, "ok", "PREEMPT_DYNAMIC, full by"),
        ({"/proc/sys/kernel/version": "#1 SMP PREEMPT"}, "ok", "full"),
        ({"/proc/sys/kernel/version": "#1 SMP"}, "note", "none or voluntary, built in"),
        ({}, "note", "could not be read"),
    ],
)
def test_the_mode_of_another_kernel(
    machine: Callable[..., Machine], files: dict[str, str], verdict: str, found: str
) -> None:
    """On the laptop, whose kernel can change its mode at run time."""
    found_checks = by_name(examine(machine("laptop", **files)))
    check = found_checks["preemption mode"]
    assert (check.verdict, check.found[: len(found)]) == (verdict, found)
    if "(none)" in str(files):
        assert "echo full | sudo tee" in check.fix and "preempt=full" in check.fix
    if found_checks["preemption"].verdict == "warn":
        assert check.verdict != "warn", "one fact, one warning"


def test_interrupts_may_be_forced_into_threads(machine: Callable[..., Machine]) -> None:
    check = by_name(examine(machine("laptop", **{"/proc/cmdline": "threadirqs"})))["threaded interrupts"]
    assert (check.verdict, check.found) == ("ok", "forced by threadirqs")


def known(machine: Any) -> dict[str, str]:
    checks = by_name(examine(machine))
    return {
        name.partition(": ")[2]: check.verdict for name, check in checks.items() if name.startswith("known problem")
    }


@pytest.mark.parametrize(
    ("release", "version", "found"),
    [
        ("6.12.10-rt5", "#1 SMP PREEMPT_RT",
         {"stall of a quota": "note", "fair server's time": "note", "wait by epoll": "note",
          "clocksource watchdog": "warn"}),
        ("6.12.16-rt5", "#1 SMP PREEMPT_RT",
         {"stall of a quota": "note", "fair server's time": "note", "wait by epoll": "note"}),
        ("6.12.117+deb13-rt-amd64", "#1 SMP PREEMPT_RT Debian 6.12.117-1", {"stall of a quota": "note"}),
        ("6.12.16", "#1 SMP PREEMPT_DYNAMIC", {"fair server's time": "note"}),
        # Debian's release has no stable version, but its version string has.
        ("6.1.0-9-rt-amd64", "#1 SMP PREEMPT_RT Debian 6.1.27-1 (2023-05-08)",
         {"stall of a quota": "note", "wait by epoll": "note", "clocksource watchdog": "warn",
          "deletion of a timer": "warn",
          "boosted deadline thread": "note", "leak of deadline threads": "note"}),
        # Ubuntu's and RHEL's have corrections of later stable versions.
        ("5.15.0-1032-realtime", "#35-Ubuntu SMP PREEMPT_RT", {"stall of a quota": "note",
         "wait by epoll": "note", "clocksource watchdog": "note", "deletion of a timer": "note",
         "boosted deadline thread": "note",
         "leak of deadline threads": "note"}),
        ("6.8.1-1010-realtime", "#10-Ubuntu SMP PREEMPT_RT", {"stall of a quota": "note", "wait by epoll": "note",
         "clocksource watchdog": "note", "boosted deadline thread": "note", "leak of deadline threads": "note"}),
        ("4.18.0-553.rt7.342.el8_10.x86_64", "#1 SMP PREEMPT_RT", {"boosted deadline thread": "note",
         "borrowed runtime": "note"}),
        ("5.14.21-150500.13.5-rt", "#1 SMP PREEMPT_RT", {"stall of a quota": "note", "wait by epoll": "note",
         "clocksource watchdog": "note", "deletion of a timer": "note", "boosted deadline thread": "note",
         "leak of deadline threads": "note"}),
        ("6.18.1", "#1 SMP PREEMPT_RT", {"": "ok"}),
        ("4.19.1", "#1 SMP PREEMPT", {"borrowed runtime": "warn"}),
        ("", "", {"": "note"}),
    ],
)  # fmt: skip
def test_known_problems_are_those_of_the_version(
    machine: Callable[..., Machine], release: str, version: str, found: dict[str, str]
) -> None:
    files = {"/proc/sys/kernel/osrelease": release, "/proc/sys/kernel/version": version}
    assert known(machine("laptop", **files)) == found


@pytest.mark.parametrize(
    ("name", "files", "found"),
    [
        ("laptop", {"/proc/self/cgroup": "0::/robot", "/sys/fs/cgroup/robot/cpu.max": "50000 100000"},
         {"stall of a quota": "warn", "fair server's time": "note", "wait by epoll": "note"}),
        ("raspberry-pi", {"/sys/devices/system/cpu/cpu0/cpu_capacity": "446"},
         {"stall of a quota": "note", "fair server's time": "warn", "wait by epoll": "note"}),
    ],
)  # fmt: skip
def test_a_known_problem_matters_under_its_condition(
    machine: Callable[..., Machine], name: str, files: dict[str, str], found: dict[str, str]
) -> None:
    kernel = {"/proc/sys/kernel/osrelease": "6.12.38", "/proc/sys/kernel/version": "#1 SMP PREEMPT_RT"}
    assert known(machine(name, **kernel, **files)) == found


@pytest.mark.parametrize(
    ("counts", "verdict", "found"),
    [
        ((7, 7), "ok", "none in 0.5 s, 7 since boot"),
        ((7, 9), "warn", "2 in 0.5 s"),
        ((None, None), "note", "could not"),
    ],
)
def test_firmware_interruptions_are_counted(
    machine: Callable[..., Machine], counts: tuple[int | None, int | None], verdict: str, found: str
) -> None:
    from rtloop.machine.doctor.run_all import Evidence

    before, after = (Sample(seconds, None, {}, count) for seconds, count in zip((1.0, 1.5), counts, strict=True))
    made = machine("rt-desktop", **{"/proc/cpuinfo": "vendor_id\t: GenuineIntel\nflags\t: fpu"})
    check = by_name(examine(made, Evidence(before, after)))["firmware interruptions"]
    assert (check.verdict, check.found[: len(found)]) == (verdict, found)


def test_the_counter_is_read_at_its_place(machine: Callable[..., Machine]) -> None:
    from rtloop.machine.doctor.samples import take_sample

    made = machine("rt-desktop", **{"/proc/cpuinfo": "vendor_id\t: GenuineIntel\nflags\t: fpu"})
    file = Path(made.root, "dev/cpu/0/msr")
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(0x34) + (5).to_bytes(8, "little"))
    assert take_sample(made).smi == 5


def test_no_counter_is_read_in_a_virtual_machine(machine: Callable[..., Machine]) -> None:
    from rtloop.machine.doctor.samples import take_sample

    assert take_sample(machine("microvm")).smi is None


def test_cpus_of_a_partition_are_isolated_ones(machine: Callable[..., Machine]) -> None:
    files = {"/sys/fs/cgroup/cpuset.cpus.isolated": "3", "/sys/devices/system/cpu/isolated": ""}
    assert machine("laptop", **files).isolated == (3,)

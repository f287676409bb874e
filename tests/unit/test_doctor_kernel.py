"""The doctor's checks of the kernel, its command line, interrupts and memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rtloop_test_machines import by_name, unpack

from rtloop.machine.doctor.machine_files import Machine
from rtloop.machine.doctor.run_all import examine

VERSION, RELEASE, CONFIG = "/proc/sys/kernel/version", "/proc/sys/kernel/osrelease", "/boot/config-5.4"


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
    from rtloop.machine.doctor.checks.kernel import preemption

    assert preemption(unpack(files, tmp_path))[0] == model


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
    assert (found["nohz_full"].verdict, found["nohz_full"].source) == ("ok", release)
    assert found["nohz_full"].found == "none: this kernel was built without CONFIG_NO_HZ_FULL"
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
def test_throttling_is_that_of_the_kernels_version(
    machine: Callable[..., Machine], release: str, option: str, runtime: str, verdict: str
) -> None:
    """From 6.12 on the fair server has its place, but with RT_GROUP_SCHED."""
    files = {RELEASE: release, f"/boot/config-{release}": option, "/proc/sys/kernel/sched_rt_runtime_us": runtime}
    assert by_name(examine(machine("rt-desktop", **files)))["real-time throttling"].verdict == verdict


def test_a_fix_of_the_boot_loader_is_for_the_one_there(machine: Callable[..., Machine], tmp_path: Path) -> None:
    made = machine("laptop", **{"/etc/default/grub": None})
    fix = by_name(examine(made))["isolated CPUs"].fix
    assert "grub" not in fix and "\nboot:       add to the kernel's command line: isolcpus=" in fix
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


@pytest.mark.parametrize(("value", "verdict"), [("1\n", "warn"), ("0\n", "ok")])
def test_compaction_that_moves_locked_pages_is_found_with_its_fix(tmp_path: Path, value: str, verdict: str) -> None:
    file = tmp_path / "proc/sys/vm/compact_unevictable_allowed"
    file.parent.mkdir(parents=True)
    file.write_text(value)
    (check,) = (check for check in examine(Machine(str(tmp_path), {}, "x86_64")) if "compaction" in check.name)
    assert check.verdict == verdict
    assert ("vm.compact_unevictable_allowed=0" in check.fix) == (verdict == "warn")
    assert file.read_text() == value, "rtloop writes no sysctl by itself"


@pytest.mark.parametrize(
    ("name", "files", "verdict", "found"),
    [
        ("latency tracers", {"/boot/config": "CONFIG_IRQSOFF_TRACER=y\nCONFIG_PREEMPT_TRACER=y"}, "warn", "built in"),
        ("latency tracers", {"/boot/config": "# CONFIG_IRQSOFF_TRACER is not set"}, "ok", "not built in"),
        ("latency tracers", {"/boot/config": ""}, "note", "could not be read"),
        ("lockup detectors", {"/proc/sys/kernel/watchdog": "0"}, "ok", "off"),
        ("lockup detectors", {"/proc/sys/kernel/watchdog": "1"}, "warn", "on"),
        ("lockup detectors", {"/proc/sys/kernel/watchdog": "1", "/proc/sys/kernel/watchdog_cpumask": "0-1"}, "ok",
         "on CPUs 0-1, none of them isolated"),
        ("lockup detectors", {"/proc/sys/kernel/watchdog": "1", "/proc/sys/kernel/watchdog_cpumask": "0-2"}, "warn",
         "on CPUs 0-2"),
        ("lockup detectors", {"/boot/config": "# CONFIG_LOCKUP_DETECTOR is not set"}, "ok", "not built in"),
        ("EFI runtime services", {"/sys/firmware/efi/runtime": "0x1"}, "note", "on"),
        ("EFI runtime services", {"/sys/firmware/efi/runtime": "0x1", "/proc/cmdline": "efi=noruntime"}, "ok", "off"),
        ("EFI runtime services", {"/sys/firmware/efi/runtime": "0x1", "/boot/config": "CONFIG_EFI_DISABLE_RUNTIME=y"},
         "ok", "off"),
        ("EFI runtime services", {"/sys/firmware/efi/runtime": "0x1", "/boot/config": "CONFIG_EFI_DISABLE_RUNTIME=y",
                                  "/proc/cmdline": "efi=runtime"}, "note", "on"),
        ("EFI runtime services", {}, "ok", "none: this machine did not boot by EFI"),
    ],
)  # fmt: skip
def test_the_kernels_own_list_for_real_time(
    machine: Callable[..., Machine], name: str, files: dict[str, str], verdict: str, found: str
) -> None:
    """Documentation/core-api/real-time/kernel-configuration.rst, on a PREEMPT_RT machine with the CPUs 2-3 isolated."""
    release = "6.12.48+deb13-rt-amd64"
    renamed = {key.replace("/boot/config", f"/boot/config-{release}"): text for key, text in files.items()}
    check = by_name(examine(machine("rt-desktop", **{RELEASE: release, f"/boot/config-{release}": "", **renamed})))[
        name
    ]
    assert (check.verdict, check.found[: len(found)]) == (verdict, found)
    assert bool(check.fix) is (verdict == "warn" or check.found == "on")

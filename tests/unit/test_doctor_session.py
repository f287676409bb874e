"""The doctor's checks of the session: limits, control group, containers, hypervisors and tools."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rtloop_test_machines import by_name, files_of, unpack

from rtloop.machine.doctor.checks.toolchain import Toolchain, read_toolchain
from rtloop.machine.doctor.machine_files import Machine
from rtloop.machine.doctor.run_all import examine
from rtloop.system.host import host_facts

MACHINES = Path(__file__).parent / "machines"
SUPPORT = Path(__file__).parents[1] / "support"


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


@pytest.mark.parametrize("infinity", [-1, 2**64 - 1])
def test_no_limit_is_unlimited_whatever_number_python_has_for_it(infinity: int, tmp_path: Path) -> None:
    """The number is -1 up to Python 3.14 and 2**64 - 1 from 3.15 on."""
    code = f"""
import resource
resource.RLIM_INFINITY = {infinity}
import sys
from pathlib import Path
sys.path.insert(0, {str(SUPPORT)!r})
import machines
from rtloop.machine.doctor import parse
from rtloop.machine.doctor.run_all import examine
for name in ("server", "laptop", "container"):
    text = machines.files_of(Path({str(MACHINES)!r}) / name)
    text["/sys/fs/cgroup/cpu.max"] = "max 100000"
    text["/etc/security/limits.d/99-realtime.conf"] = "ada - memlock -1\\nada - rtprio 95"
    folder = Path({str(tmp_path)!r}) / name
    folder.mkdir()
    for check in examine(machines.unpack(text, folder)):
        print(check.topic, check.name, check.found, check.verdict, check.fix)
print(parse.process_limit("Max locked memory  unlimited unlimited bytes", "Max locked memory"))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == f"({infinity}, {infinity})"
    text = "\n".join(line for line in lines if line.startswith(("session", "scheduling")))
    assert "RLIMIT_RTTIME is unlimited" in text and "184467440737095" not in text
    assert not re.search(r"(is|now|memlock) -1\b", text), text


@pytest.mark.parametrize(("kilobytes", "verdict"), [(65536, "ok"), (131072, "warn")])
def test_limits_conf_counts_memlock_in_kilobytes(machine: Callable[..., Machine], kilobytes: int, verdict: str) -> None:
    """The laptop's session has 64 MiB."""
    files = {"/etc/security/limits.conf": f"ada - memlock {kilobytes}", "/etc/security/limits.d/99-realtime.conf": ""}
    assert by_name(examine(machine("laptop", **files)))["limits of the login"].verdict == verdict


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


def test_missing_capabilities_are_not_ok_unless_the_limits_make_up_for_them(tmp_path: Path) -> None:
    files = files_of(MACHINES / "microvm")
    status, limits = files["/proc/self/status"], files["/proc/self/limits"]
    none = {"/proc/self/status": re.sub(r"CapEff:.*", "CapEff:\t0000000000000000", status)}
    found = by_name(examine(unpack(files | none, tmp_path / "without")))
    assert found["real-time priority"].verdict == "fail" and found["capabilities"].verdict == "note"
    assert found["capabilities"].found.startswith("none of these held; missing: CAP_SYS_NICE")
    for name, value in (("Max realtime priority", "95"), ("Max locked memory", "unlimited")):
        limits = re.sub(rf"{name} +\S+ +\S+", f"{name:<26}{value:<21}{value:<21}", limits)
    found = by_name(examine(unpack(files | none | {"/proc/self/limits": limits}, tmp_path / "with")))
    assert found["real-time priority"].verdict == found["capabilities"].verdict == "ok"


def test_capabilities_of_a_user_namespace_do_not_count(machine: Callable[..., Machine]) -> None:
    found = by_name(examine(machine("microvm", **{"/proc/self/uid_map": "0 1000 1"})))
    assert found["capabilities"].verdict == "note" and "user namespace" in found["capabilities"].found
    assert found["real-time priority"].verdict == found["locked memory"].verdict == "fail"


def test_who_examines_through_sudo_is_told_whose_session_that_is(machine: Callable[..., Machine]) -> None:
    check = by_name(examine(machine("microvm", env="SUDO_USER=ada")))["user"]
    assert check.verdict == "note" and "the limits of ada's own sessions may differ" in check.found


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
        ({"/proc/cpuinfo": "Features : fp", "/proc/device-tree/compatible": "linux,dummy-virt\0"}, "unknown kind"),
        ({"/proc/cpuinfo": "Features : fp", "/proc/device-tree/compatible": "linux,dummy-virt\0",
          "/proc/device-tree/fw-cfg@9020000/compatible": "qemu,fw-cfg-mmio\0"}, "QEMU"),
        ({"/proc/cpuinfo": "Features : fp", "/proc/device-tree/hypervisor/compatible": "linux,kvm\0"}, "unknown kind"),
        ({"/proc/cpuinfo": "Features : fp", "/proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm\0"}, ""),
    ],
)  # fmt: skip
def test_hypervisors_are_told_apart(tmp_path: Path, files: dict[str, str], kind: str) -> None:
    from rtloop.machine.doctor.checks.platform import hypervisor

    machine = unpack(files, tmp_path)
    assert hypervisor(machine)[0] == kind
    assert by_name(examine(machine))["virtual machine"].verdict == ("warn" if kind else "ok")


def test_the_facts_of_the_host_and_the_doctor_agree_on_a_virtual_machine() -> None:
    from rtloop.machine.doctor.checks.platform import hypervisor

    assert host_facts()["is_virtual"] is (hypervisor(Machine())[0] not in ("", "?"))


def test_the_tools_that_are_missing_are_named() -> None:
    from rtloop.machine.doctor.checks.toolchain import examine as examine_tools

    bare = Toolchain("CPython 3.13.0", True, False, False, "", "", False)
    python, cython, compiler = examine_tools(bare, "debian")
    assert "free-threaded, GIL off" in python.found
    assert cython.verdict == "note" and "pip install cython" in cython.fix
    assert compiler.found == "no C compiler and no Python.h"
    assert compiler.fix == (
        "sudo apt install gcc   # or: pip install 'rtloop[compiler]'\nsudo apt install python3.13-dev"
    )
    assert next(examine_tools(read_toolchain())).verdict in ("ok", "note")

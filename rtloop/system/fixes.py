"""Fixes: one text for each cause, used by the doctor, the grants, the errors and the warnings.

Each function returns lines to paste, labelled by the place where they belong.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import NamedTuple

__all__ = [
    "NO_FILE",
    "boot_fix",
    "capability_fix",
    "compiler_fix",
    "cpuset_fix",
    "device_fix",
    "filter_fix",
    "for_container",
    "governor_fix",
    "group_runtime_fix",
    "headers_fix",
    "interrupt_fix",
    "isolation_fix",
    "kernel_fix",
    "limit_fix",
    "login_fix",
    "no_file_fix",
    "sysctl_fix",
    "throttling_fix",
]

#: No free file descriptor, in this process or on the machine.
NO_FILE = (errno.EMFILE, errno.ENFILE)

_INDENT = " " * 12

# Limit: name and value in limits.conf ("" if pam_limits does not have it), the same in a systemd unit, flags of docker
# and podman, Kubernetes.
_LIMITS = {
    "RLIMIT_MEMLOCK": (
        "memlock", "unlimited", "LimitMEMLOCK", "infinity", "--ulimit memlock=-1:-1 --cap-add=IPC_LOCK",
        "securityContext: {runAsUser: 0, capabilities: {add: [IPC_LOCK]}}",
    ),
    "RLIMIT_RTPRIO": (
        "rtprio", "{v}", "LimitRTPRIO", "{v}", "--ulimit rtprio={v} --cap-add=SYS_NICE",
        "securityContext: {runAsUser: 0, capabilities: {add: [SYS_NICE]}}",
    ),
    "RLIMIT_RTTIME": (
        "", "", "LimitRTTIME", "infinity", "--ulimit rttime=-1:-1",
        "LimitRTTIME=infinity in the unit of the node's container runtime, such as containerd.service",
    ),
}  # fmt: skip


def _user() -> str:
    try:
        import getpass  # here, because `import rtloop` has to be quick

        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # nameless, or a Python without the module
        return str(os.getuid())


def _setup() -> str:
    """Return the command that gives a user all privileges of a loop; sudo alone does not look into environments."""
    user = _user()
    return "sudo $(which rtloop) setup-privileges" + (f" --user {user}" if user != "root" else "")


def no_file_fix(error: int) -> tuple[str, str]:
    """Return the reason why there is no free file descriptor, and the fix; `error` is one of NO_FILE."""
    if error == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        why = f"this process has opened all {limit:,} file descriptors that RLIMIT_NOFILE allows"
        return why, "ulimit -n 65536, or LimitNOFILE=65536 in a systemd unit"
    why = "all processes together have as many files open as fs.file-max allows"
    return why, sysctl_fix("fs.file-max", 2**20)


def for_container(fix: str, container: str) -> str:
    """Remove the lines of a fix that do not apply in this kind of container, or outside of one.

    Parameters
    ----------
    fix : str
        Result of one of the other functions.
    container : str
        ``"docker"``, ``"podman"``, ``"kubernetes"``; empty outside of a container. For any other kind all lines stay.
    """
    elsewhere = {
        "": ("container:", "kubernetes:"),
        "docker": ("login:", "systemd:", "kubernetes:"),
        "podman": ("login:", "systemd:", "kubernetes:"),
        "kubernetes": ("login:", "systemd:", "container:"),
    }.get(container, ())
    kept: list[str] = []
    is_kept = True
    for line in fix.splitlines():
        if not line.startswith(" "):  # an indented line belongs to the one above
            is_kept = not line.startswith(elsewhere)
        if is_kept:
            kept.append(line)
    return "\n".join(kept)


def limit_fix(limit: str, value: int = 0) -> str:
    """Return the lines that raise a limit, for a login, a systemd unit, a container and Kubernetes.

    Parameters
    ----------
    limit : str
        ``"RLIMIT_MEMLOCK"``, ``"RLIMIT_RTPRIO"`` or ``"RLIMIT_RTTIME"``.
    value : int
        The value needed, if the limit is not removed altogether.
    """
    item, most, directive, unit, flags, pod = _LIMITS[limit]
    login = (
        f"echo '{_user()} - {item} {most.format(v=value)}' | "
        "sudo tee -a /etc/security/limits.d/99-rtloop.conf   # then log in again"
    )
    if not item:
        login = "sudo prlimit --pid $$ --rttime=unlimited   # this shell; limits.conf has no item for it"
    if item:  # one command for all privileges, then the same by hand
        login = f"{_setup()}   # then log in again; or by hand:\n{_INDENT}{login.partition('   #')[0]}"
    return (
        f"login:      {login}\n"
        f"systemd:    in the unit's [Service] section\n{_INDENT}{directive}={unit.format(v=value)}\n"
        f"container:  docker run {flags.format(v=value)} ...   # or podman run\n"
        f"kubernetes: {pod}"
    )


def capability_fix(name: str) -> str:
    """Return the lines that give a service or a container a capability, such as ``"SYS_NICE"``."""
    return (
        f"systemd:    in the unit's [Service] section\n{_INDENT}AmbientCapabilities=CAP_{name}\n"
        f"container:  docker run --cap-add={name} ...\n"
        f"kubernetes: securityContext: {{runAsUser: 0, capabilities: {{add: [{name}]}}}}"
    )


def device_fix(path: str) -> str:
    """Return the lines that give a user access to a device, for a login, a systemd unit and a container."""
    name = path.rpartition("/")[2]
    return (
        f"login:      {_setup()}   # then log in again; or by hand:\n"
        f"{_INDENT}sudo groupadd -f realtime && sudo usermod -aG realtime {_user()}\n"
        f'{_INDENT}echo \'KERNEL=="{name}", GROUP="realtime", MODE="0660"\' | '
        "sudo tee /etc/udev/rules.d/99-rtloop.rules\n"
        f"{_INDENT}sudo udevadm control --reload && sudo udevadm trigger --name-match={path}\n"
        "systemd:    in the unit's [Service] section; the group and the rule above only if the unit sets User=, "
        "DeviceAllow only if it restricts its devices\n"
        f"{_INDENT}SupplementaryGroups=realtime\n"
        f"{_INDENT}DeviceAllow={path} rw\n"
        f"container:  docker run --device {path} ...   # a container has only the devices that are passed in\n"
        f"kubernetes: a hostPath volume of {path}, and securityContext: {{privileged: true}} or a device plugin"
    )


def group_runtime_fix(folder: str = "/sys/fs/cgroup/cpu/...") -> str:
    """Return the lines that give a control group real-time runtime; `folder` is the group's."""
    return (
        f"now:        echo 950000 | sudo tee {folder}/cpu.rt_runtime_us   # each group above it first\n"
        "container:  docker run --cpu-rt-runtime=950000 --ulimit rtprio=95 --cap-add=SYS_NICE ...\n"
        "boot:       a kernel without CONFIG_RT_GROUP_SCHED, or from 6.16 on rt_group_sched=0 on its command line"
    )


def throttling_fix(value: int = 950000) -> str:
    """Return the lines that set the time for which real-time threads may run in each period."""
    return sysctl_fix("kernel.sched_rt_runtime_us", value)


def filter_fix(call: str) -> str:
    """Return the lines that allow a system call which a seccomp filter forbids."""
    lines = ["systemd:    in the unit's [Service] section"]
    if call.startswith("sched_set"):
        lines.append(f"{_INDENT}RestrictRealtime=no")
    if call.startswith(("mlock", "munlock")):
        lines.append(f"{_INDENT}SystemCallFilter=@memlock")
    lines += [
        f"{_INDENT}SystemCallFilter={call}",
        f"container:  docker run --security-opt seccomp=PROFILE.json ...   # a profile that allows {call}",
        f"kubernetes: securityContext: {{seccompProfile: {{type: Localhost, localhostProfile: PROFILE.json}}}}"
        f"   # a profile that allows {call}",
    ]
    if call == "clone3":
        lines.append(
            "or a filter that answers ENOSYS, after which the C library calls clone instead: "
            'SystemCallFilter=~clone3:ENOSYS, in a profile "errnoRet": 38'
        )
    return "\n".join(lines)


def group_threads_fix(path: str) -> str:
    """Return the lines that allow more threads in a control group; `path` is the file of its limit."""
    return (
        f"now:        echo max | sudo tee {path}\n"
        f"systemd:    in the unit's [Service] section\n{_INDENT}TasksMax=infinity\n"
        "container:  docker run --pids-limit=-1 ..."
    )


def cpuset_fix(allowed: str, wanted: str = "") -> str:
    """Return the lines that make more CPUs usable.

    Parameters
    ----------
    allowed : str
        The CPUs that are usable now, such as ``"0-1"``.
    wanted : str
        All that are to be; empty if it is up to the user.
    """
    return (
        f"request CPUs among {allowed}, or widen the set:\n"
        f"systemd:    in the unit's [Service] section\n{_INDENT}AllowedCPUs={wanted or '...'}\n"
        f"container:  docker run --cpuset-cpus={wanted or '...'} ...\n"
        "kubernetes: whole CPUs, requests equal to limits, and cpuManagerPolicy: static in the kubelet's configuration"
    )


def login_fix(how: str) -> str:
    """Return the lines that apply limits.conf to a session; `how` it began: ssh, systemd-user, container or other."""
    lines = {
        "ssh": "ssh:        echo 'UsePAM yes' | sudo tee /etc/ssh/sshd_config.d/10-pam.conf && "
        "sudo systemctl reload ssh   # sshd on some systems\n"
        f"{_INDENT}other ssh servers, such as Tailscale SSH, do not read limits.conf: use sshd, or run a service",
        "systemd-user": "systemd:    sudo systemctl edit user@.service, with these lines; then end all sessions, "
        f"log in again\n{_INDENT}[Service]\n{_INDENT}LimitRTPRIO=95\n{_INDENT}LimitMEMLOCK=infinity",
        "container": "container:  docker run --ulimit rtprio=95 --ulimit memlock=-1:-1 --cap-add=SYS_NICE "
        "--cap-add=IPC_LOCK ...",
    }
    login = f"login:      sudo -i -u {_user()}   # a new login; or log out of all sessions and in again"
    return f"{lines[how]}\n{login}" if how in lines else login


def sysctl_fix(name: str, value: int) -> str:
    """Return the lines that set a sysctl, now and permanently."""
    short = name.replace(".", "-")
    return (
        f"now:        sudo sysctl {name}={value}\n"
        f"for good:   echo {name}={value} | sudo tee /etc/sysctl.d/99-{short}.conf"
    )


def boot_fix(arguments: str, distribution: str = "", *, is_raspberry_pi: bool = False) -> str:
    """Return the lines that add to the kernel's command line.

    Parameters
    ----------
    arguments : str
        Arguments to add.
    distribution : str
        ID and ID_LIKE of ``/etc/os-release``.
    is_raspberry_pi : bool
        True if the machine boots like a Raspberry Pi.
    """
    known = distribution.split()
    if is_raspberry_pi:
        return f"boot:       sudo sed -i '1s/$/ {arguments}/' /boot/firmware/cmdline.txt && sudo reboot"
    if "debian" in known or "ubuntu" in known:
        return (
            "boot:       sudo mkdir -p /etc/default/grub.d\n"
            f"""{_INDENT}echo 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {arguments}"' | """
            "sudo tee -a /etc/default/grub.d/99-rtloop.cfg\n"
            f"{_INDENT}sudo update-grub && sudo reboot"
        )
    if "fedora" in known or "rhel" in known:
        return f'boot:       sudo grubby --update-kernel=ALL --args="{arguments}" && sudo reboot'
    return f"boot:       add to the kernel's command line: {arguments}"


def kernel_fix(distribution: str = "", machine: str = "x86_64", *, is_raspberry_pi: bool = False) -> str:
    """Return the lines that install a PREEMPT_RT kernel; `machine` is that of uname(2)."""
    known = distribution.split()
    if "ubuntu" in known:
        variant = " --variant=raspi" if is_raspberry_pi else ""
        return (
            f"Ubuntu:     sudo pro attach && sudo pro enable realtime-kernel{variant}   # LTS releases, Ubuntu Pro\n"
            f"{_INDENT}sudo apt install ubuntu-realtime   # 25.10 and newer"
        )
    if is_raspberry_pi:
        return (
            "Raspberry Pi OS, 64 bit:\n"
            f"{_INDENT}sudo apt install linux-image-rpi-v8-rt && sudo reboot   # if apt has it; otherwise build "
            "the kernel with CONFIG_PREEMPT_RT=y"
        )
    if "debian" in known:
        name = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armmp"}.get(machine, machine)
        return f"Debian:     sudo apt install linux-image-rt-{name} && sudo reboot"
    if "arch" in known:
        return "Arch:       sudo pacman -S linux-rt   # and choose it in the boot loader"
    if "rhel" in known:
        return "RHEL:       sudo dnf install kernel-rt   # from the repository of RHEL for Real Time"
    return "a kernel with CONFIG_PREEMPT_RT=y; from 6.12 on it is in the mainline"


def isolation_fix(
    cpus: str, distribution: str = "", *, is_raspberry_pi: bool = False, has_rcu_nocbs: bool = True
) -> str:
    """Return the lines that keep CPUs free of ordinary threads, RCU callbacks and interrupts from the boot on.

    They leave out ``nohz_full``, because a periodic loop is better with the tick
    (Documentation/core-api/real-time/kernel-configuration.rst of the kernel).

    Parameters
    ----------
    cpus : str
        A kernel CPU list.
    distribution, is_raspberry_pi
        As for :func:`boot_fix`.
    has_rcu_nocbs : bool
        False if the kernel does not support ``rcu_nocbs``.
    """
    arguments = f"isolcpus=managed_irq,domain,{cpus}" + (f" rcu_nocbs={cpus}" if has_rcu_nocbs else "")
    return boot_fix(arguments, distribution, is_raspberry_pi=is_raspberry_pi)


def interrupt_fix(interrupts: list[int], cpus: str) -> str:
    """Return the lines that move interrupts to other CPUs; `cpus` is the kernel CPU list of those."""
    if len(interrupts) > 8:
        numbers = " ".join(str(number) for number in interrupts)
        now = f"for i in {numbers}; do echo {cpus} | sudo tee /proc/irq/$i/smp_affinity_list; done"
    else:
        paths = " ".join(f"/proc/irq/{number}/smp_affinity_list" for number in interrupts)
        now = f"echo {cpus} | sudo tee {paths}"
    return (
        f"now:        {now}\n"
        f"boot:       irqaffinity={cpus} on the kernel's command line; isolcpus=managed_irq,... for those that "
        "cannot be moved"
    )


def governor_fix(*, is_raspberry_pi: bool = False) -> str:
    """Return the lines that keep the CPU frequency high."""
    now = (
        "now:        echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        "   # needs the host, not a container"
    )
    if is_raspberry_pi:
        return now + "\nfor good:   echo force_turbo=1 | sudo tee -a /boot/firmware/config.txt   # and a cooler"
    return f"{now}\nfor good:   sudo tuned-adm profile latency-performance   # package tuned"


def compiler_fix(distribution: str | None = None, *, is_cpp: bool = False) -> str:
    """Return the command that installs a C or C++ compiler; `distribution` as for `headers_fix`."""
    if (packages := _packages(distribution)) is None:
        return f"your system's package for {'g++' if is_cpp else 'gcc'}"
    return f"sudo {packages.install} {packages.cpp_compiler if is_cpp else packages.c_compiler}"


def headers_fix(version: str, prefix: str = "/usr", distribution: str | None = None) -> str:
    """Return the command that installs Python's C headers.

    Parameters
    ----------
    version : str
        Python's, such as ``"3.13"``.
    prefix : str
        Folder that this Python is installed in. The system's packages have the headers only of those in ``/usr``.
    distribution : str, optional
        ID and ID_LIKE of ``/etc/os-release``; by default those of this machine.
    """
    if prefix != "/usr":
        return f"install the Python in {prefix} again with its headers, or use another Python"
    if (packages := _packages(distribution)) is None:
        return f"your system's package for them, often python{version}-dev or python3-devel"
    return f"sudo {packages.install} {packages.headers.format(version=version, digits=version.replace('.', ''))}"


class _Packages(NamedTuple):
    """Commands and package names of a family of distributions."""

    ids: frozenset[str]
    install: str
    c_compiler: str
    cpp_compiler: str
    headers: str


_FAMILIES = (
    _Packages(frozenset({"debian", "ubuntu"}), "apt install", "gcc", "g++", "python{version}-dev"),
    _Packages(frozenset({"fedora", "rhel"}), "dnf install", "gcc", "gcc-c++", "python3-devel"),
    _Packages(frozenset({"suse", "opensuse"}), "zypper install", "gcc", "gcc-c++", "python{digits}-devel"),
    _Packages(frozenset({"arch"}), "pacman -S", "gcc", "gcc", "python"),
    _Packages(frozenset({"alpine"}), "apk add", "gcc musl-dev", "g++", "python3-dev"),
)


def _packages(distribution: str | None) -> _Packages | None:
    if distribution is None:
        import platform

        try:
            system = platform.freedesktop_os_release()
        except OSError:
            return None
        distribution = f"{system.get('ID', '')} {system.get('ID_LIKE', '')}"
    return next((family for family in _FAMILIES if family.ids & {*distribution.split()}), None)

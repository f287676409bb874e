"""Parsers of what the kernel and the system write: pure functions over text.

They never raise, whatever the text: None, or an empty collection, means "not known".
"""

from __future__ import annotations

import re
import resource
from typing import NamedTuple

from rtloop.system.cpu import parse_cpu_list

__all__ = [
    "Limit",
    "Swap",
    "Task",
    "assignments",
    "boot_cpu_list",
    "bracketed",
    "capabilities",
    "cgroups",
    "command_line",
    "cpu_list",
    "cpu_mask",
    "cpu_max",
    "cpu_times",
    "group_names",
    "isolation",
    "kernel_config",
    "kernel_release",
    "kernel_version",
    "number",
    "pam_limits",
    "process_limit",
    "swaps",
    "task",
    "task_run_ns",
    "user_name",
]

UNLIMITED = resource.RLIM_INFINITY  # 2**64 - 1 since Python 3.15, -1 before
NO_QUOTA = -1
_DIGITS = re.compile(r"[+-]?[0-9]{1,20}")


def number(text: str) -> int | None:
    """Read a decimal number."""
    text = text.strip()
    return int(text) if _DIGITS.fullmatch(text) else None


def cpu_list(text: str) -> tuple[int, ...] | None:
    """Read a kernel CPU list, ``"0-2,5"``; an empty list names no CPU."""
    try:
        return parse_cpu_list(text)
    except ValueError:
        return None


def cpu_mask(text: str) -> tuple[int, ...] | None:
    """Read a mask of CPUs in hexadecimal, ``"ff,00000003"``; an empty mask names no CPU."""
    digits = text.strip().replace(",", "")
    if not re.fullmatch(r"[0-9a-fA-F]{1,2048}", digits):
        return None
    bits = int(digits, 16)
    return tuple(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)


def boot_cpu_list(text: str, last: int) -> tuple[int, ...] | None:
    """Read a CPU list of the kernel's command line: ``"1-3,5"``, ``"all"``, ``"2-N"``, ``"0-31:2/8"``.

    `last` is the number of the last CPU, which ``N`` stands for. A range ``a-b:used/group`` means the
    first `used` CPUs of each `group`.
    """
    found: set[int] = set()
    for part in text.split(","):
        whole, colon, pattern = part.partition(":")
        numbers = re.sub(r"\bN\b", str(last), f"0-{last}" if whole.lower() == "all" else whole)
        cpus = cpu_list(numbers)
        match = re.fullmatch(r"([0-9]{1,5})/([0-9]{1,5})", pattern)
        if cpus is None or (colon and (match is None or int(match[2]) == 0)):
            return None
        found.update(cpu for cpu in cpus if match is None or (cpu - cpus[0]) % int(match[2]) < int(match[1]))
    return tuple(sorted(found))


def assignments(text: str) -> dict[str, str]:
    """Read lines of ``KEY=value``, quoted or not, as in ``/etc/os-release``."""
    found = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            found[key] = value.strip("\"' ")
    return found


def command_line(text: str) -> dict[str, str]:
    """Read ``/proc/cmdline``: the last value of each argument, empty if it has none."""
    found = {}
    for word in re.findall(r'(?:[^\s"]|"[^"]*"?)+', text):
        key, _, value = word.replace('"', "").partition("=")
        if key == "--":  # what follows is for init
            break
        found[key] = value
    return found


def isolation(value: str) -> tuple[set[str], tuple[int, ...]]:
    """Read the value of ``isolcpus=``: its flags (``domain`` if it has none) and its CPUs."""
    flags, rest = set(), value
    while match := re.match(r"(nohz|domain|managed_irq),", rest):
        flags.add(match[1])
        rest = rest[match.end() :]
    return flags or {"domain"}, cpu_list(rest) or ()


def kernel_version(text: str) -> tuple[int, int] | None:
    """Read major and minor of a release such as ``6.12.48-rt``."""
    match = re.match(r"([0-9]{1,4})\.([0-9]{1,4})", text)
    return (int(match[1]), int(match[2])) if match else None


def kernel_release(release: str, version: str = "") -> tuple[int, int, int | None] | None:
    """Read major, minor and stable version; the latter is None if it is not known.

    Debian gives the stable version only in the version string, ``"#1 SMP PREEMPT_RT Debian 6.1.147-1"``. Ubuntu and
    RHEL do not give it: their ``5.15.0-1032-realtime`` has fixes of later stable versions.
    """
    if match := re.search(r"\bDebian ([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})\b", version):
        return int(match[1]), int(match[2]), int(match[3])
    match = re.match(r"([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?(.*)", release, re.DOTALL)
    if match is None:
        return None
    is_distribution = re.match(r"-[0-9]", match[4]) is not None  # also Ubuntu's 6.8.1-1010-realtime, SUSE's 5.14.21-15
    is_enterprise = re.search(r"\.el[0-9]|\.lt|-azure|-aws|-gcp", match[4]) is not None
    stable = None if is_distribution or is_enterprise else int(match[3] or 0)
    return int(match[1]), int(match[2]), stable


def kernel_config(text: str) -> dict[str, str]:
    """Read a kernel's configuration: option, with ``CONFIG_``, and value; ``"n"`` if it is not set."""
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(CONFIG_\w+)=(.*)", line):
            found[match[1]] = match[2].strip('"')
        elif match := re.fullmatch(r"# (CONFIG_\w+) is not set", line):
            found[match[1]] = "n"
    return found


def bracketed(text: str, left: str = "[", right: str = "]") -> str | None:
    """Read the chosen word of several, ``"always [madvise] never"``; without brackets, the only word."""
    words = text.split()
    chosen = [word[1:-1] for word in words if len(word) > 2 and word[0] == left and word[-1] == right]
    if len(chosen) == 1:
        return chosen[0]
    return words[0] if len(words) == 1 and not chosen else None


def process_limit(text: str, name: str) -> tuple[int, int] | None:
    """Read a line of ``/proc/self/limits``: soft and hard, UNLIMITED if there is none (proc_pid_limits(5))."""
    for line in text.splitlines():
        if line.startswith(name):
            words = [UNLIMITED if word == "unlimited" else number(word) for word in line[len(name) :].split()[:2]]
            if len(words) == 2 and words[0] is not None and words[1] is not None:
                return words[0], words[1]
    return None


_CAPABILITIES = {14: "IPC_LOCK", 21: "SYS_ADMIN", 23: "SYS_NICE", 24: "SYS_RESOURCE"}


def capabilities(text: str) -> set[str] | None:
    """Read a set of capabilities in hexadecimal; return those that matter to real time."""
    if not re.fullmatch(r"[0-9a-fA-F]{1,16}", text.strip()):
        return None
    bits = int(text, 16)
    return {name for bit, name in _CAPABILITIES.items() if bits >> bit & 1}


class Limit(NamedTuple):
    """A line of limits.conf(5): the subject, ``soft``, ``hard`` or ``-``, the item, its value (UNLIMITED for none)."""

    domain: str
    kind: str
    item: str
    value: int


def pam_limits(text: str) -> list[Limit]:
    """Read a file of limits.conf(5)."""
    found = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if len(words) == 4 and words[1] in ("soft", "hard", "-"):
            value = UNLIMITED if words[3] in ("unlimited", "infinity", "-1") else number(words[3])
            if value is not None:
                found.append(Limit(words[0], words[1], words[2], value))
    return found


def user_name(passwd: str, uid: int) -> str | None:
    """Find a user's name in ``/etc/passwd``."""
    for line in passwd.splitlines():
        words = line.split(":")
        if len(words) >= 4 and number(words[2]) == uid:
            return words[0]
    return None


def group_names(group: str, gids: set[int], user: str = "") -> set[str]:
    """Find in ``/etc/group`` the names of the numbered groups, and of those that list a user."""
    found = set()
    for line in group.splitlines():
        words = line.split(":")
        if len(words) >= 4 and (number(words[2]) in gids or (user and user in words[3].split(","))):
            found.add(words[0])
    return found


def cgroups(text: str) -> list[tuple[tuple[str, ...], str]]:
    """Read ``/proc/self/cgroup`` (cgroups(7)): the controllers of each hierarchy, none for version 2, and the path."""
    found = []
    for line in text.splitlines():
        words = line.split(":", 2)
        if len(words) == 3 and number(words[0]) is not None and words[2].startswith("/"):
            found.append((tuple(word for word in words[1].split(",") if word), words[2]))
    return found


def cpu_max(text: str) -> tuple[int, int] | None:
    """Read ``cpu.max``: quota and period in microseconds; NO_QUOTA as in ``cpu.cfs_quota_us``."""
    words = text.split()
    if len(words) != 2:
        return None
    quota, period = NO_QUOTA if words[0] == "max" else number(words[0]), number(words[1])
    return None if quota is None or period is None or period <= 0 else (quota, period)


def cpu_times(text: str) -> tuple[int, int] | None:
    """Read ``/proc/stat``: stolen time and all time of all CPUs together, in ticks (proc_stat(5))."""
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == "cpu" and len(words) >= 9:
            times = [number(word) for word in words[1:9]]  # guest times are in user and nice already
            if None not in times:
                return times[7] or 0, sum(time or 0 for time in times)
    return None


class Task(NamedTuple):
    """A thread, of ``/proc/<pid>/task/<tid>/stat`` (proc_pid_stat(5))."""

    tid: int
    name: str
    is_kernel: bool
    ticks: int
    cpu: int
    priority: int
    policy: int


def task(text: str) -> Task | None:
    """Read ``/proc/<pid>/task/<tid>/stat``; the name in it may have blanks and parentheses."""
    head, _, rest = text.rpartition(")")
    tid, _, name = head.partition("(")
    words = rest.split()
    values = [number(word) for word in words[1:]]
    if number(tid) is None or len(values) < 38 or None in values[:38]:
        return None
    # Fields are counted from 1 in proc_pid_stat(5); values[0] is field 4.
    flags, user, system, cpu, priority, policy = (values[field - 4] or 0 for field in (9, 14, 15, 39, 40, 41))
    return Task(int(tid), name, bool(flags & 0x00200000), user + system, cpu, priority, policy)


def task_run_ns(text: str) -> int | None:
    """Read ``/proc/<pid>/task/<tid>/schedstat``: the time that the thread has run, in nanoseconds."""
    words = text.split()
    return number(words[0]) if len(words) == 3 else None


class Swap(NamedTuple):
    """An area of ``/proc/swaps``, sizes in bytes."""

    path: str
    size: int
    used: int


def swaps(text: str) -> list[Swap]:
    """Read ``/proc/swaps``."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 5:
            size, used = number(words[-3]), number(words[-2])
            if size is not None and used is not None:
                found.append(Swap(words[0], size << 10, used << 10))
    return found

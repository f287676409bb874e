"""Checks of the session: its limits and capabilities, and those that its login should have given it."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import suppress

from rtloop.machine.doctor import parse
from rtloop.machine.doctor.machine_files import Machine, unread
from rtloop.machine.doctor.parse import Limit
from rtloop.system import checks
from rtloop.system.checks import Check
from rtloop.system.fileio import parse_fields
from rtloop.system.fixes import login_fix
from rtloop.system.privilege import format_limit

__all__ = ["examine", "granted_by_pam"]

_LIMITS = "/proc/self/limits"
_NAMES = {
    "RLIMIT_RTPRIO": "Max realtime priority",
    "RLIMIT_MEMLOCK": "Max locked memory",
    "RLIMIT_RTTIME": "Max realtime timeout",
}
_FOLDER = "/etc/security/limits.d"


def examine(machine: Machine) -> Iterator[Check]:
    """Yield the checks of the session."""
    held = parse.capabilities(machine.status.get("CapEff", ""))
    uid_map = machine.text("/proc/self/uid_map").split()
    is_initial = uid_map in ([], ["0", "0", "4294967295"])
    honoured = (held or set()) if is_initial else set()
    limits = {limit: parse.process_limit(machine.text(_LIMITS), name) for limit, name in _NAMES.items()}

    priority = checks.real_time_priority(*(limits["RLIMIT_RTPRIO"] or (0, 0)), is_capable="SYS_NICE" in honoured)
    yield _known(priority, limits["RLIMIT_RTPRIO"], _LIMITS)
    soft, hard = limits["RLIMIT_MEMLOCK"] or (0, 0)
    memory = checks.locked_memory(hard, is_capable="IPC_LOCK" in honoured)  # a loop raises the soft limit itself
    if soft != hard:
        memory = memory._replace(found=f"{memory.found} (the hard limit; {format_limit(soft)} bytes now)")
    yield _known(memory, limits["RLIMIT_MEMLOCK"], _LIMITS)
    time_us = (limits["RLIMIT_RTTIME"] or (resource.RLIM_INFINITY, 0))[0]
    yield _known(checks.real_time_cpu_time(time_us), limits["RLIMIT_RTTIME"], _LIMITS)
    yield _capabilities(held, is_initial=is_initial, are_needed="fail" in (priority.verdict, memory.verdict))
    yield _whose(machine)
    yield _pam(machine, limits["RLIMIT_RTPRIO"], limits["RLIMIT_MEMLOCK"], honoured)


def _known(check: Check, limit: tuple[int, int] | None, source: str) -> Check:
    """Return where a value was read, or that it could not be read."""
    check = check._replace(source=source)
    return check if limit is not None else check._replace(found=unread(), verdict="note", fix="")


def _capabilities(held: set[str] | None, *, is_initial: bool, are_needed: bool) -> Check:
    name, source = "capabilities", "CapEff in /proc/self/status, /proc/self/uid_map"
    why = "CAP_SYS_NICE and CAP_IPC_LOCK override the limits; in a user namespace they do not count"
    if held is None:
        return Check("session", name, unread(), source, "note", why)
    wanted = ("SYS_NICE", "IPC_LOCK", "SYS_RESOURCE")
    found = ", ".join(f"CAP_{name}" for name in wanted if name in held)
    missing = ", ".join(f"CAP_{name}" for name in wanted if name not in held)
    text = f"{found or 'none of these held'}" + (f"; missing: {missing}" if missing else "")
    if not is_initial and held:
        text += "; they belong to a user namespace, so the kernel does not honour them"
        return Check("session", name, text, source, "note", why)
    return Check("session", name, text, source, "note" if are_needed else "ok", why)


def _whose(machine: Machine) -> Check:
    name, source = "user", "Uid in /proc/self/status, /etc/passwd, SUDO_USER"
    why = "each session has its own limits: run the doctor as the user, and in the session, that will run the loop"
    uid = parse.number((machine.status.get("Uid", "").split() or [""])[0])
    user = None if uid is None else _user(machine, uid)
    if user is None:
        return Check("session", name, unread(), source, "note", why)
    behind = machine.env.get("SUDO_USER", "")
    if uid == 0 and behind not in ("", "root"):
        found = f"root, through sudo: the limits of {behind}'s own sessions may differ"
        return Check("session", name, found, source, "note", why)
    return Check("session", name, user, source, "ok", why)


def granted_by_pam(files: dict[str, str], item: str, user: str, groups: set[str]) -> tuple[int, str] | None:
    """Return the limit that limits.conf(5) grants a user, and the file; None if there is none.

    A line for the user overrides one for a group, which overrides the wildcard; among equals the last one counts.
    Only lines that name root apply to root.

    Parameters
    ----------
    files : dict
        Path and text, in the order in which they are read.
    item : str
        ``"rtprio"`` or ``"memlock"``.
    user : str
        The user's name.
    groups : set of str
        The names of the user's groups.
    """

    def rank(limit: Limit) -> int:
        if limit.domain == user:
            return 3
        if user == "root":
            return 0
        if limit.domain.startswith("@"):
            return 2 if limit.domain[1:] in groups else 0
        return 1 if limit.domain == "*" else 0

    best: tuple[int, int, str] | None = None
    for path, text in files.items():
        for limit in parse.pam_limits(text):
            if limit.item == item and limit.kind in ("soft", "-"):  # a session begins with the soft limit
                level = rank(limit)
                if level and (best is None or level >= best[0]):
                    best = level, limit.value, path
    return None if best is None else best[1:]


def _pam(
    machine: Machine, priority: tuple[int, int] | None, memory: tuple[int, int] | None, honoured: set[str]
) -> Check:
    name, source = "limits of the login", f"/etc/security/limits.conf, {_FOLDER}"
    why = "limits.conf applies only to sessions that began through pam_limits, which some ssh servers and services skip"
    paths = ["/etc/security/limits.conf"]
    paths += [f"{_FOLDER}/{name}" for name in machine.names(_FOLDER) if name.endswith(".conf")]
    files = {path: text for path in paths if (text := machine.read(path)[0]) is not None}
    uid = parse.number((machine.status.get("Uid", "").split() or [""])[0])
    if uid is None:
        return Check("session", name, unread(), source, "note", why)
    user = _user(machine, uid)
    if user is None:
        return Check("session", name, f"the name of user {uid} {unread()}", "/etc/passwd", "note", why)
    gids = {parse.number(word) for word in machine.status.get("Groups", "").split()}
    groups = parse.group_names(machine.text("/etc/group"), {gid for gid in gids if gid is not None}, user)
    if not files:
        return Check("session", name, unread("no limits.conf"), source, "note", why)

    hidden = [path for path in paths if path not in files]
    on_disk, missed = [], []
    for item, scale, now, capability in (
        ("rtprio", 1, priority, "SYS_NICE"),
        ("memlock", 1024, memory, "IPC_LOCK"),
    ):
        granted = granted_by_pam(files, item, user, groups)
        if granted is None:
            continue
        value, path = granted
        on_disk.append(f"{item} {_pam_value(value)} ({path.rpartition('/')[2]})")
        if now is not None and capability not in honoured and _exceeds(value, now[0], scale):
            missed.append(f"{item} {_pam_value(now[0] // scale)}")
    if not on_disk:
        found = f"nothing for {user}" + (f"; {', '.join(hidden)} {unread()}" if hidden else "")
        return Check("session", name, found, source, "note" if hidden else "ok", why)
    found = f"for {user}: {', '.join(on_disk)}"
    if not missed:
        if priority is None or memory is None:
            return Check("session", name, f"{found}; the session's own limits {unread()}", source, "note", why)
        return Check("session", name, found, source, "ok", why)
    how, evidence = _how_it_began(machine)
    found += f"; this session has {', '.join(missed)}" + (f": {evidence}" if evidence else "")
    return Check("session", name, found, source, "warn", why, login_fix(how))


def _user(machine: Machine, uid: int) -> str | None:
    """Return a user's name; on this machine also a name that is not in the file."""
    found = "root" if uid == 0 else parse.user_name(machine.text("/etc/passwd"), uid)
    if found is None and not machine.root:
        import pwd

        with suppress(KeyError):
            return pwd.getpwuid(uid).pw_name
    return found


def _pam_value(value: int) -> str:
    return "unlimited" if value == parse.UNLIMITED else str(value)


def _exceeds(on_disk: int, now: int, scale: int) -> bool:
    if now == parse.UNLIMITED:
        return False
    return on_disk == parse.UNLIMITED or on_disk * scale > now


def _how_it_began(machine: Machine) -> tuple[str, str]:
    """Guess how the session began, and why it did not get its limits."""
    ancestors = list(_ancestors(machine))
    group = machine.text("/proc/self/cgroup")
    if machine.place.container:
        return "container", f"a {machine.place.container} container does not read limits.conf"
    if any(name.startswith("tailscaled") for name in ancestors):
        return "ssh", "the session came through tailscaled, which does not apply PAM's limits"
    if any(name.startswith("dropbear") for name in ancestors):
        return "ssh", "the session came through dropbear, which does not apply PAM's limits"
    if "SSH_CONNECTION" in machine.env or any(name.startswith("sshd") for name in ancestors):
        if _use_pam(machine) == "no":
            return "ssh", "sshd_config says UsePAM no"
        if not _has_pam_limits(machine, "sshd"):
            return "ssh", "pam_limits.so is not in /etc/pam.d/sshd"
        return "ssh", "logged in before the files were changed?"
    if "/user@" in group and "/session-" not in group:
        return "systemd-user", "the session belongs to user@.service, whose limits come from the unit"
    return "other", "logged in before the files were changed, or not through PAM?"


def _ancestors(machine: Machine) -> Iterator[str]:
    pid = parse.number(machine.status.get("PPid", ""))
    for _ in range(64):
        if not pid:
            return
        status = parse_fields(machine.text(f"/proc/{pid}/status"))
        yield status.get("Name", "")
        pid = parse.number(status.get("PPid", ""))


def _use_pam(machine: Machine) -> str:
    """Return sshd's UsePAM: the first line counts, and included files come before the main one."""
    folder = "/etc/ssh/sshd_config.d"
    paths = [f"{folder}/{name}" for name in machine.names(folder) if name.endswith(".conf")]
    for path in (*paths, "/etc/ssh/sshd_config"):
        for line in machine.text(path).splitlines():
            words = line.split()
            if len(words) >= 2 and words[0].lower() == "usepam":
                return words[1].lower()
    return ""


def _has_pam_limits(machine: Machine, service: str, depth: int = 0) -> bool:
    """Return whether a service's PAM stack has pam_limits, itself or by inclusion."""
    for line in machine.text(f"/etc/pam.d/{service}").splitlines():
        words = line.partition("#")[0].split() if not line.startswith("@include") else line.split()
        if any("pam_limits" in word for word in words):
            return True
        included = (
            words[1:2] if words[:1] == ["@include"] else words[2:3] if words[1:2] in (["include"], ["substack"]) else []
        )
        if included and depth < 4 and _has_pam_limits(machine, included[0], depth + 1):
            return True
    return False

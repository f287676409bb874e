"""Privileges of a loop for the users of a machine: create and remove the files and groups that grant them.

A plan is a list of changes. Each change is written into a journal before it is made, so that the undo restores exactly
the former state, also after a crash.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from rtloop.errors import ConfigError, SetupError
from rtloop.sharing.path_lock import locked
from rtloop.system.fileio import parse_field, read_text, replaced
from rtloop.system.privilege import CAP_SYS_RESOURCE

__all__ = ["Change", "Request", "container_flags", "find_obstacle", "make_commands", "make_plan", "perform", "undo"]

_JOURNAL = "/var/lib/rtloop/privileges.json"
_DEVICE = "/dev/cpu_dma_latency"
_HEADER = "# Made by rtloop setup-privileges; rtloop setup-privileges --undo removes it.\n"
_GROUP = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?")
#: Longest wait for another call of the command.
_PATIENCE_S = 10.0
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]{1,200}\.service")


class Request(NamedTuple):
    """Request for privileges.

    Attributes
    ----------
    users : tuple of str
        Users to add to the group.
    group : str
        The group that gets the privileges.
    unit : str
        A systemd unit to set up instead; empty for logins.
    priority : int
        The highest real-time priority to allow.
    """

    users: tuple[str, ...] = ()
    group: str = "realtime"
    unit: str = ""
    priority: int = 95


class Change(NamedTuple):
    """A change of the machine.

    Attributes
    ----------
    kind : {"file", "group", "member"}
        ``file``: `target` gets the text `after`. ``group``: the group `target` is created. ``member``: the user `after`
        is added to the group `target`.
    target : str
        The path or the group.
    before : str or None
        The former text of the file; None if there was no file.
    after : str
        The text of the file, or the user.
    state : str
        ``"to do"``, ``"already"``, ``"done"``, ``"undone"``, ``"left alone"`` or ``"failed"``.
    why : str
        Reason why the change is left alone or has failed.
    """

    kind: str
    target: str
    before: str | None = None
    after: str = ""
    state: str = "to do"
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the change as a dict that JSON can hold."""
        return self._asdict()


def _limits(group: str, priority: int) -> str:
    return f"{_HEADER}@{group} - rtprio {priority}\n@{group} - memlock unlimited\n"


def _rule(group: str) -> str:
    return f'{_HEADER}KERNEL=="{Path(_DEVICE).name}", GROUP="{group}", MODE="0660"\n'


def _drop_in(request: Request, *, has_group: bool) -> str:
    lines = ["[Service]", f"LimitRTPRIO={request.priority}", "LimitMEMLOCK=infinity", "RestrictRealtime=no"]
    # The group opens the device for a unit with User=; root needs no group.
    lines += [f"SupplementaryGroups={request.group}"] if has_group and not request.unit.startswith("user@") else []
    return _HEADER + "\n".join(lines) + "\n"


def _read(path: str) -> str | None:
    """Return the text of a file, with every byte of it; None if there is none."""
    try:
        return Path(path).read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def _groups(root: str) -> dict[str, list[str]]:
    """Return the groups of a machine, each with the users that ``/etc/group`` lists."""
    found = {}
    for line in (_read(f"{root}/etc/group") or "").splitlines():
        words = line.split(":")
        if len(words) >= 4:
            found[words[0]] = [user for user in words[3].split(",") if user]
    return found


def _users(root: str) -> set[str]:
    return {line.split(":")[0] for line in (_read(f"{root}/etc/passwd") or "").splitlines() if ":" in line}


def make_plan(request: Request, root: str = "") -> list[Change]:
    """Return the changes that a request needs, including those that are already there.

    Parameters
    ----------
    request : Request
        The request.
    root : str
        Folder that holds ``/etc`` and so on; empty for this machine.

    Raises
    ------
    ConfigError
        If a name is not valid, or a user is not known.
    """
    if not _GROUP.fullmatch(request.group):
        raise ConfigError(f"{request.group!r} is not a valid group name")
    for name in request.users:
        if not _USER.fullmatch(name):
            raise ConfigError(f"{name!r} is not a valid user name")
    if request.unit and not _UNIT.fullmatch(request.unit):
        raise ConfigError(f"{request.unit!r} is not the name of a service, which ends with .service")
    known = _users(root)
    for user in request.users:
        if user not in known and (root or not _is_known_elsewhere(user)):
            raise ConfigError(f"there is no user {user}")
    return list(_changes(request, root))


def _is_known_elsewhere(user: str) -> bool:
    """Return True if a user who is not in /etc/passwd is known, for example from LDAP."""
    import pwd

    try:
        return bool(pwd.getpwnam(user))
    except KeyError:
        return False


def _changes(request: Request, root: str) -> Iterator[Change]:
    groups = _groups(root)
    if request.unit:
        text = _drop_in(request, has_group=request.group in groups)
        yield _file(root, f"/etc/systemd/system/{request.unit}.d/rtloop.conf", text)
        return
    yield Change("group", request.group, state="already" if request.group in groups else "to do")
    for user in request.users:
        is_member = user in groups.get(request.group, ())
        yield Change("member", request.group, after=user, state="already" if is_member else "to do")
    name = f"99-rtloop-{request.group}"
    yield _file(root, f"/etc/security/limits.d/{name}.conf", _limits(request.group, request.priority))
    yield _file(root, "/etc/udev/rules.d/99-rtloop-privileges.rules", _rule(request.group))


def _file(root: str, path: str, text: str) -> Change:
    if os.path.islink(root + path):
        raise ConfigError(f"{path} is a symbolic link to {os.readlink(root + path)}: remove it, or edit that file")
    before = _read(root + path)
    return Change("file", path, before, text, "already" if before == text else "to do")


def find_obstacle(status: str | None = None) -> str:
    """Return why no login and no service of this machine can get the limits; empty if that is not known.

    Parameters
    ----------
    status : str, optional
        The text of ``/proc/1/status``; read from there by default. All logins and services descend from this process,
        and none can have a capability outside its bounding set (capabilities(7)).
    """
    with suppress(OSError, ValueError):
        bounding = parse_field(read_text("/proc/1/status") if status is None else status, "CapBnd")
        if bounding and not int(bounding, 16) >> CAP_SYS_RESOURCE & 1:
            return (
                "the first process of this system lacks CAP_SYS_RESOURCE, as in a container, so no login and no "
                "service can raise a limit; fix: start the container with the flags that "
                "rtloop setup-privileges --container prints"
            )
    return ""


def make_commands(changes: Sequence[Change], root: str = "") -> list[str]:
    """Return the changes that are to do as shell commands; `root` as in `make_plan`."""
    lines: list[str] = []
    for change in changes:
        if change.state != "to do":
            continue
        if change.kind == "group":
            lines.append(f"groupadd --system {change.target}")
        elif change.kind == "member":
            lines.append(" ".join(_joining(change, root, [])))
        else:
            lines.append(f"mkdir -p {shlex.quote(str(Path(change.target).parent))}")
            lines += [f"cat > {shlex.quote(change.target)} <<'END'", *change.after.splitlines(), "END"]
    return lines + [" ".join(command) for command in _reloads(changes, "to do")]


def _reloads(changes: Sequence[Change], state: str) -> Iterator[list[str]]:
    """Yield the commands that make the system read the changed files."""
    files = [change.target for change in changes if change.kind == "file" and change.state == state]
    if any(path.startswith("/etc/udev/") for path in files):
        yield ["udevadm", "control", "--reload"]
        yield ["udevadm", "trigger", f"--name-match={_DEVICE}"]
    if any(path.startswith("/etc/systemd/") for path in files):
        yield ["systemctl", "daemon-reload"]


def perform(changes: Sequence[Change], root: str = "") -> list[Change]:
    """Make the changes that are to do, and return all changes with their states.

    Raises
    ------
    SetupError
        If a change fails. Earlier changes stay in force, and are in the journal.
    """
    if not any(change.state == "to do" for change in changes):
        return list(changes)
    with _alone(root):
        return _perform(changes, root)


@contextmanager
def _alone(root: str) -> Iterator[None]:
    """Prevent other calls of the command from changing the machine and the journal at the same time."""
    folder = Path(root + _JOURNAL).parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(root + _JOURNAL, 0o600, _PATIENCE_S):
            yield
    finally:
        with suppress(OSError):  # the folder contains the journal, or the lock of another call
            folder.rmdir()


def _perform(changes: Sequence[Change], root: str) -> list[Change]:
    journal = _load(root)
    done: list[Change] = []
    for change in changes:
        if change.state != "to do" or _is_made(change, root):
            done.append(change if change.state != "to do" else change._replace(state="already"))
            continue
        if change.kind == "file" and _read(root + change.target) != change.before:
            raise SetupError(0, f"{change.target} has been changed meanwhile: check it, and try again; --undo "
                             "reverts the changes made so far")  # fmt: skip
        # The journal comes first, so that after a crash the undo knows each change that may have been made.
        new_folders = _missing_folders(root, change)
        journal.append({"kind": change.kind, "target": change.target, "before": change.before, "after": change.after,
                        "folders": new_folders})  # fmt: skip
        _store(root, journal)
        try:
            _make(change, root)
        except (OSError, subprocess.SubprocessError) as error:
            if change.kind != "file" and not isinstance(error, subprocess.TimeoutExpired):
                _store(root, journal[:-1])  # the command has refused: the undo must not revert somebody else's change
            text = f"{change.target}: {_reason(error)}; --undo reverts the changes made so far"
            raise SetupError(getattr(error, "errno", None) or 0, text) from error
        done.append(change._replace(state="done"))
    _reload(done, "done", root)
    return done


def _is_made(change: Change, root: str) -> bool:
    """Return whether a change has been made since it was planned."""
    if change.kind == "file":
        return _read(root + change.target) == change.after
    users = _groups(root).get(change.target)
    return users is not None and (change.kind == "group" or change.after in users)


def _missing_folders(root: str, change: Change) -> list[str]:
    if change.kind != "file":
        return []
    folders = [str(folder) for folder in Path(change.target).parents if not os.path.isdir(f"{root}{folder}")]
    return [folder for folder in folders if folder != "/"]


def _reason(error: BaseException) -> str:
    output = getattr(error, "stderr", None)
    return str(output).strip() if output else str(error)


def _make(change: Change, root: str) -> None:
    if change.kind == "group":
        _run(["groupadd", *_prefix(root), "--system", change.target])
    elif change.kind == "member":
        _run(_joining(change, root, _prefix(root)))
    else:
        _write(root + change.target, change.after)


def _joining(change: Change, root: str, prefix: list[str]) -> list[str]:
    """Return the command that adds a user to a group; usermod does not know those of a directory service."""
    if change.after not in _users(root):
        return ["gpasswd", "--add", change.after, change.target]
    return ["usermod", *prefix, "--append", "--groups", change.target, change.after]


def _leaving(change: Change, root: str) -> list[str]:
    """Return the command that removes a user from a group."""
    if not root:
        return ["gpasswd", "--delete", change.after, change.target]
    rest = [name for name, users in _groups(root).items() if change.after in users and name != change.target]
    return ["usermod", *_prefix(root), "--groups", ",".join(rest), change.after]


def _write(path: str, text: str) -> None:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
    with replaced(target) as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    target.chmod(mode)


def _prefix(root: str) -> list[str]:
    return ["--prefix", root] if root else []


def _run(command: list[str]) -> None:
    # /usr/sbin is not in the PATH of every sudo.
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    program = shutil.which(command[0], path=path)
    if program is None:
        raise FileNotFoundError(f"{command[0]} is not installed")
    subprocess.run([program, *command[1:]], check=True, capture_output=True, text=True, timeout=60)


def _reload(changes: Sequence[Change], state: str, root: str) -> None:
    """Make udev and systemd read the files if they run here; both read them at the next boot in any case."""
    if root:
        return
    for command in _reloads(changes, state):
        is_there = os.path.isdir("/run/systemd/system") if command[0] == "systemctl" else os.path.exists("/run/udev")
        if is_there:
            try:
                _run(command)
            except (OSError, subprocess.SubprocessError):
                return


def _load(root: str) -> list[dict[str, Any]]:
    try:
        text = _read(root + _JOURNAL)
    except PermissionError as error:
        raise SetupError(error.errno or 0, f"only root may read the journal {root}{_JOURNAL}: use sudo") \
            from error  # fmt: skip
    if text is None:
        return []
    try:
        entries = json.loads(text)["changes"]
        known = {"kind", "target", "before", "after", "folders"}
        if not all(set(entry) == known for entry in entries):
            raise ValueError("unknown fields")
    except (ValueError, KeyError, TypeError) as error:
        text = f"{root}{_JOURNAL} is damaged ({error}): revert its changes by hand, and remove the file"
        raise SetupError(0, text) from error
    return list(entries)


def _store(root: str, journal: list[dict[str, Any]]) -> None:
    path = Path(root + _JOURNAL)
    if journal:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            file.write(json.dumps({"version": 1, "changes": journal}, indent=1).encode())
        path.chmod(0o600)
        return
    path.unlink(missing_ok=True)


def undo(root: str = "", *, is_dry: bool = False) -> list[Change]:
    """Revert all changes of the journal, the last first, and return them with their states.

    A file that somebody has changed since is left alone, and so is a group that has other members; both stay in the
    journal.

    Parameters
    ----------
    root : str
        Folder that holds ``/etc`` and so on; empty for this machine.
    is_dry : bool
        True to return the changes that would be reverted, and change nothing.
    """
    if is_dry:
        return _undo(root, is_dry=True)
    if not _load(root):
        return []
    with _alone(root):
        result = _undo(root, is_dry=False)
    _reload(result, "undone", root)
    return result


def _undo(root: str, *, is_dry: bool) -> list[Change]:
    journal = _load(root)
    texts: dict[str, str | None] = {}  # of the files, once their later changes are reverted
    result: list[Change] = []
    for entry in reversed([*journal]):
        change = Change(entry["kind"], entry["target"], entry["before"], entry["after"])
        if change.kind == "file" and change.target not in texts:
            texts[change.target] = _read(root + change.target)
        why = _obstacle(change, root, texts.get(change.target), journal)
        if why:
            result.append(change._replace(state="left alone", why=why))
            continue
        if not is_dry:
            try:
                _take_back(change, root, entry["folders"])
            except (OSError, subprocess.SubprocessError) as error:
                result.append(change._replace(state="failed", why=_reason(error)))
                continue
            journal = [one for one in journal if one is not entry]
            _store(root, journal)  # at once, so that an undo after a crash continues from here
            change = change._replace(state="undone")
        texts[change.target] = change.before
        result.append(change)
    return result


def _obstacle(change: Change, root: str, now: str | None, journal: list[dict[str, Any]]) -> str:
    """Return the reason why a change cannot be reverted; empty if it can, or need not be.

    `now` is the text of its file once its later changes have been reverted.
    """
    if change.kind == "file" and now not in (change.after, change.before):
        return "somebody has changed it since"
    if change.kind == "group":
        own = {x["after"] for x in journal if x["kind"] == "member" and x["target"] == change.target}
        others = [user for user in _groups(root).get(change.target, ()) if user not in own]
        if others:
            return f"the group has other members: {', '.join(others)}"
    return ""


def _take_back(change: Change, root: str, folders: list[str]) -> None:
    groups = _groups(root)
    if change.kind == "group":
        if change.target in groups:
            _run(["groupdel", *_prefix(root), change.target])
    elif change.kind == "member":
        if change.after in groups.get(change.target, ()):
            _run(_leaving(change, root))
    elif change.before is not None:
        _write(root + change.target, change.before)
    else:
        Path(root + change.target).unlink(missing_ok=True)
        for folder in folders:
            path = Path(root + folder)
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def container_flags(priority: int = 95) -> dict[str, str]:
    """Return the settings that give a container the privileges: flags of Docker and Podman, and a pod's context."""
    return {
        "docker": f"--ulimit rtprio={priority} --ulimit memlock=-1:-1 --cap-add=SYS_NICE --cap-add=IPC_LOCK "
        f"--device {_DEVICE}",
        "kubernetes": "securityContext: {runAsUser: 0, capabilities: {add: [SYS_NICE, IPC_LOCK]}}",
    }

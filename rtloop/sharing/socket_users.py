"""Users at the two ends of an exchange's socket: who may open the exchange, and who may be it.

The socket's owner, group and mode decide who may open it, at each opening. The kernel checks them when a process
connects; the process that gives the exchange away checks them again with the credentials of the other end (unix(7),
``SO_PEERCRED``). An abstract socket has no owner and no mode: it is for the same user.

The process that opens it checks who has created the socket, because its content would be that user's. It takes one of
its own user, and one of another if no third user can have put it at the path.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from typing import NamedTuple

from rtloop.errors import AttachPrivilegeError
from rtloop.system.fileio import read_text

__all__ = ["User", "check_creator", "may_open", "peer_of"]

_ROOT = 0
_UCRED = struct.Struct("iII")
#: Of <asm-generic/socket.h>, which Python does not define.
_SO_PEERGROUPS = 59
#: The most that socket.getsockopt() returns: 256 groups. Of a user with more, the first group alone counts.
_GROUP_BYTES = 1024


class User(NamedTuple):
    """User of the process at the other end of a connection, as of the call that has made that end."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def peer_of(connection: socket.socket) -> User:
    """Return the user at the other end: of the process that has connected, or of the one that listened first."""
    _, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUP_BYTES)
    except OSError:  # more of them, or Linux before 4.13
        return User(uid, gid)
    return User(uid, gid, struct.unpack(f"{len(groups) // 4}I", groups))


def may_open(user: User, name: str) -> bool:
    """Return whether a user may open an exchange of this process."""
    if name[0] == "@":
        return user.uid in (_ROOT, os.geteuid()) and not _is_unknown(user.uid)
    if user.uid in (_ROOT, os.geteuid()):
        return True
    try:
        info = os.stat(name)  # of the socket, if the name is a link: every link has the mode 0o777
    except OSError:  # it has been removed, or is at another path in this mount namespace
        return False
    is_of_group = info.st_gid in (user.gid, *user.groups)
    return bool(user.uid == info.st_uid or info.st_mode & stat.S_IWOTH or (info.st_mode & stat.S_IWGRP and is_of_group))


def _is_unknown(uid: int) -> bool:
    """Return whether an id may stand for any user that the user namespace of this process does not have."""
    try:
        if uid != int(read_text("/proc/sys/kernel/overflowuid")):
            return False
        return sum(int(line.split()[2]) for line in read_text("/proc/self/uid_map").splitlines()) < 2**32 - 1
    except (OSError, ValueError, IndexError):
        return True


def check_creator(user: User, name: str) -> None:
    """Check that the user who has created a socket may be the exchange of this name.

    Raises
    ------
    AttachPrivilegeError
        If the user is another one, and the name is one that any user may take.
    """
    own = os.geteuid()
    trusted = {_ROOT} if _is_unknown(own) else {_ROOT, own}
    if user.uid == own and own in trusted:
        return
    if name[0] == "@":
        raise AttachPrivilegeError(
            f"the exchange {name!r} is one of user {user.uid}, and this process is of user {own}: any user may take "
            "such a name, so it is for processes of one user. Use a path for exchanges between users"
        )
    folder = None if user.uid == _ROOT else _public_folder(name, trusted)
    if folder is not None:
        raise AttachPrivilegeError(
            f"the exchange {name!r} is one of user {user.uid}, and any user may have put it into {folder}. Use a "
            "folder that only its users may write to"
        )


def _public_folder(path: str, trusted: set[int]) -> str | None:
    """Return the first folder of a path in which any user may have put the next part; None if there is none."""
    here = "/"
    for part in path.strip("/").split("/"):
        entry = os.path.join(here, part)
        folder, info = os.stat(here), os.lstat(entry)
        if folder.st_mode & stat.S_IWOTH and not (folder.st_mode & stat.S_ISVTX and info.st_uid in trusted):
            return here
        if stat.S_ISLNK(info.st_mode):
            target = _public_folder(os.path.realpath(entry), trusted)
            if target is not None:
                return target
        here = entry
    return None

"""Users at the two ends of an exchange's socket: which users may open the exchange, and which may have created it.

The socket's owner, group and mode decide at each opening who may open the exchange. The kernel checks them when a
process connects. The process that answers checks them again with the credentials of the peer (unix(7),
``SO_PEERCRED``). An abstract socket has no owner and no mode, so it is for processes of one user.

The process that opens the exchange checks who has created the socket, because that user controls the content. It
accepts its own user, and another user if no third user can have put the socket at the path.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from typing import NamedTuple

from rtloop.errors import AttachPrivilegeError
from rtloop.system.fileio import public_folder, read_text

__all__ = ["User", "check_creator", "may_open", "peer_of"]

_ROOT = 0
_UCRED = struct.Struct("iII")
#: From <asm-generic/socket.h>; Python does not define it.
_SO_PEERGROUPS = 59
#: Largest result of socket.getsockopt(): 256 groups. For a user with more, only the primary group is known.
_GROUP_BYTES = 1024


class User(NamedTuple):
    """User of the peer of a connection, at the time of its connect(2) or listen(2)."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def peer_of(connection: socket.socket) -> User:
    """Return the user of the peer: of the process that has connected, or of the one that called listen(2) first."""
    _, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUP_BYTES)
    except OSError:  # more groups, or Linux before 4.13
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
    """Return whether an id may be the overflow id, which stands for all users outside of this user namespace."""
    try:
        if uid != int(read_text("/proc/sys/kernel/overflowuid")):
            return False
        return sum(int(line.split()[2]) for line in read_text("/proc/self/uid_map").splitlines()) < 2**32 - 1
    except (OSError, ValueError, IndexError):
        return True


def check_creator(user: User, name: str) -> None:
    """Check that a user may have created the socket of an exchange of this name.

    Raises
    ------
    AttachPrivilegeError
        If it is another user, and any user may take the name.
    """
    own = os.geteuid()
    trusted = {_ROOT} if _is_unknown(own) else {_ROOT, own}
    if user.uid == own and own in trusted:
        return
    if name[0] == "@":
        raise AttachPrivilegeError(
            f"the exchange {name!r} belongs to user {user.uid}, and this process to user {own}: any user may take "
            "such a name, so it is for processes of one user. Use a path for exchanges between users"
        )
    folder = None if user.uid == _ROOT else public_folder(name, trusted)
    if folder is not None:
        raise AttachPrivilegeError(
            f"the exchange {name!r} belongs to user {user.uid}, and any user may have put it into {folder}. Use a "
            "folder to which only its users may write"
        )

"""Exchanges that are found by a socket: at a path, ``"/run/arm/setpoint"``, or by an abstract name, ``"@arm/x"``.

The process that creates an exchange listens on its socket, and passes the exchange's file and the listening socket to
each process that connects and may open it (:mod:`rtloop.sharing.exchange_server`). So the processes need no common PID
namespace, user or capabilities.

The kernel refuses a connection to a path if no process listens there, because all processes that had the exchange have
ended. The next process locks the path and replaces the socket. The last process that closes an exchange removes the
socket in the same way. The kernel itself removes an abstract name.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from rtloop.errors import AttachError, AttachPrivilegeError, ConfigError, StateError, setup_error
from rtloop.process.nap import nap
from rtloop.sharing.block_files import check_sealed
from rtloop.sharing.exchange_file import (
    ExchangeFile,
    Header,
    Plan,
    check_kind,
    check_same,
    claim_role,
    create_file,
    finish_file,
    parse_file,
)
from rtloop.sharing.exchange_server import (
    GIVEN,
    MAGIC,
    MESSAGE,
    REFUSED,
    VERSION,
    close_after_fork,
    serve,
)
from rtloop.sharing.path_lock import is_locked, locked
from rtloop.sharing.socket_users import check_creator, peer_of

__all__ = ["PATIENCE_S", "look_at_socket", "open_by_socket", "share_by_socket"]

#: Longest wait for processes to answer, or to unlock a path. Both take milliseconds, unless the processes are stopped.
PATIENCE_S = 10.0
#: Longest wait for one process, which may be waiting for its GIL, before the next try, which another one may answer.
_ANSWER_S = 2.0
#: Longest wait, at the end of a process, for other processes that have locked the path.
_CLOSE_S = 0.2
_BACKLOG = 128


class _Given(NamedTuple):
    """Answer of a process that has the exchange: its file, and the socket on which all of them listen."""

    file: int
    listening: socket.socket


def _address(name: str) -> bytes:
    return b"\0" + name[1:].encode() if name[0] == "@" else name.encode()


def _new_socket() -> socket.socket:
    return close_after_fork(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))


def _ask(name: str) -> _Given | None:
    """Ask for an exchange; None if no process has it.

    Raises
    ------
    AttachError
        If nobody answers, or the answer is not that of an exchange.
    AttachPrivilegeError
        If this user may not open it, or does not trust the user who has created it.
    ConfigError
        If there is something else at the path.
    """
    deadline = time.monotonic() + PATIENCE_S
    refused = 0
    while True:
        try:
            given = _ask_once(name)
        except (FileNotFoundError, ConnectionRefusedError):
            _check_place(name)
            return None
        except PermissionError as error:
            if isinstance(error, AttachPrivilegeError):
                raise
            # The process that has just created the socket may not have set its mode yet, which it does under the lock.
            refused += 1
            if refused > 1 and not (is_locked(name) and time.monotonic() < deadline):
                raise AttachPrivilegeError(_refusal(name)) from None
            given = None
        except (TimeoutError, BlockingIOError, ConnectionError):
            given = None  # the process that accepted the connection was stopped or killed: another may answer
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:
                raise ConfigError(f"the socket {name!r} does not belong to an exchange") from None
            raise AttachError(f"the exchange {name!r} cannot be opened: {error.strerror}") from None
        if given is not None:
            return given
        if time.monotonic() > deadline:
            raise AttachError(
                f"no process that has the exchange {name!r} answers: they may have been stopped (SIGSTOP), or "
                "have no descriptors left"
            )
        nap(0.002)


def _ask_once(name: str) -> _Given | None:
    """Connect, and return the answer; None if the peer has closed the connection without an answer."""
    with _new_socket() as connection:
        connection.settimeout(_ANSWER_S)
        connection.connect(_address(name))
        check_creator(peer_of(connection), name)
        data, files, _, _ = socket.recv_fds(connection, MESSAGE.size + 1, 2, socket.MSG_CMSG_CLOEXEC)
    try:
        if not data:
            return None
        if len(data) != MESSAGE.size or data[: len(MAGIC)] != MAGIC:
            raise AttachError(f"what answers at {name!r} is not an exchange")
        _, version, verdict = MESSAGE.unpack(data)
        if version != VERSION:
            raise AttachError(f"the exchange {name!r} belongs to another version of rtloop: use the same version")
        if verdict == REFUSED:
            raise AttachPrivilegeError(_refusal(name))
        if verdict != GIVEN or len(files) != 2:
            raise AttachError(f"the exchange {name!r} did not reach this process, which may have no descriptors left")
        given = _Given(files[0], _listening(name, files[1]))
        files = []
        return given
    finally:
        for file in files:
            os.close(file)


def _listening(name: str, file: int) -> socket.socket:
    """Return the listening socket of an answer, after a check, because any process may have sent it."""
    with suppress(OSError):
        with socket.socket(fileno=os.dup(file)) as one:
            is_good = (
                one.family == socket.AF_UNIX
                and one.type == socket.SOCK_SEQPACKET
                and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            )
        if is_good:
            return close_after_fork(socket.socket(fileno=file))
    raise AttachError(f"what answers at {name!r} is not an exchange")


def _refusal(name: str) -> str:
    refused = f"the exchange {name!r} may not be opened by user {os.geteuid()}"
    try:
        info = os.stat(name)
    except OSError:
        return f"{refused}: it is for another user, or in a folder that this user may not enter"
    return (
        f"{refused}: its socket has user {info.st_uid}, group {info.st_gid}, mode {stat.S_IMODE(info.st_mode):#o}. "
        "Create it with mode=0o660, or change its group (chgrp)"
    )


def _check_place(name: str) -> None:
    """Raise a ConfigError if a path exists and is not a socket, because only a socket may be replaced."""
    if name[0] == "@":
        return
    with suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISSOCK(os.lstat(name).st_mode):
            raise ConfigError(f"{name} exists and is not a socket: remove it, or give another path")


def _join(
    name: str, role: str, given: _Given, plan: Plan | None, kind: str, dtype: np.dtype[Any] | None
) -> ExchangeFile:
    """Take a role in the exchange of an answer, which must match `plan`, or else `kind` and `dtype`."""
    is_listening = False
    try:
        fd, header = _read(name, given)
        try:
            if plan is None:
                check_kind(header, kind, dtype)
            else:
                check_same(header, plan)
            file = ExchangeFile(header, fd, role, claim_role(fd, header, role))
        except BaseException:
            os.close(fd)
            raise
        is_listening = True  # from here on the listener closes the socket
        _listen_on(file, given.listening)
        return file
    finally:
        if not is_listening:
            _close_and_remove(name, given.listening)


def _read(name: str, given: _Given) -> tuple[int, Header]:
    """Open the file of an answer anew, for this process alone, and check its header. Closes the file of the answer."""
    try:
        # Before the open, because opening another kind of file may block, or start a device. Only a memfd is sealed.
        check_sealed(given.file, is_written=True)
        # The sender and other processes may use the description that was sent.
        fd = os.open(f"/proc/self/fd/{given.file}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:
        raise AttachError(f"what was given as the exchange {name!r} is not one: {error}") from None
    except OSError as error:
        raise AttachError(f"the exchange {name!r} cannot be opened for reading and writing: {error}") from None
    finally:
        os.close(given.file)
    try:
        header = parse_file(fd, os.fstat(fd).st_size)
        if not header.is_finished:
            raise ValueError("it is not finished")
    except ValueError as error:
        os.close(fd)
        raise AttachError(f"what was given as the exchange {name!r} is not one: {error}") from None
    except BaseException:
        os.close(fd)
        raise
    # The name by which this process has found it: other containers may see the same socket at another path.
    return fd, header._replace(name=name)


def _listen_on(file: ExchangeFile, listening: socket.socket) -> None:
    """Pass an exchange to other processes as long as it is open here. Closes it if this fails."""
    try:
        file.listener = serve(file.header.name, listening, file.fd, _remove_unused)
    except BaseException:
        file.close()
        raise


def open_by_socket(name: str, kind: str, role: str, dtype: np.dtype[Any] | None = None) -> ExchangeFile:
    """Take a role in an existing exchange.

    Raises
    ------
    AttachError
        If no process has it open.
    AttachPrivilegeError
        If this user may not open it.
    ConfigError
        If it is of another kind, or `dtype` is given and differs.
    StateError
        If other processes have the role.
    """
    given = _ask(name)
    if given is None:
        left = " any more: processes that were killed have left the socket there" if os.path.lexists(name) else ""
        raise AttachError(f"no process has the exchange {name!r} open{left}")
    return _join(name, role, given, None, kind, dtype)


def look_at_socket(name: str) -> tuple[int, Header] | None:
    """Open an exchange without a role in it. Returns its file and its header, None if no process has it open."""
    given = _ask(name)
    if given is None:
        return None
    try:
        return _read(name, given)
    finally:
        _close_and_remove(name, given.listening)


def share_by_socket(name: str, plan: Plan, role: str) -> ExchangeFile | None:
    """Create an exchange, or take a role in the one of this name; None while another process is creating it.

    Raises
    ------
    AttachPrivilegeError
        If this user may not open the one that exists.
    ConfigError
        If there is one of this name that differs.
    StateError
        If other processes have the role.
    SetupError
        If the socket cannot be created; also a PermissionError if this user may not write to the folder.
    OSError
        If there is no memory, or memfd_create(2) is refused.
    """
    given = _ask(name)
    if given is not None:
        return _join(name, role, given, plan, plan.kind, plan.dtype)
    return _create(name, plan, role)


def _create(name: str, plan: Plan, role: str) -> ExchangeFile | None:
    """Create an exchange and its socket; None if another process has done so, or is doing it."""
    fd, header = create_file(name, plan)
    try:
        finish_file(fd)
        header = header._replace(is_finished=True)
        file = ExchangeFile(header, fd, role, claim_role(fd, header, role), is_new=True)
    except BaseException:
        os.close(fd)
        raise
    try:
        listening = _bind(name, plan.mode)
    except BaseException:
        file.close()
        raise
    if listening is None:
        file.close()
        return None
    try:
        _listen_on(file, listening)
    except BaseException:
        _remove_unused(name)
        raise
    return file


def _bind(name: str, mode: int) -> socket.socket | None:
    """Create the socket and listen; None if a process listens there already."""
    try:
        if name[0] == "@":
            return _listen(name, mode)
        with locked(name, mode, PATIENCE_S):
            if not _is_unused(name):
                return None
            _check_place(name)
            with suppress(FileNotFoundError):
                os.unlink(name)
            return _listen(name, mode)
    except OSError as error:
        if isinstance(error, (ConfigError, StateError)):
            raise
        folder = os.path.dirname(name)
        what = f"the socket of the exchange {name!r} cannot be created: {error.strerror}"
        if error.errno == errno.ENOENT:
            what += f". Create the folder {folder}"
        elif error.errno in (errno.EACCES, errno.EPERM):
            what += f". User {os.geteuid()} must be able to write to the folder {folder}"
            if os.path.lexists(name):
                what += ", and to remove the socket there, which a killed process has left"
        raise setup_error(error.errno or 0, what, privilege=isinstance(error, PermissionError)) from error


def _listen(name: str, mode: int) -> socket.socket | None:
    """Bind a socket to a name and listen; None if an abstract name is not free."""
    listening = _new_socket()
    try:
        if name[0] == "/":
            os.fchmod(listening.fileno(), mode)  # the mode, before the umask, of the file that bind(2) creates
        try:
            listening.bind(_address(name))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and name[0] == "@":
                listening.close()
                return None
            raise
        try:
            if name[0] == "/":
                _set_mode(name, mode)
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except BaseException:
            if name[0] == "/":
                os.unlink(name)  # the path is locked, so this is the socket created above
            raise
    except BaseException:
        listening.close()
        raise
    return listening


def _set_mode(path: str, mode: int) -> None:
    """Set the mode of a socket, but not of another file that somebody puts in its place."""
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if stat.S_ISSOCK(info.st_mode) and stat.S_IMODE(info.st_mode) != mode:
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _is_unused(path: str) -> bool:
    """Return whether no process listens at a path."""
    with _new_socket() as probe:
        probe.setblocking(False)
        try:
            probe.connect(path.encode())
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            return False  # for example, its queue of connections is full
    return False


def _close_and_remove(name: str, listening: socket.socket) -> None:
    """Close a socket that was passed to this process, and remove its path if no other process listens any more."""
    listening.close()
    _remove_unused(name)


def _remove_unused(name: str) -> None:
    """Remove the socket at a path if no process listens there any more."""
    if name[0] == "@" or not _is_unused(name):
        return
    with suppress(OSError, StateError):
        mode = stat.S_IMODE(os.lstat(name).st_mode) & 0o666  # so that all users of the exchange can take the lock
        with locked(name, mode, _CLOSE_S):
            if _is_unused(name) and stat.S_ISSOCK(os.lstat(name).st_mode):
                os.unlink(name)

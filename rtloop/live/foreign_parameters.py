"""Parameters of a loop of another process: found through /proc, mapped, and not trusted."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from rtloop.errors import AttachError, ConfigError, StateError
from rtloop.live.declared_parameters import Parameter, merge
from rtloop.live.parameter_block import MOST, ForeignParameters, Used
from rtloop.live.parameter_set import this_writer
from rtloop.live.write_lock import write_lock
from rtloop.sharing.block_files import BlockFile, find_block_file, open_block_file

__all__ = ["ForeignParameterSet", "NoParameters", "open_parameters"]

#: Since Linux 5.1; Python names it from 3.12 on (fcntl.F_SEAL_FUTURE_WRITE).
_F_SEAL_FUTURE_WRITE = 0x10


class NoParameters:
    """A loop of another process that has no parameters; its name is for messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.declared: Mapping[str, Parameter] = {}

    def asked(self) -> bytes:
        """Return an empty set."""
        return b""

    def used(self) -> Used | None:
        """Return None."""
        return None

    def change(self, changes: Mapping[str, bytes]) -> None:
        """Do nothing: there is nothing to change."""

    def close(self) -> None:
        """Do nothing."""


class ForeignParameterSet:
    """The parameters of a loop of another process.

    Attributes
    ----------
    name : str
        Name of the loop.
    declared : dict
        The parameters by name, as the loop describes them.
    is_writable : bool
        True if they may be changed.
    """

    def __init__(self, name: str, view: ForeignParameters, is_writable: bool, is_running: Callable[[], bool]) -> None:
        self.name, self.is_writable = name, is_writable
        self._view: ForeignParameters | None = view
        self._is_running = is_running
        self.declared = _parse(view.text(), view.set_bytes)

    def asked(self) -> bytes:
        """Return the set that was requested last, or the one in use if somebody has written an invalid one."""
        view = self._opened()
        asked = view.asked().values
        return asked if self._is_sound(asked) else view.used().values

    def used(self) -> Used | None:
        """Return the set that the loop uses."""
        return self._opened().used()

    def change(self, changes: Mapping[str, bytes]) -> None:
        """Request a set with some values changed.

        Raises
        ------
        StateError
            If the loop has ended or does not allow changes, or another writer has held the lock for two seconds.
        """
        view = self._opened()
        if not self.is_writable:
            raise StateError(
                f"the parameters of {self.name} cannot be changed by this process: the loop was made with "
                "tunable=False, or belongs to another user"
            )
        with write_lock(view.fd, self.name):
            if not self._is_running():
                raise StateError(f"{self.name} has ended: connect to its next run")
            view.publish(merge(self.declared, self.asked(), changes), this_writer())

    def _is_sound(self, values: bytes) -> bool:
        try:
            return all(one.pack(one.unpack(values)) == one.unpack_bytes(values) for one in self.declared.values())
        except ConfigError:
            return False

    def close(self) -> None:
        """Unmap the block. A second call does nothing."""
        view, self._view = self._view, None
        if view is not None:
            view.close()

    def _opened(self) -> ForeignParameters:
        view = self._view
        if view is None:
            raise StateError(f"this connection to {self.name} is closed")
        return view


def open_parameters(pid: int, name: str, inode: int, is_running: Callable[[], bool]) -> ForeignParameterSet:
    """Map the parameters of a running loop; `inode` is the number of their file.

    Raises
    ------
    AttachError
        If they are gone, damaged, or may not be read.
    """
    try:
        file = find_block_file(pid, "parameters", inode)
        if file is None:
            raise FileNotFoundError("their shared memory is gone: the loop has ended")
        fd, size, is_writable = _open(file)
        try:
            view = ForeignParameters(fd, size, is_writable, name)  # closes the file from now on
        except BaseException:
            os.close(fd)
            raise
        return ForeignParameterSet(name, view, is_writable, is_running)
    except (OSError, ValueError) as error:
        raise AttachError(f"the parameters of {name} (process {pid}) cannot be read: {error}") from error


def _open(file: BlockFile) -> tuple[int, int, bool]:
    """Open the file for writing, if that is allowed."""
    try:
        fd, size = open_block_file(file, is_writable=True)
    except PermissionError:
        return *open_block_file(file), False
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _F_SEAL_FUTURE_WRITE:
        return fd, size, True
    os.close(fd)
    return *open_block_file(file), False


def _parse(text: bytes, set_bytes: int) -> dict[str, Parameter]:
    """Read an untrusted description.

    Raises
    ------
    ValueError
        If no loop can have written it.
    """
    try:
        listed: Any = json.loads(text)["parameters"]
        if not isinstance(listed, list) or len(listed) > MOST:
            raise ValueError("it has no list of parameters")
        found = [Parameter.from_dict(values) for values in listed]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"their description is not that of a loop: {error}") from None
    for one in found:
        if one.offset < 0 or one.offset + one.size > set_bytes:
            raise ValueError(f"their description is not that of a loop: {one.name} is outside of a set")
    if len({one.name for one in found}) != len(found):
        raise ValueError("their description is not that of a loop: a name occurs twice")
    return {one.name: one for one in found}

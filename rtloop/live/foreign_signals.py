"""Signals of a loop of another process: found through /proc, mapped without permission to write, and not trusted."""

from __future__ import annotations

import os

from rtloop.errors import AttachError, AttachPrivilegeError, StateError
from rtloop.live.signal_block import MOST_FOREIGN_BYTES, Cursor, ForeignSignals
from rtloop.live.signal_set import parse_layout
from rtloop.live.signals import Signals
from rtloop.sharing.block_files import find_block_file, open_block_file
from rtloop.telemetry.denied import describe_denied
from rtloop.telemetry.loop_reader import LoopReader

__all__ = ["open_signals"]


class ForeignSource:
    """The block of the signals of a loop of another process."""

    def __init__(self, loop: LoopReader) -> None:
        self.name = loop.name
        inode = loop.blocks.get("signals")
        if inode is None:
            raise StateError(f"{loop.name} in process {loop.pid} has no signals that another process can read")
        file = find_block_file(loop.pid, "signals", inode)
        if file is None:
            raise FileNotFoundError(f"process {loop.pid} has closed their shared memory")
        fd, size = open_block_file(file)
        try:
            self.block = ForeignSignals(fd, size)
        finally:
            os.close(fd)
        cursor = Cursor(self.block, "now")
        self.layout = parse_layout(cursor.text(), cursor.record_bytes)
        if cursor.capacity * self.layout.dtype.itemsize > MOST_FOREIGN_BYTES:  # some may overlap in the block
            raise ValueError(f"{cursor.capacity} samples of them take more than {MOST_FOREIGN_BYTES >> 30} GiB")


def open_signals(loop: LoopReader) -> Signals:
    """Return the signals of a running loop; their first read begins with the oldest that is still there.

    Raises
    ------
    StateError
        If the loop has no signals.
    AttachPrivilegeError
        If the process may not be inspected.
    AttachError
        If they cannot be read.
    """
    try:
        return Signals(ForeignSource(loop), "oldest")
    except PermissionError:
        raise AttachPrivilegeError(describe_denied(loop.pid)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise AttachError(f"the signals of {loop.name} (process {loop.pid}) cannot be read: {reason}") from error

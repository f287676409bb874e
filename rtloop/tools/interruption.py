"""Interruption of a command by a signal: the first one interrupts it, and later ones wait for its report."""

from __future__ import annotations

import errno
import os
import signal
import termios
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["Terminated", "default_handlers", "ended_by_signals", "exit_code", "name_of", "noted_signals"]


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: ends a command as Ctrl-C does, so that loops, loads and traces are ended first."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_code(error: BaseException | None) -> int:
    """Return a shell's exit code for an interrupt: 128 plus the signal's number."""
    return 128 + (error.number if isinstance(error, Terminated) else signal.SIGINT)


def name_of(error: Terminated) -> str:
    """Return the name of the signal, such as SIGTERM."""
    return signal.Signals(error.number).name


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Raise the first SIGINT, SIGTERM or SIGHUP as KeyboardInterrupt or `Terminated`; ignore later ones in the block.

    Impatient users press Ctrl-C twice, and a closing terminal sends SIGHUP after SIGINT: neither may cut off the end of
    a loop or the table of its run. An ignored signal stays ignored, as under nohup(1), and a handler that a program has
    set is kept.
    """
    is_ending = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal is_ending
        _leave_closed_terminal()
        if not is_ending:
            is_ending = True
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)

    replaced = default_handlers()
    try:
        for number in replaced:
            signal.signal(number, end)
        yield
    finally:
        for number, handler in replaced.items():
            # An interrupted command is about to exit, and its exit code says why.
            signal.signal(number, signal.SIG_IGN if is_ending else handler)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Append SIGINT, SIGTERM and SIGHUP to a list, for a command that looks there between two pieces of its work."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        _leave_closed_terminal()
        noted.append(number)

    replaced = default_handlers()
    try:
        for number in replaced:
            signal.signal(number, note)
        yield noted
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def _leave_closed_terminal() -> None:
    """Discard output to a terminal that has been closed.

    Each write to it fails (EIO). The report of a command would fail, and the exit code would not be the signal's.
    """
    for number in (1, 2):
        try:
            termios.tcgetattr(number)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)


def default_handlers() -> dict[int, Any]:
    """Return the handlers of the signals that end a command, unless they are ignored or the program's own."""
    return {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(number)) in (signal.SIG_DFL, signal.default_int_handler)
    }

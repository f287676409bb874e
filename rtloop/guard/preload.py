"""Loading of the library that counts allocations (``malloc`` and its relatives) in ``step``.

It must be loaded before the program's first allocation, with ``LD_PRELOAD`` (ld.so(8)). The guards of page faults and
system calls do not need it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence

from rtloop.errors import RTSetupWarning, StateError
from rtloop.guard import guard_block as _guard
from rtloop.guard.guard_block import is_malloc_watched
from rtloop.process.environment import copy_environment

__all__ = ["library", "reexec", "refuse_while"]

#: Environment variable of the executed program, with the former value of LD_PRELOAD.
_MARK = "RTLOOP_GUARD_FORMER_PRELOAD"


def _is_loop_running() -> bool:
    return False  # replaced by refuse_while(), which the registry of loops calls when it is imported


def refuse_while(is_loop_running: Callable[[], bool]) -> None:
    """Set the function that tells :func:`reexec` whether a loop runs: rtloop.guard may not import rtloop.loop."""
    global _is_loop_running
    _is_loop_running = is_loop_running


def library() -> str:
    """Return the path of the library, for programs that set ``LD_PRELOAD`` themselves."""
    return os.path.join(os.path.dirname(os.path.realpath(_guard.__file__)), "librtloop_guard.so")


def reexec(arguments: Sequence[str] | None = None) -> bool:
    """Execute this program again with the library that counts allocations; do nothing if it is already loaded.

    Call it first, before anything that has an effect, because the program starts over. The process keeps its number;
    threads, memory and files with close-on-exec are lost, as with any execve(2). The environment is restored
    afterwards, so programs that this one starts are not watched.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line, the interpreter first; by default that of this program (``sys.orig_argv``).

    Returns
    -------
    bool
        True if the library is loaded. False, with an RTSetupWarning, if it cannot be: the loader ignores ``LD_PRELOAD``
        in a program with file capabilities or set-user-ID.

    Raises
    ------
    StateError
        If a loop runs.

    Examples
    --------
    >>> import rtloop
    >>> rtloop.guard.reexec()
    True
    """
    former = os.environ.pop(_MARK, None)
    if former is not None:  # this is the program that was executed
        by_descriptor = re.match(r"/proc/self/fd/(\d+)(?: |$)", os.environ.get("LD_PRELOAD", ""))
        if by_descriptor:
            os.close(int(by_descriptor[1]))
        if former:
            os.environ["LD_PRELOAD"] = former
        else:
            os.environ.pop("LD_PRELOAD", None)
    if is_malloc_watched():
        return True
    path = library()
    if former is not None or not os.access(path, os.R_OK):
        import warnings

        why = f"there is no {path}" if former is None else "the loader has ignored LD_PRELOAD, as after setcap"
        warnings.warn(f"allocations are not watched: {why}", RTSetupWarning, stacklevel=2)
        return False
    if _is_loop_running():
        raise StateError("rtloop.guard.reexec() while a loop runs: call it before the first start()")
    command = list(sys.orig_argv if arguments is None else arguments)
    preload = os.environ.get("LD_PRELOAD", "")
    if any(char in path for char in " :"):  # which separate the entries of LD_PRELOAD, and cannot be escaped
        descriptor = os.open(path, os.O_RDONLY)
        os.set_inheritable(descriptor, True)  # the interpreter that is executed closes it
        path = f"/proc/self/fd/{descriptor}"
    environment = copy_environment() | {_MARK: preload, "LD_PRELOAD": f"{path} {preload}".strip()}
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    program = sys.executable
    if not program or not os.path.exists(program):  # Python is embedded in another program
        program = "/proc/self/exe"
    return bool(os.execve(program, command, environment))

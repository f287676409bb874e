"""The guard of allocations: loading what counts ``malloc`` and its kin in ``step``.

Page faults and system calls are watched by any loop with ``guard="count"`` or ``"stop"``. Allocations are seen by a
small library, which has to be there before the program's first allocation (``LD_PRELOAD``, ld.so(8)).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence

from rtloop.errors import RTSetupWarning, StateError
from rtloop.guard import guard_block as _guard
from rtloop.guard.guard_block import is_malloc_watched

__all__ = ["library", "reexec", "refuse_while"]

#: What LD_PRELOAD was before, in the environment of the program that is executed.
_MARK = "RTLOOP_GUARD_FORMER_PRELOAD"


def _is_loop_running() -> bool:
    return False  # until the registry of loops is imported, which calls refuse_while()


def refuse_while(is_loop_running: Callable[[], bool]) -> None:
    """Set how :func:`reexec` finds out whether a loop runs. Loops are above this room, so their registry calls this."""
    global _is_loop_running
    _is_loop_running = is_loop_running


def library() -> str:
    """Return the path of the library, for programs that set ``LD_PRELOAD`` themselves."""
    return os.path.join(os.path.dirname(os.path.realpath(_guard.__file__)), "librtloop_guard.so")


def reexec(arguments: Sequence[str] | None = None) -> bool:
    """Execute this program anew with the library that counts allocations loaded; where it is loaded, do nothing.

    Call it first, before anything that has an effect: all that the program has done so far is done again. The process
    keeps its number; open files, threads and memory are lost as execve(2) has it. Programs that this one starts are not
    watched: the environment is put back.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command line, the interpreter first; by default the one of this program (``sys.orig_argv``).

    Returns
    -------
    bool
        True where the library is loaded. False, with an RTSetupWarning, where it cannot be: the loader ignores
        ``LD_PRELOAD`` in a program with file capabilities or another user's identity, and knows glibc alone.

    Raises
    ------
    StateError
        Where a loop runs.

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

        why = f"there is no {path}" if former is None else "the loader has ignored LD_PRELOAD, as it does with setcap"
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
    environment = {**os.environ, _MARK: preload, "LD_PRELOAD": f"{path} {preload}".strip()}
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return bool(os.execve(sys.executable, command, environment))

"""Thread pools of numerical libraries in this process: OpenBLAS, MKL, BLIS and OpenMP.

Such a library splits one call among its threads, which have ordinary priority, and the caller waits or spins for them.
In a real-time step that wait depends on everything else that the machine runs.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from rtloop.errors import ConfigError
from rtloop.guard.loaded_libraries import library_changes, loaded_libraries
from rtloop.process.python_threads import python_threads
from rtloop.system.cpu import format_cpu_list
from rtloop.system.fileio import read_text
from rtloop.system.grant import Grant

__all__ = ["GRANT", "PoolWatch", "ThreadPool", "limit_thread_pools", "loop_tids", "pool_of", "pools", "pools_grant"]

#: Name of the grant.
GRANT = "thread_pools"
#: Threads of the loops of this process. A list, because a thread's number may be given again.
loop_tids: list[int] = []
#: Pools that used less than this share of the run are idle.
_BUSY = 0.01
#: A caller of a pool uses about as much CPU as one of its threads; a thread that used so much less did not call.
_CLEARLY = 4


class ThreadPool(NamedTuple):
    """A library with a pool: its name, how many threads it uses, its file, and the variable that limits it."""

    name: str
    threads: int
    path: str
    variable: str


class _Library(NamedTuple):
    name: str
    words: tuple[str, ...]  # parts of the file's name
    functions: tuple[str, ...]  # that return the number of threads; a build may have any of them
    variable: str


#: The functions are those that threadpoolctl knows; NumPy's and SciPy's wheels rename those of OpenBLAS.
_LIBRARIES = (
    _Library(
        "OpenBLAS",
        ("openblas",),
        tuple(f"{a}openblas_get_num_threads{b}" for a in ("", "scipy_") for b in ("", "64_", "_64")),
        "OPENBLAS_NUM_THREADS",
    ),
    _Library("MKL", ("libmkl_rt", "libmkl_core"), ("MKL_Get_Max_Threads",), "MKL_NUM_THREADS"),
    _Library("BLIS", ("libblis",), ("bli_thread_get_num_threads",), "BLIS_NUM_THREADS"),
    _Library("OpenMP", ("libgomp", "libomp", "libiomp"), ("omp_get_max_threads",), "OMP_NUM_THREADS"),
)


def _library_of(path: str) -> _Library | None:
    file = os.path.basename(path)
    return next((one for one in _LIBRARIES if any(word in file for word in one.words)), None)


def pool_of(path: str) -> tuple[str, str] | None:
    """Return the name of the library in a file and the variable that limits its threads, if it is known to have any."""
    library = _library_of(path)
    return None if library is None else (library.name, library.variable)


def pools() -> list[ThreadPool]:
    """Return the loaded libraries whose calls use more than one thread."""
    found = []
    for path, library, count in _known(library_changes()):
        threads = count()
        if threads > 1:
            found.append(ThreadPool(library.name, threads, path, library.variable))
    return found


@functools.lru_cache(maxsize=1)
def _known(changes: tuple[int, int]) -> list[tuple[str, _Library, Callable[[], int]]]:
    """Return the loaded libraries that may have a pool, with the function that counts its threads.

    `changes` is :func:`library_changes`: starts are frequent, and changes rare.
    """
    found = []
    for path in dict.fromkeys(loaded_libraries()):
        library = _library_of(path)
        count = None if library is None else _counter(path, library.functions)
        if library is not None and count is not None:
            found.append((path, library, count))
    return found


def _counter(path: str, functions: tuple[str, ...]) -> Callable[[], int] | None:
    try:
        loaded = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:  # unloaded meanwhile
        return None
    return next((getattr(loaded, name) for name in functions if hasattr(loaded, name)), None)


def pools_grant() -> list[Grant]:
    """Return a grant that names the pools of more than one thread, if there are any: a step may or may not use them."""
    found = pools()
    if not found:
        return []
    texts = dict.fromkeys(f"{pool.name} {pool.threads}" for pool in found)
    settings = " ".join(dict.fromkeys(f"{pool.variable}=1" for pool in found))
    detail = (
        "a call from step waits for the pool's other threads, which have ordinary priority; "
        f"{settings} before the program starts, or rtloop.limit_thread_pools(), keeps it to the loop's own thread"
    )
    return [Grant(GRANT, "as they are", f"{', '.join(texts)} threads", True, detail, kind="thread")]


class PoolWatch:
    """CPU time that threads of libraries use from now on: those that neither Python nor rtloop has started.

    A caller that spins for its pool makes no system call, so nothing in the loop's own thread shows the wait.
    """

    def __init__(self) -> None:
        self._before, self._begin = self._read(), time.monotonic_ns()

    def now(self, start: Grant) -> Grant:
        """Return the grant as it was at the start, or with what is known of pools that were busy since."""
        wall = time.monotonic_ns() - self._begin
        used = self._used()
        of_pools = [ns for ns, is_librarys in used if is_librarys]
        busy = sum(of_pools)
        if busy < _BUSY * wall:
            return start
        # A thread that calls such a library works or spins for as long as those of the pool.
        others = sum(ns for ns, is_librarys in used if not is_librarys)
        caller = (
            "; no other thread of the program used enough CPU to have called the library, so a loop did, unless these "
            "threads work by themselves"
        )
        if others * _CLEARLY > max(of_pools):
            caller = "; if its step calls the library, it waits or spins for them"
        detail = (
            f"threads that Python did not start, of these or of other libraries, used {busy / 1e9:.2f} s of CPU while "
            f"the loop ran{caller}; they have ordinary priority; {start.detail}"
        )
        granted = f"{start.granted}; threads of libraries busy {100 * busy / wall:.0f} % of the run"
        return start._replace(granted=granted, detail=detail, value=busy)

    def _used(self) -> list[tuple[int, bool]]:
        """Return the CPU time that each thread has used since the start, and True if it is a library's."""
        now = self._read()
        return [(max(0, ns - self._before.get(tid, (0, False))[0]), is_one) for tid, (ns, is_one) in now.items()]

    def _read(self) -> dict[int, tuple[int, bool]]:
        """Return the CPU time of each thread but those of loops, in ns, and True if it is a library's."""
        found = {}
        libraries = set(_library_threads())
        for tid in libraries | python_threads():
            with suppress(OSError, ValueError, IndexError):  # it may have ended
                found[tid] = int(read_text(f"/proc/self/task/{tid}/schedstat").split()[0]), tid in libraries
        return found


def _library_threads() -> list[int]:
    """Return the threads of this process that neither Python nor rtloop has started; empty without ``/proc``."""
    known = python_threads() | set(loop_tids)
    found: list[int] = []
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:
        return found
    for task in tasks:
        with suppress(OSError):  # it may have ended
            if int(task) not in known and not read_text(f"/proc/self/task/{task}/comm").startswith("rtloop"):
                found.append(int(task))
    return found


def limit_thread_pools(threads: int = 1, *, avoid: Iterable[int] = ()) -> None:
    """Limit the pools of OpenBLAS, MKL, BLIS and OpenMP in this process, and keep their threads off some CPUs.

    With one thread, a call of such a library runs on the caller's thread alone, so that a step never waits for threads
    of ordinary priority. Call it after the imports that load the libraries and before the loop starts; a library that
    is loaded later has its own default. OpenMP keeps a number for each thread that calls it, so limit that library by
    OMP_NUM_THREADS.

    Parameters
    ----------
    threads : int
        Threads that a call may use, its caller included.
    avoid : iterable of int
        CPUs for all threads but those of Python and of loops to stay off, such as the loop's own.

    Raises
    ------
    ConfigError
        If `threads` is less than 1, `avoid` holds anything but numbers of CPUs, or leaves a thread no CPU. Nothing has
        been changed then.
    ImportError
        If threadpoolctl is not installed (``rtloop[pools]``), which knows how to limit each library.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        what = "give 1, for the calling thread alone, or more"
        raise ConfigError(f"threads={threads!r} is not a number of threads: {what}")
    try:
        cpus = {operator.index(cpu) for cpu in avoid}
    except TypeError:
        cpus = {-1}
    if any(cpu < 0 for cpu in cpus):
        raise ConfigError(f"avoid={avoid!r} must be numbers of CPUs, such as [2, 3]")
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        hint = "limit_thread_pools needs threadpoolctl: pip install 'rtloop[pools]'"
        raise ImportError(f"{hint}, or set OPENBLAS_NUM_THREADS=1 and the like before the start") from error
    _masks(cpus)  # refuses before anything is changed
    threadpool_limits(threads)
    for tid, mask in _masks(cpus).items():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(tid, mask)


def _masks(avoid: set[int]) -> dict[int, set[int]]:
    """Return the CPUs that are left to each thread of a library that may use one of these."""
    found = {}
    for tid in _library_threads() if avoid else ():
        with suppress(ProcessLookupError):
            present = os.sched_getaffinity(tid)
            if not present - avoid:
                text = f"avoid={format_cpu_list(avoid)} leaves no CPU for thread {tid}, which may use"
                raise ConfigError(f"{text} {format_cpu_list(present)}")
            if present & avoid:
                found[tid] = present - avoid
    return found

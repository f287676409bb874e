"""Thread pools of numerical libraries in this process: OpenBLAS, MKL, BLIS and OpenMP.

Such a library splits one call among its threads, which have ordinary priority, and the caller waits or spins for them.
In a real-time step that wait depends on everything else that the machine runs.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from rtloop.system.fileio import read_text
from rtloop.system.grant import Grant

__all__ = ["Pool", "pool_of", "pools", "pools_grant"]


class Pool(NamedTuple):
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


def pools() -> list[Pool]:
    """Return the loaded libraries whose calls use more than one thread."""
    try:
        lines = read_text("/proc/self/maps").splitlines()
    except OSError:
        return []
    found = []
    for path in dict.fromkeys(line[line.index("/") :] for line in lines if "/" in line):
        library = _library_of(path)
        threads = 0 if library is None else _threads(path, library.functions)
        if library is not None and threads > 1:
            found.append(Pool(library.name, threads, path, library.variable))
    return found


def _threads(path: str, functions: tuple[str, ...]) -> int:
    try:
        loaded = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except OSError:  # the file was replaced since it was loaded
        return 0
    function = next((getattr(loaded, name) for name in functions if hasattr(loaded, name)), None)
    return 0 if function is None else int(function())


def pools_grant() -> list[Grant]:
    """Return a grant that names the pools of more than one thread, if there are any: a step may or may not use them."""
    found = pools()
    if not found:
        return []
    texts = dict.fromkeys(f"{pool.name} {pool.threads}" for pool in found)
    settings = " ".join(dict.fromkeys(f"{pool.variable}=1" for pool in found))
    detail = (
        "a call from step waits for the pool's other threads, which have ordinary priority; "
        f"{settings} before the program starts, or threadpoolctl, keeps it to the loop's own thread"
    )
    return [Grant("thread_pools", "as they are", f"{', '.join(texts)} threads", True, detail, kind="thread")]

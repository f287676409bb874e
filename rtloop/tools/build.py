"""``rtloop.build``: a .pyx becomes a module, compiled once for each content and found again by it."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import linecache
import os
import re
import sys
import tempfile
import threading
import time
import warnings
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rtloop import __version__, get_include
from rtloop.errors import BuildError, RTSetupWarning
from rtloop.tools.cache import Cache, Entry, cache_folder, private_cache
from rtloop.tools.complaints import Complaint, show_complaint
from rtloop.tools.toolchain import DIRECTIVES, Extras, Toolchain, compile_module, find_toolchain, read_extras
from rtloop.units import show

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import ModuleType

__all__ = ["Built", "build", "build_module"]


class Built(NamedTuple):
    """What a build gave.

    Attributes
    ----------
    module : module
        The imported module.
    path : pathlib.Path
        The extension module on disk.
    hints : tuple of Complaint
        What Cython warned of.
    notes : tuple of str
        What was in the way, though not of the build.
    seconds : float
        How long the compilers took; 0 where nothing had to be compiled.
    """

    module: ModuleType
    path: Path
    hints: tuple[Complaint, ...]
    notes: tuple[str, ...]
    seconds: float


class _Job(NamedTuple):
    """What is to be compiled, and how."""

    source: Path
    name: str
    chain: Toolchain
    extras: Extras
    folders: list[str]
    flags: list[str]


_lock = threading.RLock()
#: The modules that this process has imported: an extension module is there once for each file.
_loaded: dict[Path, ModuleType] = {}


def build(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    include: Sequence[str | os.PathLike[str]] = (),
    flags: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> ModuleType:
    """Compile a ``.pyx`` and import it; where nothing has changed since the last time, only import it.

    Cython and a C compiler are called with rtloop's folders, ``-O3``, and the directives that keep a step from taking
    the GIL (``boundscheck=False``, ``wraparound=False``, ``cdivision=True``, ``initializedcheck=False``); a comment
    ``# cython: boundscheck=True`` at the head of the file goes first. ``# distutils:`` comments there are followed.
    The result is kept, and found again by the content of the file and of all that it includes and cimports, the
    compilers, the flags, and the versions of Python, Cython and rtloop. Where the ``.pxd`` of another ``.pyx`` in the
    same folder is cimported, that one is built first.

    Parameters
    ----------
    path : path
        The ``.pyx``.
    name : str, optional
        The module's name; by default the file's, and ``my-servo.pyx`` becomes ``my_servo``.
    include : sequence of paths
        More folders with headers and ``.pxd`` files.
    flags : sequence of str
        More arguments for the C compiler, such as ``"-march=native"`` or ``"-lm"``.
    cache : path, optional
        Where compiled modules are kept. By default ``$RTLOOP_CACHE_DIR``, or ``rtloop`` in ``$XDG_CACHE_HOME``, which
        is ``~/.cache`` where it is not set. Where nothing can be written there, a warning says so, and the module is
        compiled for this process alone.
    force : bool
        Whether to compile in any case.

    Returns
    -------
    module
        The module; another one, with other classes, where the content has changed since the last call. Loops that
        exist keep the classes that they were made from.

    Raises
    ------
    BuildError
        Where the code is wrong: its message shows each line; where Cython or a compiler is missing, and how to get it.
    FileNotFoundError
        Where there is no such file.

    Warns
    -----
    RTSetupWarning
        Of code that will take the GIL in a cycle, and of a cache that cannot be used.

    Examples
    --------
    >>> servo = rtloop.build("servo.pyx")  # doctest: +SKIP
    >>> stats = servo.Servo("1kHz").run("10s")  # doctest: +SKIP
    """
    try:
        built = build_module(path, name=name, include=include, flags=flags, cache=cache, force=force)
    except BuildError as error:
        raise error.with_traceback(None) from None  # what is wrong is in the .pyx, not on the way to the compiler
    for hint in built.hints:
        warnings.warn(show_complaint(hint), RTSetupWarning, stacklevel=2)
    for note in built.notes:
        warnings.warn(note, RTSetupWarning, stacklevel=2)
    return built.module


def build_module(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    include: Sequence[str | os.PathLike[str]] = (),
    flags: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
    force: bool = False,
    _above: tuple[Path, ...] = (),
) -> Built:
    """Do what :func:`build` does, and return what it would have warned of."""
    source = Path(path).resolve()
    if source.suffix != ".pyx":
        raise BuildError(f"{os.fspath(path)} is not a .pyx file: a module of Python or C needs no build, import it")
    if not source.is_file():
        raise FileNotFoundError(2, "there is no such file", os.fspath(path))
    name = _module_name(source.stem) if name is None else name
    if not name.isidentifier() or iskeyword(name):
        raise BuildError(f"name={show(name)} cannot be a module's name: give letters, digits and _")
    flags = [flags] if isinstance(flags, str) else list(flags)
    include = [include] if isinstance(include, (str, os.PathLike)) else include
    folders = [str(source.parent), *(str(Path(folder).resolve()) for folder in include), get_include()]
    extras = read_extras(source)
    chain = find_toolchain(is_cpp=extras.is_cpp)
    nearby = sorted(file.name for file in source.parent.glob("*.pxd"))  # a new one may be found before another
    identity = [str(source), name, *folders, *flags, *chain.identity, *map(repr, DIRECTIVES.items()), __version__]
    key = _digest("\0".join([*identity, *nearby]).encode())

    first = Cache(cache_folder(cache))
    caches = [first, *private_cache(make=False)]
    entry = None if force else next(filter(None, (cache.find(key) for cache in caches)), None)
    notes: tuple[str, ...] = ()
    seconds = 0.0
    if entry is None:
        begin = time.monotonic()
        entry, notes = _compile(_Job(source, name, chain, extras, folders, flags), key, first)
        seconds = time.monotonic() - begin
    hints = entry.hints
    for other in entry.siblings(source):
        if other not in _above:
            found = build_module(other, include=include, flags=flags, cache=cache, _above=(*_above, source))
            notes, hints, seconds = notes + found.notes, hints + found.hints, seconds + found.seconds
    with _lock:
        module = _import(entry.module, name, source)
    return Built(module, entry.module, hints, tuple(dict.fromkeys(notes)), seconds)


def _compile(job: _Job, key: str, cache: Cache) -> tuple[Entry, tuple[str, ...]]:
    """Compile in a folder of its own, and move the result to where it is found again: all of it, or nothing."""
    source = job.source
    begin = time.time_ns()
    before = {str(path): _changed_ns(path) for path in source.parent.iterdir()}
    try:
        folder = tempfile.TemporaryDirectory(prefix="rtloop-build-", ignore_cleanup_errors=True)
    except OSError as error:
        raise BuildError(f"there is no folder to compile in: {error.strerror}; set TMPDIR to one") from None
    with folder:
        module, inputs, hints = compile_module(
            source, job.name, Path(folder.name).resolve(), job.chain, job.extras, job.folders, job.flags
        )
        entry = Entry(module, tuple(sorted(_with_siblings(inputs, source))), hints)
        # What has changed meanwhile was perhaps read before: it is not to be found again as what it is now.
        is_fresh = all(at < begin or at == before.get(path) for path, at in _stamps(entry.inputs))
        try:
            return cache.keep(key, entry, is_found_again=is_fresh), ()
        except OSError as error:
            note = (
                f"{cache.folder} cannot be written to ({error.strerror or error}): {source.name} was compiled for this "
                "process alone; set RTLOOP_CACHE_DIR to a folder of your own"
            )
        try:
            (private,) = private_cache(make=True)
            return private.keep(key, entry, is_found_again=is_fresh), (note,)
        except OSError as error:
            raise BuildError(f"neither {cache.folder} nor {tempfile.gettempdir()} can be written to: {error}") from None


def _with_siblings(inputs: set[str], source: Path) -> set[str]:
    """Add the .pyx of each .pxd of the same folder: where it changes, its classes are others, and both are built."""
    found = {str(Path(path).with_suffix(".pyx")) for path in inputs if path.endswith(".pxd")}
    return inputs | {path for path in found if Path(path).parent == source.parent and Path(path).is_file()}


def _stamps(paths: Iterable[str]) -> Iterator[tuple[str, int]]:
    return ((path, _changed_ns(path)) for path in paths)


def _changed_ns(path: str | Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 2**63


def _import(path: Path, name: str, source: Path) -> ModuleType:
    # Cython's tracebacks have the file's name without its folder, and would be shown without their lines.
    text = source.read_text(encoding="utf-8", errors="replace")
    linecache.cache[source.name] = (len(text), None, text.splitlines(keepends=True), str(source))
    module = _loaded.get(path)
    if module is None:
        loader = importlib.machinery.ExtensionFileLoader(name, str(path))
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        # What is there under this name already is in the way only if it is an older build of ours.
        before = sys.modules.get(name)
        is_ours = before is None or before in _loaded.values()
        if is_ours:
            sys.modules.pop(name, None)
        try:
            module = importlib.util.module_from_spec(spec)
            if is_ours:
                sys.modules[name] = module
            loader.exec_module(module)
        except BaseException as error:
            if is_ours:
                sys.modules.pop(name, None)
                if before is not None:
                    sys.modules[name] = before
            if type(error) is ImportError and str(path) in str(error):
                raise BuildError(_why_not_imported(error, source), path=str(source)) from None
            raise
        _loaded[path] = module
    elif sys.modules.get(name) in _loaded.values():
        sys.modules[name] = module
    return module


def _why_not_imported(error: ImportError, source: Path) -> str:
    missing = re.search(r"undefined symbol: (\w+)", str(error))
    if missing:
        return (
            f"{source.name} was compiled, but nothing has the function {missing[1]} that it calls; fix: name the "
            "library, or the C file, at the head of the .pyx: # distutils: libraries = NAME, or # distutils: sources = "
            "FILE.c"
        )
    if "failed to map segment" in str(error):
        return f"{error}; fix: set RTLOOP_CACHE_DIR to a folder on a file system that is not mounted noexec"
    return f"{source.name} was compiled, but cannot be loaded: {error}"


def _module_name(stem: str) -> str:
    name = re.sub(r"\W", "_", stem)
    name = name if name[:1].isidentifier() else f"_{name}"
    return f"{name}_" if iskeyword(name) else name


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()

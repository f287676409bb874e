"""``rtloop.build``: compile a .pyx into a module, once for each content."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import linecache
import os
import re
import sys
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop import __version__, get_include
from rtloop.compiler.cache import Cache, Entry, cache_folder, private_cache, remove_leftovers
from rtloop.compiler.comments import read_extras, rpath
from rtloop.compiler.diagnostics import Diagnostic, show_diagnostic
from rtloop.compiler.packages import add_packages, find_package
from rtloop.compiler.plain_paths import plain_temporary_folder
from rtloop.compiler.toolchain import DIRECTIVES, Toolchain, find_toolchain
from rtloop.errors import BuildError, RTSetupWarning
from rtloop.layouts import keep_layouts, remember_module
from rtloop.units import show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import ModuleType

    from rtloop.compiler.compilation import Compiled

__all__ = ["Built", "build", "build_module", "load_parts", "module_name"]


class Built(NamedTuple):
    """Result of a build.

    Attributes
    ----------
    module : module
        The imported module.
    path : pathlib.Path
        The extension module on disk.
    hints : tuple of Diagnostic
        Cython's warnings.
    notes : tuple of str
        Problems that did not prevent the build, such as a cache that cannot be written.
    seconds : float
        Time that the compilers took; 0 if nothing was compiled.
    compiler : str
        The C compiler that a module was compiled by, and its version; empty if nothing was compiled.
    inputs : tuple of str
        Every file that the modules were made from.
    parts : tuple of tuple
        Name, file and source of each module, the requested one first: what :func:`load_parts` takes.
    """

    module: ModuleType
    path: Path
    hints: tuple[Diagnostic, ...]
    notes: tuple[str, ...]
    seconds: float
    compiler: str
    inputs: tuple[str, ...] = ()
    parts: tuple[tuple[str, str, str], ...] = ()

    @property
    def summary(self) -> str:
        """Sentence about the compilation; empty if nothing was compiled."""
        return f"compiled in {self.seconds:.1f} s by {self.compiler}" if self.compiler else ""


class _Options(NamedTuple):
    """Options for all modules of one call: how to compile them, and the cache to keep them in."""

    folders: list[str]
    flags: list[str]
    cache: Cache
    is_forced: bool
    examine: Callable[[str], None] | None = None


class _Part:
    """One module of a call: the requested one, or one of the same folder that it cimports."""

    def __init__(self, source: Path, name: str) -> None:
        self.source, self.name = source, name
        self.entry: Entry | None = None
        self.notes: tuple[str, ...] = ()
        self.seconds = 0.0
        self.compiler = ""


_PREFIX = "rtloop-build-"
_DECLARED = ("*.pxd", "*.pxi")
_lock = threading.RLock()
#: The modules that this process has imported, one for each file.
_loaded: dict[Path, ModuleType] = {}
#: Files that a thread is importing, by that thread, and those that a fork has cut off.
_importing: dict[Path, int] = {}
_cut_off: set[Path] = set()


def build(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    include: Sequence[str | os.PathLike[str]] = (),
    flags: Sequence[str] = (),
    library_dirs: Sequence[str | os.PathLike[str]] = (),
    libraries: Sequence[str] = (),
    packages: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> ModuleType:
    """Compile a ``.pyx`` and import it; if nothing has changed since the last time, only import it.

    The C compiler is ``CC``, the one that Python was built with, cc, gcc, clang, or zig of the extra
    ``rtloop[compiler]``, whichever is found first; the logger ``rtloop.build`` names it at level INFO.
    Cython and the compiler are called with rtloop's folders, ``-O3``, and the directives that keep a step from taking
    the GIL (``boundscheck=False``, ``wraparound=False``, ``cdivision=True``, ``initializedcheck=False``) and a
    free-threaded Python from switching it on (``freethreading_compatible=True``); a comment
    ``# cython: boundscheck=True`` at the head of the file takes precedence; ``# distutils:`` comments are followed.
    The result is cached under the content of the file and of all that it includes and cimports, the compilers, the
    flags, and the versions of Python, Cython and rtloop. If it cimports the ``.pxd`` of another ``.pyx`` in the same
    folder, that one is built first.

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
    library_dirs : sequence of paths
        Folders of shared libraries, found at run time as well (rpath).
    libraries : sequence of str
        Libraries to link, such as ``"m"``; ``":libx.so.3"`` is the file of that name.
    packages : sequence of str
        Installed Python packages whose headers and libraries are used, such as ``"mujoco"``: those in their folders
        ``include`` and ``lib``, found at run time as well. ``"mujoco:libmujoco.so.3.2"`` takes only that library,
        ``"mujoco:"`` only the headers. A comment ``# rtloop: packages = mujoco`` at the head of the file, or of a
        ``.pxd`` that it cimports, has the same effect for every way to compile it.
    cache : path, optional
        Folder of compiled modules. By default ``$RTLOOP_CACHE_DIR``, or ``rtloop`` in ``$XDG_CACHE_HOME``, which is
        ``~/.cache`` if it is not set. If the folder cannot be written, there is a warning, and the module is compiled
        for this process only.
    force : bool
        True to compile in any case, because something has changed that the cache does not know of, such as a library
        of the system.

    Returns
    -------
    module
        The module. If the content has changed since the last call, it is a new module with new classes; existing loops
        keep the classes that they were made from.

    Raises
    ------
    BuildError
        If the code is wrong, with each line in the message; if Cython or a compiler is missing, with its installation;
        if a package is not installed, has neither headers nor libraries, or has two versions of a library.
    FileNotFoundError
        If the file does not exist.

    Warns
    -----
    RTSetupWarning
        About code that will take the GIL in a cycle, and about a cache that cannot be used.

    Examples
    --------
    >>> servo = rtloop.build("servo.pyx")  # doctest: +SKIP
    >>> stats = servo.Servo("1kHz").run("10s")  # doctest: +SKIP
    """
    try:
        built = build_module(
            path, name=name, include=include, flags=flags, library_dirs=library_dirs, libraries=libraries,
            packages=packages, cache=cache, force=force,
        )  # fmt: skip
    except BuildError as error:
        raise error.with_traceback(None) from None  # the fault is in the .pyx, not in the frames above
    for hint in built.hints:
        warnings.warn(show_diagnostic(hint), RTSetupWarning, stacklevel=2)
    for note in built.notes:
        warnings.warn(note, RTSetupWarning, stacklevel=2)
    if built.summary:
        import logging

        logging.getLogger("rtloop.build").info("%s: %s", os.fspath(path), built.summary)
    return built.module


def build_module(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    include: Sequence[str | os.PathLike[str]] = (),
    flags: Sequence[str] = (),
    library_dirs: Sequence[str | os.PathLike[str]] = (),
    libraries: Sequence[str] = (),
    packages: Sequence[str] = (),
    cache: str | os.PathLike[str] | None = None,
    force: bool = False,
    examine: Callable[[str], None] | None = None,
    check: Callable[[Path], None] | None = None,
) -> Built:
    """Build like :func:`build`, but return its warnings.

    If the module has to be compiled, `examine` is called with the C that Cython has generated for it. In any case,
    `check` is called with the module's file before that is loaded.
    """
    source = Path(path).resolve()
    if source.suffix != ".pyx":
        raise BuildError(f"{os.fspath(path)} is not a .pyx file; import a Python or C module directly")
    if not source.is_file():
        raise FileNotFoundError(2, "there is no such file", os.fspath(path))
    name = module_name(source.stem) if name is None else name
    if not name.isidentifier() or iskeyword(name):
        raise BuildError(f"name={show(name)} cannot be a module's name: give letters, digits and _")
    places = [str(Path(folder).resolve()) for folder in _listed(library_dirs)]
    flags = [*_listed(flags), *(f"-L{place}" for place in places), *(word for place in places for word in rpath(place))]
    flags += [f"-l{library}" for library in _listed(libraries)]
    folders = [str(Path(folder).resolve()) for folder in _listed(include)]
    for package in _listed(packages):
        found = find_package(package)
        folders += found.include
        flags += found.libraries
    parts: dict[Path, _Part] = {}
    entry = _make(source, name, _Options(folders, flags, Cache(cache_folder(cache)), force, examine), parts)
    if check is not None:
        check(entry.module)
    with _lock:
        module = _import_all(list(parts.values()))
    hints = tuple(hint for part in parts.values() if part.entry for hint in part.entry.hints)
    notes = dict.fromkeys(note for part in parts.values() for note in part.notes)
    seconds = sum(part.seconds for part in parts.values())
    compilers = dict.fromkeys(part.compiler for part in parts.values() if part.compiler)
    inputs = sorted({path for part in parts.values() if part.entry for path in part.entry.inputs})
    files = tuple((part.name, str(part.entry.module), str(part.source)) for part in parts.values() if part.entry)
    return Built(module, entry.module, hints, tuple(notes), seconds, ", ".join(compilers), tuple(inputs), files)


def load_parts(parts: Iterable[tuple[str, str, str]]) -> ModuleType:
    """Import the modules of a build that another process has made: its `parts`. Returns the requested one."""
    made = []
    for name, path, source in parts:
        part = _Part(Path(source), name)
        part.entry = Entry(Path(path), (), ())
        made.append(part)
    with _lock:
        return _import_all(made)


def _listed(given: Any) -> list[Any]:
    """Return a list; a single text or path is one item, not its letters."""
    return [given] if isinstance(given, (str, os.PathLike)) else list(given)


def _make(source: Path, name: str, options: _Options, parts: dict[Path, _Part]) -> Entry:
    """Find or compile a module, and those of the same folder whose declarations it uses; add all to `parts`."""
    parts[source] = part = _Part(source, name)
    folders = [str(source.parent), *options.folders, get_include()]
    extras = add_packages(read_extras(source), source)
    chain = find_toolchain(is_cpp=extras.is_cpp)
    searched = [*folders[:-1], *extras.include]  # where a new file may be found before another
    nearby = sorted(str(file) for folder in searched for kind in _DECLARED for file in Path(folder).glob(kind))
    identity = [str(source), name, *folders, *options.flags, *chain.identity, *map(repr, DIRECTIVES.items())]
    identity += [*extras.include, *extras.sources, *extras.libraries]  # what patterns and packages stand for now
    key = _digest("\0".join([*identity, __version__, *nearby]).encode(errors="surrogateescape"))
    caches = [options.cache, *private_cache(make=False)]
    part.entry = None if options.is_forced else next(filter(None, (cache.find(key) for cache in caches)), None)
    others = options._replace(is_forced=False, examine=None)
    if part.entry is None:
        from rtloop.compiler.compilation import Job, compile_module  # here, because most runs compile nothing

        compiler = chain.find_compiler()
        begin = time.time_ns()
        before = _changed_nearby(source.parent)
        with _new_folder() as folder:
            started = time.monotonic()
            job = Job(source, name, folder, chain, extras, folders, options.flags, options.examine)
            done = compile_module(job, lambda *what: _keep_object(chain, [] if options.is_forced else caches, *what))
            part.seconds, part.compiler = time.monotonic() - started, compiler.label
            made = Entry(done.module, tuple(sorted(_with_siblings(done.inputs, source))), done.hints)
            made = made._replace(inputs=_with_theirs(made, source, others, parts))
            # An input that changed meanwhile may have been read before the change: the module must not be found again.
            is_fresh = not done.lost and all(at < begin or at == before.get(path) for path, at in _stamps(made.inputs))
            part.entry, part.notes = _keep(key, made, part, options, is_fresh)
            if done.layouts is not None:
                with suppress(OSError):  # the casts of its classes are then not checked
                    keep_layouts(part.entry.module, done.layouts)
            if done.lost:
                part.notes += (
                    f"{source.name} is compiled at every start: changes of {', '.join(sorted(done.lost))} cannot "
                    "be detected, because the compiler reports reading it, but no file has that name",
                )
    for other in part.entry.siblings(source):
        if other not in parts:
            _make(other, module_name(other.stem), others, parts)
    return part.entry


def _keep_object(
    chain: Toolchain, caches: Sequence[Cache], file: str, command: Sequence[str], make: Callable[[], Compiled]
) -> Compiled:
    """Find the object of a further source in the cache, or compile and keep it: once, not at each edit of the .pyx."""
    key = _digest("\0".join(["object", file, *chain.identity, *command]).encode(errors="surrogateescape"))
    entry = next(filter(None, (cache.find(key) for cache in caches)), None)
    if entry is not None:
        from rtloop.compiler.compilation import Compiled

        return Compiled(entry.module, set(entry.inputs), (), set())
    made = make()
    with suppress(OSError, IndexError):  # compiled for this build only; the module's own entry reports such a cache
        caches[0].keep(key, Entry(made.module, tuple(sorted(made.inputs)), ()), is_found_again=not made.lost)
    return made


def _with_theirs(made: Entry, source: Path, options: _Options, parts: dict[Path, _Part]) -> tuple[str, ...]:
    """Add the inputs of the modules that it uses: if those change, this module must be built again."""
    inputs = set(made.inputs)
    for other in made.siblings(source):
        if other not in parts:
            _make(other, module_name(other.stem), options, parts)
        entry = parts[other].entry
        inputs.update(entry.inputs if entry else ())
    return tuple(sorted(inputs))


@contextmanager
def _new_folder() -> Iterator[Path]:
    """Make a build folder, and remove it afterwards; also remove those of killed builds."""
    import tempfile

    place = plain_temporary_folder()
    remove_leftovers(Path(place), _PREFIX)
    try:
        folder = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise BuildError(
            f"no build folder can be made in {place}: {error.strerror}; fix: set TMPDIR to a writable folder"
        ) from None
    with folder as name:
        yield Path(name).resolve()


def _keep(key: str, made: Entry, part: _Part, options: _Options, is_fresh: bool) -> tuple[Entry, tuple[str, ...]]:
    """Move a module into the cache, completely or not at all."""
    cache = options.cache
    try:
        return cache.keep(key, made, is_found_again=is_fresh, is_replaced=options.is_forced), ()
    except OSError as error:
        why = cache.why_distrusted()
        what = f"is not used, because {why}" if why else f"cannot be written to ({error.strerror or error})"
        note = (
            f"{cache.folder} {what}: {part.source.name} was compiled for this process only; set RTLOOP_CACHE_DIR to a "
            "folder of your own"
        )
    try:
        (private,) = private_cache(make=True)
        return private.keep(key, made, is_found_again=is_fresh, is_replaced=options.is_forced), (note,)
    except OSError as error:
        import tempfile

        raise BuildError(f"neither {cache.folder} nor {tempfile.gettempdir()} can be written to: {error}") from None


def _with_siblings(inputs: set[str], source: Path) -> set[str]:
    """Add the .pyx of each .pxd of the same folder: if it changes, its classes change, and both are built."""
    found = {str(Path(path).with_suffix(".pyx")) for path in inputs if path.endswith(".pxd")}
    return inputs | {path for path in found if Path(path).parent == source.parent and Path(path).is_file()}


def _changed_nearby(folder: Path) -> dict[str, int]:
    try:
        return {str(path): _changed_ns(path) for path in folder.iterdir()}
    except OSError:  # the folder may not be listed
        return {}


def _stamps(paths: Iterable[str]) -> Iterator[tuple[str, int]]:
    return ((path, _changed_ns(path)) for path in paths)


def _changed_ns(path: str | Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 2**63


def _is_ours(name: str) -> bool:
    """Return whether a module may use this name, which must not hide one of the standard library."""
    return name not in sys.stdlib_module_names


class _Finder:
    """Finder that lets the modules of one call import each other in any order."""

    def __init__(self, parts: list[_Part]) -> None:
        self.paths = {part.name: part.entry.module for part in parts if part.entry and _is_ours(part.name)}

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        return _spec(name, self.paths[name]) if name in self.paths else None


def _spec(name: str, path: Path) -> importlib.machinery.ModuleSpec:
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    return spec


def _import_all(parts: list[_Part]) -> ModuleType:
    """Import the modules of one call; return the first, which was asked for."""
    made = [(part.entry.module, part) for part in parts if part.entry]
    before = {part.name: sys.modules.get(part.name) for part in parts}
    for path, part in made:  # an earlier build of them would be imported instead
        if before[part.name] in _loaded.values():
            del sys.modules[part.name]
            if path in _loaded:
                sys.modules[part.name] = _loaded[path]
    finder: Any = _Finder(parts)
    sys.meta_path.insert(0, finder)
    try:
        return [_import(path, part.name, part.source) for path, part in reversed(made)][-1]
    except BaseException:
        sys.modules.update({name: module for name, module in before.items() if module is not None})
        raise
    finally:
        sys.meta_path.remove(finder)


def _import(path: Path, name: str, source: Path) -> ModuleType:
    # Cython's tracebacks name the file without its folder, so Python could not show the lines.
    text = source.read_text(encoding="utf-8", errors="replace")
    linecache.cache[source.name] = (len(text), None, text.splitlines(keepends=True), str(source))
    module = _loaded.get(path)
    if module is None:
        if path in _cut_off:
            raise BuildError(
                f"{source.name} was being imported by another thread when this process was forked, so the import never "
                "ends here; fix: build it before the fork, or start processes by spawn or forkserver",
                path=str(source),
            )
        present = sys.modules.get(name)  # another module of this call may have imported it
        module = present if getattr(present, "__file__", None) == str(path) else None
        _loaded[path] = module = module or _load(path, name, source)
        remember_module(module, path)
    return module


def _load(path: Path, name: str, source: Path) -> ModuleType:
    is_free = name not in sys.modules and _is_ours(name)
    spec = _spec(name, path)
    assert spec.loader is not None
    _importing[path] = threading.get_ident()
    try:
        module = importlib.util.module_from_spec(spec)
        if is_free:
            sys.modules[name] = module
        spec.loader.exec_module(module)
        if not _is_ours(name) and sys.modules.get(name) is module:  # Cython has put it there
            del sys.modules[name]
    except BaseException as error:
        if is_free:
            sys.modules.pop(name, None)
        if type(error) is ImportError and str(path) in str(error):
            raise BuildError(_why_not_imported(error, source), path=str(source)) from None
        raise
    finally:
        _importing.pop(path, None)
    return module


def _why_not_imported(error: ImportError, source: Path) -> str:
    missing = re.search(r"undefined symbol: (\w+)", str(error))
    if missing:
        return (
            f"{source.name} was compiled, but the function {missing[1]} that it calls is in none of its libraries; "
            "fix: name the library, or the C file, at the head of the .pyx: # distutils: libraries = NAME, or "
            "# distutils: sources = FILE.c"
        )
    if "failed to map segment" in str(error):
        return f"{error}; fix: set RTLOOP_CACHE_DIR to a folder on a file system that is not mounted noexec"
    return f"{source.name} was compiled, but cannot be loaded: {error}"


def module_name(stem: str) -> str:
    """Return the name of the module that is built from a file."""
    name = re.sub(r"\W", "_", stem)
    name = name if name[:1].isidentifier() else f"_{name}"
    return f"{name}_" if iskeyword(name) else name


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _reset_after_fork() -> None:
    """Let a forked child build, even if another thread was importing a module, which it does not do there."""
    global _lock
    _lock = threading.RLock()
    _cut_off.update(path for path, thread in _importing.items() if thread != threading.get_ident())


os.register_at_fork(after_in_child=_reset_after_fork)

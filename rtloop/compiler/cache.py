"""Cache of compiled modules on disk, found by the content that they were made from.

``<folder>/build/<key>/inputs.json`` lists the files that the last build with this key read; their content names the
folder beside it that holds the module. Everything is written under another name and then renamed, so that two processes
at once, or a killed one, leave a complete entry or none.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from rtloop.compiler.diagnostics import Diagnostic
from rtloop.system.fileio import public_folder

__all__ = ["Cache", "Entry", "cache_folder", "private_cache", "remove_leftovers"]

_INPUTS, _ABOUT = "inputs.json", "about.json"
_UNFINISHED_S, _ONCE_S, _UNUSED_S = 3600, 7 * 86400, 60 * 86400
_ONCE = "once-"
_private: list[Cache] = []
_making = threading.RLock()


class Entry(NamedTuple):
    """A compiled module.

    Attributes
    ----------
    module : pathlib.Path
        Its file.
    inputs : tuple of str
        Files that it was made from.
    hints : tuple of Diagnostic
        Cython's warnings.
    """

    module: Path
    inputs: tuple[str, ...]
    hints: tuple[Diagnostic, ...]

    def siblings(self, source: Path) -> list[Path]:
        """Return the sources of the same folder whose declarations it uses and that must be compiled, too."""
        paths = [Path(path) for path in self.inputs if path.endswith(".pyx") and path != str(source)]
        # A .pyx without a .pxd was included.
        return [path for path in paths if str(path.with_suffix(".pxd")) in self.inputs]


def cache_folder(asked: str | os.PathLike[str] | None) -> Path:
    """Return the folder of compiled modules."""
    named = asked or os.environ.get("RTLOOP_CACHE_DIR")
    if named:
        return Path(os.path.expanduser(named)).absolute()  # "~x" stays if there is no user x
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification says to ignore a relative path
        return Path(base) / "rtloop"
    try:
        return Path.home() / ".cache" / "rtloop"
    except RuntimeError:  # no HOME, and this user has no entry in the user database
        return Path("/nonexistent/rtloop")


def private_cache(*, make: bool) -> list[Cache]:
    """Return this process's private cache, removed at its exit; empty if there is none and `make` is false."""
    with _making:
        if make and not _private:
            import tempfile  # here, because `rtloop run` of a compiled file has to be quick

            folder = tempfile.mkdtemp(prefix="rtloop-modules-")
            atexit.register(_remove, folder, os.getpid())
            _private.append(Cache(Path(folder)))
    return list(_private)


def _reset_after_fork() -> None:
    global _making
    _making = threading.RLock()  # another thread may have held it


os.register_at_fork(after_in_child=_reset_after_fork)


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # a forked child must not remove its parent's modules
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Remove this user's folders of that prefix that are older than an hour: killed builds have left them."""
    for rest in folder.glob(f"{prefix}*"):
        with suppress(OSError):
            about = rest.lstat()
            is_own = stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()
            if is_own and time.time() - about.st_mtime > _UNFINISHED_S:
                shutil.rmtree(rest, ignore_errors=True)


class Cache:
    """A folder of compiled modules.

    Parameters
    ----------
    folder : pathlib.Path
        It need not exist or be writable.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = folder / "build"

    def find(self, key: str) -> Entry | None:
        """Return the entry of this key and the present content of its inputs; None if there is none."""
        if self.why_distrusted():
            return None
        try:
            inputs = tuple(json.loads((self._root / key / _INPUTS).read_text()))
            return _load(self._root / key / _digest_of(inputs), inputs)
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, key: str, entry: Entry, *, is_found_again: bool = True, is_replaced: bool = False) -> Entry:
        """Add a module.

        Parameters
        ----------
        key, entry
            The key to find it by, and the module.
        is_found_again : bool
            False if it must not be found by later builds.
        is_replaced : bool
            True to replace a module of the same content.

        Raises
        ------
        OSError
            If the cache cannot be written.
        """
        import tempfile

        for make in (False, True):
            if make:
                self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if why := self.why_distrusted():
                raise PermissionError(1, why)
        self._tidy()
        place = self._root / key
        place.mkdir(exist_ok=True, mode=0o700)
        # A name that matches no content is never found again.
        target = place / (_digest_of(entry.inputs) if is_found_again else f"{_ONCE}{os.getpid()}-{time.monotonic_ns()}")
        temporary = Path(tempfile.mkdtemp(prefix="tmp-", dir=self._root))
        try:
            code = entry.module.read_bytes()
            sha256 = hashlib.sha256(code).hexdigest()
            # A process loads one extension module per path, so new code needs a new path.
            module = temporary.joinpath(*[sha256[:12]] * is_replaced, entry.module.name)
            module.parent.mkdir(exist_ok=True)
            shutil.copy(entry.module, module)
            name = str(module.relative_to(temporary))
            about = {"module": name, "sha256": sha256, "hints": entry.hints}
            (temporary / _ABOUT).write_text(json.dumps(about))
            listing = temporary.with_suffix(".inputs")
            listing.write_text(json.dumps(entry.inputs))
            # An entry that another process has just made is equal, and may be about to be loaded.
            found = _load(target, entry.inputs)
            if found is None or (is_replaced and found.module.read_bytes() != code):
                if target.exists():  # damaged, or to be replaced
                    target.rename(temporary.with_suffix(".old"))
                try:
                    temporary.rename(target)
                except OSError:
                    found = _load(target, entry.inputs)
                    if found is None:
                        raise
                else:
                    found = entry._replace(module=target / name)
            listing.replace(place / _INPUTS)
        finally:
            for rest in (temporary, temporary.with_suffix(".old")):
                shutil.rmtree(rest, ignore_errors=True)
            temporary.with_suffix(".inputs").unlink(missing_ok=True)
        return entry._replace(module=found.module)

    def why_distrusted(self, part: str = "build") -> str:
        """Return why a folder in the cache, by default that of the modules, is not trusted; empty if it is.

        Others could replace what is in it if it or the cache belongs to them, if they may write to it, or if they may
        rename it or a folder that it is in.
        """
        place, trusted = self.folder / part, (0, os.geteuid())
        try:
            for folder in (self.folder, place):
                if folder.exists() and (owner := folder.stat().st_uid) not in trusted:
                    return f"{folder} belongs to user {owner}"
            existing = place
            while not os.path.lexists(existing):
                existing = existing.parent
            mode = existing.stat().st_mode
            if mode & stat.S_IWOTH and not (mode & stat.S_ISVTX and existing != place):
                return f"every user may write to {existing}"
            public = public_folder(str(existing), trusted)
        except OSError:
            return ""
        return "" if public is None else f"every user may write to {public}"

    def _tidy(self) -> None:
        """Remove what killed builds left, and entries that have not been used for two months.

        Entries that no build finds again are removed after a week. A program that runs for longer has its module in
        memory.
        """
        now = time.time()
        for place in self._root.iterdir():
            is_rest = place.name.startswith("tmp-")
            try:
                entries = [place] if is_rest else [item for item in place.iterdir() if item.is_dir()]
                for item in entries:
                    kept = _UNFINISHED_S if is_rest else _ONCE_S if item.name.startswith(_ONCE) else _UNUSED_S
                    if now - item.stat().st_mtime > kept:
                        shutil.rmtree(item, ignore_errors=True) if item.is_dir() else item.unlink()
            except OSError:
                continue


def _load(kept: Path, inputs: tuple[str, ...]) -> Entry | None:
    """Return the module in a folder; None if there is none, or it is incomplete."""
    try:
        about = json.loads((kept / _ABOUT).read_text())
        module = kept / about["module"]
        if hashlib.sha256(module.read_bytes()).hexdigest() != about["sha256"]:
            return None
        hints = tuple(Diagnostic(*hint) for hint in about["hints"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    with suppress(OSError):  # a read-only cache can still be read
        os.utime(kept)
    return Entry(module, inputs, hints)


def _digest_of(inputs: tuple[str, ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in inputs:
        digest.update(f"{path}\0".encode(errors="surrogateescape"))
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()

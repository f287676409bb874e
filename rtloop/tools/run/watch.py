"""Watch: swaps in the new step of the loop of ``rtloop run --watch`` whenever its file is saved."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from rtloop.child.target import pack
from rtloop.compiler.cython_process import CythonProcess
from rtloop.compiler.diagnostics import show_diagnostic
from rtloop.errors import RtloopError
from rtloop.revision.examination import Rejected
from rtloop.revision.successor import ParameterValues, check_take_over, swap_in
from rtloop.revision.tracebacks import describe_exception
from rtloop.simulation.rehearsal import Order, Rehearser
from rtloop.tools.run.rehearsal import Law, Pair
from rtloop.tools.run.revision import make_revision
from rtloop.tools.run.saved_files import SavedFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rtloop.loop.loop import RTLoop
    from rtloop.revision.examination import Examined
    from rtloop.tools.run.rehearsal import Rehearsing
    from rtloop.tools.run.revision import Revision
    from rtloop.tools.run.target import Target

__all__ = ["Event", "Watch"]

#: Longest wait for a compilation when the loop has ended. After it the folder is removed, so that the compiler fails.
_JOIN_S = 1.0
#: Modules that the process of a rehearsal imports before there is anything to rehearse.
_MODULES = ("rtloop.tools.run.rehearsal", "rtloop.tools.run.command", "rich.console")


class Event(NamedTuple):
    """Answer to a save.

    Attributes
    ----------
    kind : str
        "swapped", "reverted", "rejected", "unchanged", "gone" or "note".
    text : str
        Message.
    figures : dict
        Further fields of the line of JSON.
    """

    kind: str
    text: str
    figures: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the event as a dict that JSON can hold."""
        return {"event": self.kind, **self.figures, "text": self.text}


class Watch:
    """Thread that compiles a file whenever it is saved, and swaps the running loop's step.

    The thread and the compilers have an ordinary priority, and avoid the loop's CPU if there is another one.

    Parameters
    ----------
    loop : RTLoop
        The loop, about to be started.
    found : Target
        The target that it was made from, a .pyx.
    examined : Examined
        Result of its examination.
    target : str
        The target as on the command line.
    build : mapping
        Keywords of the build.
    make : callable
        Makes a loop of a target, as the first one was made.
    tell : callable
        Called with an `Event` for each save.
    rehearsing : Rehearsing, optional
        Rehearse each law in another process before the loop goes on with it.
    trial : duration, optional
        Time in which the loop goes back to the former law if the new one fails.
    files : SavedFiles, optional
        The file as it was before its compilation, so that a save during the compilation is detected.
    on_save : callable, optional
        Called for each save, before the compilation, which may take seconds.
    """

    def __init__(
        self, loop: RTLoop, found: Target, examined: Examined, target: str, build: Mapping[str, Any],
        make: Callable[[Target], RTLoop], tell: Callable[[Event], None], rehearsing: Rehearsing | None = None,
        trial: Any = None, files: SavedFiles | None = None, on_save: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        assert found.built is not None
        self._loop, self._target, self._make, self._tell = loop, target, make, tell
        self._on_save = on_save
        self._build = {**build, "force": False}
        self._name = target.partition(":")[0]
        self._files = SavedFiles(Path(self._name), _own(found.built.inputs))
        if files is not None and files.is_superseded():
            self._files = files
            files.follow(_own(found.built.inputs))
        self._present = found.built.path
        self._law, self._rehearsing, self._trial = Law.of(found), rehearsing, trial
        self._rehearser: Rehearser | None = None
        self._cython: CythonProcess | None = None
        self._former: tuple[Any, ...] | None = None  # while the present law is on trial
        self._kind: type[Any] = type(loop)
        self._findings, _, self._layouts = examined
        self._parameters = ParameterValues(loop)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="rtloop-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        rehearser = self._rehearser
        if rehearser is not None:
            rehearser.kill()  # a rehearsal that runs then ends
        self._end_cython()
        self._thread.join(_JOIN_S)

    def _follow(self) -> None:
        _be_ordinary(self._loop.settings.cpu)
        if self._findings:
            text = f"rtloop lint finds code that must not run in a loop; a save with it is rejected:\n{self._findings}"
            self._tell(Event("note", text, {}))
        with suppress(OSError, RtloopError):  # Cython is then started for each save
            self._cython = CythonProcess()
        try:
            if not self._is_over.is_set():
                self._follow_saves()
        finally:
            self._end_rehearser()
            self._end_cython()

    def _follow_saves(self) -> None:
        while not self._is_over.wait(self._files.interval_s):
            if self._loop.state != "running":
                continue
            if self._rehearsing is not None and self._rehearser is None:
                with suppress(RtloopError):  # the next save tells why
                    self._rehearser = Rehearser(_MODULES)  # it takes some tenths of a second, before the next save
            if self._former is not None and not self._has_trial_ended():
                continue  # a save waits for the end of the trial
            if not self._parameters.values:
                self._parameters.read()
            saved = self._files.poll()
            if self._files.is_newly_gone():
                self._tell(Event("gone", f"{self._name} is missing or empty; the loop keeps its present law", {}))
            if saved is not None:
                event = self._answer(saved)
                if event is not None:
                    self._tell(event)

    def _answer(self, saved: float) -> Event | None:
        """Compile the saved file, and swap. Returns the event; None if there is nothing to report."""
        if self._on_save is not None:
            self._on_save()
        try:
            source = self._read_source()  # before the compilation: a file that is saved during it is superseded
            revision = make_revision(self._target, self._build)
            built = revision.found.built
            assert built is not None
            self._files.follow(_own(built.inputs))
            if self._files.is_superseded():
                return None
            if built.path == self._present:
                return Event("unchanged", f"{self._name} is the version that the loop runs", {})
            self._parameters.note()
            notes = self._rehearse(revision)
            successor = self._create(revision, source)
            if self._files.is_superseded():
                return None
            cycle = self._swap(successor)
        except Rejected as error:
            if self._is_over.is_set() or self._files.is_superseded():
                return None
            self._files.forget()
            text = f"{self._name} was saved, and the loop goes on with its former law: {error}"
            return Event("rejected", text, {"stage": error.stage})
        if cycle is None:
            return None
        took = time.time() - saved
        former = self._present, self._layouts, self._kind, self._law
        self._present, self._layouts = built.path, revision.examined.layouts
        self._kind, self._law = type(successor), Law.of(revision.found)
        self._former = None if self._trial is None else former
        how = built.summary or "from the cache"
        notes += [show_diagnostic(hint, "hint: ") for hint in built.hints]
        notes += [*built.notes, *revision.examined.unseen, *self._parameters.compare()]
        text = f"{self._name}: new law since cycle {cycle:,}, {took:.2f} s after the save ({how})"
        figures = {
            "cycle": cycle, "seconds": round(took, 4), "compiled_s": round(built.seconds, 4), "notes": notes,
            "parameters": self._parameters.values,
        }  # fmt: skip
        return Event("swapped", "\n  ".join([text, *notes]), figures)

    def _has_trial_ended(self) -> bool:
        """Return whether the trial of the present law is over. Report it if the loop has gone back."""
        if self._loop.on_trial:
            return False
        assert self._former is not None
        former, self._former = self._former, None
        last = (self._loop.stats.swaps or ())[-1]
        if last.reason:
            self._present, self._layouts, self._kind, self._law = former
            self._parameters.read()
            reason = last.reason.replace("nonfinite", "nonfinite (a signal is infinite or not a number)")
            text = f"{self._name}: the former law since cycle {last.cycle:,}, because the new one failed: {reason}"
            self._tell(Event("reverted", text, {"cycle": last.cycle, "reason": last.reason}))
        return True

    def _end_rehearser(self) -> None:
        rehearser, self._rehearser = self._rehearser, None
        if rehearser is not None:
            rehearser.close()

    def _end_cython(self) -> None:
        cython, self._cython = self._cython, None
        if cython is not None:
            cython.close()

    def _rehearse(self, revision: Revision) -> list[str]:
        """Rehearse a law in another process. Returns notes."""
        if self._rehearsing is None:
            return []
        make, duration_ns, timeout_ns = self._rehearsing
        values = {name: value for name, value in self._parameters.values.items() if name in self._parameters.set}
        pair = Pair(self._law, Law.of(revision.found), make)
        try:
            if self._rehearser is None:
                self._rehearser = Rehearser(_MODULES)
            return self._rehearser.rehearse(Order(pack(pair, "make"), None, duration_ns, values), timeout_ns)
        except Exception as error:  # also of the user's constructor and setup
            text = str(error) if isinstance(error, RtloopError) else describe_exception(error)
            raise Rejected("rehearsal", text) from None
        finally:
            self._end_rehearser()

    def _read_source(self) -> str:
        try:
            return Path(self._name).read_text(encoding="utf-8", errors="replace")
        except OSError as error:  # an editor is about to write it again
            raise Rejected("compile", f"{self._name}: {error.strerror}") from None

    def _create(self, revision: Revision, source: str) -> RTLoop:
        found = revision.found
        try:
            successor = self._make(found)
        except click.ClickException as error:
            raise Rejected("create", error.message) from None
        except RtloopError as error:
            raise Rejected("create", str(error)) from None
        except BaseException as error:  # of the user's constructor
            raise Rejected("create", describe_exception(error)) from None
        check_take_over(self._name, source, type(successor), self._kind, self._layouts, revision.examined.layouts)
        return successor

    def _swap(self, successor: RTLoop) -> int | None:
        """Swap. Returns the first cycle of the new step; None if the loop has ended."""
        if self._is_over.is_set():
            return None
        self._parameters.note()
        return swap_in(self._loop, successor, self._trial, lambda text: self._tell(Event("note", text, {})))


def _own(inputs: tuple[str, ...]) -> list[str]:
    """Return the inputs that are not files of rtloop itself."""
    package = f"{Path(__file__).resolve().parents[2]}{os.sep}"
    return [path for path in inputs if not path.startswith(package)]


def _be_ordinary(cpus: str | tuple[int, ...] | None) -> None:
    """Give this thread, and the compilers that it starts, an ordinary priority and other CPUs than the loop's."""
    with suppress(OSError):
        if os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    others = os.sched_getaffinity(0) - set(cpus if isinstance(cpus, tuple) else ())
    if others:
        with suppress(OSError):
            os.sched_setaffinity(0, others)

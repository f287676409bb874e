"""``rtloop run``: compile, run and report a loop from one command line."""

from __future__ import annotations

import json
import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from rtloop.errors import ConfigError, RtloopError, RTSetupWarning, SetupError
from rtloop.settings import OVERRUN_POLICIES
from rtloop.system.cpu import parse_cpu_list
from rtloop.tools.interruption import Terminated, ended_by_signals, exit_code, name_of
from rtloop.tools.options import (
    OUTPUT_FILE,
    as_json_option,
    as_options,
    check_cpus,
    check_picture,
    exact_rate_option,
    explain_above_option,
    explain_option,
    explained,
    explanation_text,
    plot_option,
    refusals_first,
    to_duration,
    to_spin,
)
from rtloop.tools.run.target import Target, TargetError, find_target, has_no_step, make_loop, parse_value

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from rtloop.loop.loop import RTLoop
    from rtloop.revision.examination import Examined
    from rtloop.stats.stats import Stats
    from rtloop.system.grant import Grant
    from rtloop.tools.run.saved_files import SavedFiles
    from rtloop.tools.run.watch import Watch

__all__ = ["NOT_KEPT", "Outcome", "Request", "run"]

#: The exit code of --strict if a grant was refused, or not every cycle was on time.
NOT_KEPT = 3
#: Options about a thread, which a run in virtual time does not have.
_OF_THREADS = ("priority", "policy", "cpu", "spin", "lock", "guard")
#: Settings whose option has another name.
_SETTINGS = {"lock": "lock_memory"}


class Outcome(NamedTuple):
    """End of a run.

    Attributes
    ----------
    kind : str
        "clean", "failed", "refused" or "interrupted".
    stats : Stats
        Of the whole run.
    error : BaseException or None
        The exception that ended it.
    """

    kind: str
    stats: Stats
    error: BaseException | None


@dataclass(frozen=True, kw_only=True)
class Request:
    """Command line of ``rtloop run``, parsed.

    Attributes
    ----------
    target : str
        FILE:NAME or MODULE:NAME.
    rate : fractions.Fraction
        The period, ns.
    duration, cycles : int or None
        Limit of the run: ns, or a count; None: no limit.
    given : dict
        Values of ``-p``.
    strict, simulate, rebuild, as_json, guard_alloc, watch : bool
        The flags.
    rehearse, trial : int or None
        Times for --watch, ns.
    plot, record : pathlib.Path or None
        Files to write.
    include, library_dirs, libraries, packages : tuple of str
        Folders, libraries and Python packages for the compiler.
    settings : dict
        Keywords of RTLoop that have an option of their own, None if it was not given.
    """

    target: str
    rate: Fraction
    duration: int | None
    cycles: int | None
    given: dict[str, Any]
    strict: bool
    simulate: bool
    rebuild: bool
    as_json: bool
    guard_alloc: bool
    watch: bool
    rehearse: int | None
    trial: int | None
    plot: Path | None
    record: Path | None
    include: tuple[str, ...]
    library_dirs: tuple[str, ...]
    libraries: tuple[str, ...]
    packages: tuple[str, ...]
    settings: dict[str, Any]

    def check(self) -> None:
        """Refuse options that contradict each other, and files that cannot be written."""
        if self.guard_alloc and self.settings["guard"] == "off":
            raise click.UsageError("--guard-alloc and --guard=off exclude each other: give one of them")
        if self.duration is not None and self.cycles is not None:
            raise click.UsageError("--duration and --cycles both limit the run: give one of them")
        if self.simulate and self.duration is None and self.cycles is None:
            raise click.UsageError(
                "--simulate needs --duration or --cycles: otherwise the simulation would have no end"
            )
        if self.simulate and (self.settings["explain"] or self.given.get("explain")):
            raise click.UsageError(
                "--explain and --simulate exclude each other: in virtual time there is no kernel to trace"
            )
        if not self.simulate:
            for cpus in (self.settings["cpu"], self.given.get("cpu")):
                check_cpus(cpus, "--cpu")
        if self.watch and self.simulate:
            raise click.UsageError("--watch and --simulate exclude each other: virtual time does not wait for a save")
        if not self.watch and (self.rehearse or self.trial):
            raise click.UsageError("--rehearse and --trial need --watch, which swaps in a new step")
        if self.watch and Path(self.target.partition(":")[0]).suffix != ".pyx":
            raise click.UsageError(f"--watch compiles a file whenever it is saved: {self.target} is not a .pyx")
        if self.plot is not None:
            check_picture(self.plot)
        if self.record is not None:
            if self.record.suffix not in ("", ".npz"):
                raise click.BadParameter(f"{self.record}: the name must end in .npz", param_hint="--record")
            if not os.access(self.record.parent, os.W_OK):
                raise click.BadParameter(f"{self.record.parent} is not a writable folder", param_hint="--record")

    @property
    def build(self) -> dict[str, Any]:
        """Keywords of the build of a .pyx; a shared library is also found at run time."""
        names = ("include", "library_dirs", "libraries", "packages")
        return {"force": self.rebuild, **{name: getattr(self, name) for name in names}}

    @property
    def limit(self) -> dict[str, Any]:
        """Keyword of ``run`` and ``simulate`` that limits them."""
        # With a unit, because a bare int that is shorter than a period is refused.
        return {"cycles": self.cycles} if self.duration is None else {"duration": f"{self.duration}ns"}

    @property
    def seconds(self) -> float | None:
        """Expected duration of the run; None without a limit."""
        ns = self.duration if self.cycles is None else self.cycles * self.rate
        return None if ns is None else float(ns) * 1e-9


def to_values(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Turn ``("gain=2.0", ...)`` into a dict: a click callback."""
    found = {}
    for value in values:
        name, equals, text = value.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"{value!r}: write NAME=VALUE, such as gain=2.0", ctx, param)
        if name in found:
            raise click.BadParameter(f"{name} is given twice", ctx, param)
        found[name] = parse_value(text.strip())
    return found


def to_cpu(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Turn ``3``, ``0,2-3``, ``auto`` or ``none`` into a loop's `cpu`: a click callback."""
    if value is None or value == "auto":
        return value
    if value == "none":
        return "none"
    try:
        cpus = list(parse_cpu_list(value))
    except ValueError:
        cpus = []
    if not cpus:
        raise click.BadParameter(f"{value!r}: give numbers such as 3 or 0,2-3, or auto, or none", ctx, param)
    return cpus


@click.command()
@click.argument("target")
@exact_rate_option
@click.option("--duration", metavar="TIME", callback=to_duration, help="Duration of the run; by default until Ctrl-C.")
@click.option("--cycles", type=click.IntRange(min=1), help="Number of cycles, instead of --duration.")
@click.option(
    "-p", "given", metavar="NAME=VALUE", multiple=True, callback=to_values,
    help="A keyword of the class, an attribute, a parameter, or a setting of RTLoop; VALUE may name an object of the "
    "file.",
)  # fmt: skip
@click.option("--priority", type=click.IntRange(1, 99), help="Real-time priority; by default 80.")
@click.option("--policy", type=click.Choice(["fifo", "rr", "other", "deadline"]), help="Policy; by default fifo.")
@click.option("--cpu", metavar="LIST", callback=to_cpu, help="3, or 0,2-3; none: any CPU; auto: an isolated one.")
@click.option("--spin", metavar="TIME", callback=to_spin, help="Wake up TIME early and spin; auto learns it.")
@click.option("--lock", type=click.Choice(["all", "onfault", "own", "off"]), help="Memory to lock; by default all.")
@click.option("--overrun", type=click.Choice(list(OVERRUN_POLICIES)), help="Policy for overruns; by default skip.")
@click.option("--guard", metavar="MODE", help="off, count or stop: watch step for page faults and system calls.")
@click.option("--guard-alloc", is_flag=True, help="Also watch step for malloc; implies --guard count.")
@explain_option
@explain_above_option
@click.option("--name", metavar="NAME", help="Name of the loop and its thread.")
@click.option(
    "--strict", is_flag=True,
    help=f"Exit with {NOT_KEPT} if a request is refused (before the start), a release missed or overrun, or a guard "
    "finds something.",
)  # fmt: skip
@click.option("--simulate", is_flag=True, help="Run in virtual time, without a thread or privileges.")
@click.option("--watch", is_flag=True, help="Swap in the new step whenever the .pyx is saved.")
@click.option(
    "--rehearse", metavar="TIME", callback=to_duration,
    help="With --watch: first run each new step for TIME in virtual time in another process, where it may crash.",
)  # fmt: skip
@click.option(
    "--trial", metavar="TIME", callback=to_duration,
    help="With --watch: go back to the former step if the new one fails within TIME.",
)  # fmt: skip
@plot_option("Draw the run")
@click.option(
    "--record", type=OUTPUT_FILE, metavar="FILE", help="Save the run's timing, not its signals, to FILE (.npz)."
)
@click.option("--rebuild", is_flag=True, help="Compile even if nothing has changed.")
@click.option("-I", "include", multiple=True, metavar="FOLDER", help="Folder of headers and .pxd files.")
@click.option("-L", "library_dirs", multiple=True, metavar="FOLDER", help="Folder of libraries, also at run time.")
@click.option("-l", "libraries", multiple=True, metavar="NAME", help="Library to link.")
@click.option(
    "--package", "packages", multiple=True, metavar="NAME",
    help="Python package whose headers and libraries a .pyx uses.",
)  # fmt: skip
@as_json_option("instead of the table")
def run(**options: Any) -> int:
    """Run a step as a real-time loop, compiled if need be.

    It prints what happened at the end. TARGET is FILE.pyx:CLASS, FILE.py:NAME or MODULE:NAME: a subclass of RTLoop,
    a compiled function (Numba's cfunc, ctypes, cffi), or a Python function or callable, which gets the cycle. The
    name can be left out if there is only one. A .pyx is compiled once, which needs only Cython and a C compiler
    (rtloop[compiler] installs both). CC names another compiler, RTLOOP_CACHE_DIR another folder for what is
    compiled.

    \b
    rtloop run servo.pyx --duration 10s                       the class in it, at 1 kHz
    rtloop run servo.pyx:Servo --rate 4kHz -p gain=2.0        with a keyword of its constructor
    rtloop run servo.pyx --cpu 3 --spin auto --strict         all requests granted, or exit code 3
    rtloop run servo.pyx --duration 10s --guard count         does step do what may delay it?
    rtloop run servo.pyx --duration 1min --explain            what delayed the cycles that were late? (root)
    rtloop run servo.pyx --duration 1h --simulate             takes seconds
    rtloop run servo.pyx --watch                              save the file to swap in the new step
    rtloop run servo.pyx --watch --rehearse 1s --trial 2s     refuse a step that crashes, take back one that fails
    rtloop run control.py:step --rate 100Hz --record out.npz  a function; later: rtloop report out.npz

    Refused requests are listed at the end. The loop runs nevertheless, unless --strict is given.

    \b
    Exit code  0 the loop ended by itself, or its time was over
               1 it failed, or could not be compiled or started
               2 the command line is wrong
               3 --strict: a request was refused, a release missed or overrun, or a guard found something
             130 Ctrl-C (143 SIGTERM, 129 a closed terminal): it was stopped, and the table was printed
    """  # noqa: D301 - the backslash is for click
    import faulthandler

    from rtloop.tools.run.show import make_console

    if not faulthandler.is_enabled():
        faulthandler.enable(all_threads=False)  # a crash in a C step then prints more than "Segmentation fault"
    err = make_console()
    own = {field.name for field in fields(Request)} - {"settings"}
    options["explain"] = explained(options.pop("explain"), options.pop("explain_above"))
    request = Request(**{name: options.pop(name) for name in own}, settings=options)
    request.check()
    if request.simulate and (without := [name for name in _OF_THREADS if request.settings[name] is not None]):
        names = ", ".join(f"--{name}" for name in without)
        err.print(f"note: in virtual time there is no thread: {names} will have no effect", markup=False)
    if request.guard_alloc:
        from rtloop import guard

        request.settings["guard"] = request.settings["guard"] or "count"
        guard.reexec()  # restarts this program once; if it cannot, the run reports what is not counted
    with ended_by_signals():
        try:
            files = _read_files(request)
            found, examined = _find(err, request)
            if "period" in request.given and _is_given("rate"):
                raise TargetError("the period is given twice: by --rate and by -p")
            loop = _make(err, found, request)
        except TargetError as error:
            raise click.UsageError(str(error)) from None
        except ConfigError as error:
            raise click.UsageError(as_options(str(error))) from None
        except Terminated as error:  # the build folder has been removed
            err.print(f"Stopped by {name_of(error)}.")
            return exit_code(error)
        with _watch(err, loop, found, examined, request, files) if examined is not None else nullcontext():
            outcome = _run(err, loop, request)
        return _report(err, outcome, request)


def _read_files(request: Request) -> SavedFiles | None:
    """Read the watched file before it is compiled."""
    if not request.watch:
        return None
    from rtloop.tools.run.saved_files import SavedFiles

    return SavedFiles(Path(request.target.partition(":")[0]))


def _watch(
    err: Console, loop: RTLoop, found: Target, examined: Examined, request: Request, files: SavedFiles | None
) -> Watch:
    from rtloop.revision.successor import successor_settings
    from rtloop.tools.run.rehearsal import Rehearsing
    from rtloop.tools.run.watch import Event, Watch

    colours = {"swapped": "green", "rejected": "red", "reverted": "red"}

    def tell(event: Event) -> None:
        if request.as_json:
            click.echo(json.dumps({"command": "run", **event.to_dict()}))
            return
        err.print(f"[{colours.get(event.kind, 'yellow')}]{event.kind}[/]", end=": ")
        err.print(event.text, markup=False, soft_wrap=True)

    # The watch reports it.
    warnings.filterwarnings("ignore", message=".* has gone back to", category=RTSetupWarning)

    settings = successor_settings(loop)
    make = partial(_make_successor, err, request, settings)
    make_quietly = partial(_make_successor, None, request, settings)  # in the process of a rehearsal
    rehearsing = None if request.rehearse is None else Rehearsing(make_quietly, request.rehearse)
    trial = None if request.trial is None else f"{request.trial}ns"
    name = request.target.partition(":")[0]

    def tell_saved() -> None:
        err.print(f"{name} was saved: compiling", markup=False, soft_wrap=True)

    if not request.as_json:
        err.print(f"watching {name}: the step of each save replaces the present one", markup=False, soft_wrap=True)
    on_save = None if request.as_json else tell_saved
    return Watch(loop, found, examined, request.target, request.build, make, tell, rehearsing, trial, files, on_save)


def _make_successor(err: Console | None, request: Request, settings: dict[str, Any], found: Target) -> RTLoop:
    """Make a successor of the running loop, with the same -p options. Without a console, print nothing."""
    from rich.console import Console

    alike = replace(request, settings={}, strict=False)
    return _make(err or Console(stderr=True, quiet=True), found, alike, settings)


def _is_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def _find(err: Console, request: Request) -> tuple[Target, Examined | None]:
    """Find and compile the target, examine it for --watch; print the time it took, and Cython's warnings."""
    from rtloop.compiler.diagnostics import show_diagnostic

    target = request.target
    status = err.status(f"building {target.partition(':')[0]}") if err.is_terminal else nullcontext()
    try:
        with status:
            found, examined = _find_examined(request) if request.watch else (find_target(target, **request.build), None)
    except (RtloopError, click.ClickException, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        raise TargetError(f"{error.filename}: {error.strerror}") from None
    except BaseException as error:  # raised by the user's module on import
        raise _user_error(error, f"{target} cannot be imported") from error
    if found.built is not None:
        if found.built.summary:
            err.print(found.built.summary, markup=False, soft_wrap=True)
        for hint in found.built.hints:
            err.print(show_diagnostic(hint, "hint: "), markup=False, soft_wrap=True)
        for note in found.built.notes:
            err.print(f"note: {note}", markup=False, soft_wrap=True)
    return found, examined


def _find_examined(request: Request) -> tuple[Target, Examined | None]:
    from rtloop.revision.examination import Examination

    with Examination(Path(request.target.partition(":")[0]), request.build) as one:
        return find_target(request.target, **request.build, examine=one.begin, check=one.finish), one.result


def _user_error(error: BaseException, what: str) -> click.ClickException:
    from rtloop.revision.tracebacks import describe_exception

    return click.ClickException(f"{what}:\n{describe_exception(error)}")


def _make(err: Console, found: Target, request: Request, defaults: Mapping[str, Any] | None = None) -> RTLoop:
    settings = {_SETTINGS.get(name, name): value for name, value in request.settings.items() if value is not None}
    if settings.get("cpu") == "none":
        settings["cpu"] = None
    if request.strict:
        settings["strict"] = True
    given = dict(request.given)
    twice = sorted(set(settings) & set(given))
    if twice:
        raise TargetError(f"{twice[0]} is given twice: by an option and by -p")
    rate = request.rate
    period = given.pop("period", int(rate) if rate.denominator == 1 else rate / 10**9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RTSetupWarning)
        try:
            loop = make_loop(found, period, settings, {"strict": False, **(defaults or {})}, given)
        except RtloopError:
            raise
        except Exception as error:
            raise _user_error(error, f"{found.name} cannot be created") from error
    if has_no_step(found):
        err.print(f"note: {found.name} has no step() of its own: the loop runs and does nothing", markup=False)
    for warning in caught:
        if issubclass(warning.category, RTSetupWarning):
            err.print(f"note: {warning.message}", markup=False, soft_wrap=True)
    return loop


def _run(err: Console, loop: RTLoop, request: Request) -> Outcome:
    from rtloop.system.grant import describe_refused_briefly
    from rtloop.tools.run.show import LiveLine

    def tell(refused: tuple[Grant, ...]) -> None:
        err.print("[yellow]The loop starts without what was asked for:[/]")
        err.print(as_options(describe_refused_briefly(*refused)), markup=False, soft_wrap=True)

    asked = [_SETTINGS.get(name, name) for name, value in request.settings.items() if value is not None]
    with refusals_first([*asked, *request.given], tell):
        try:
            with LiveLine(err, loop, request.seconds):
                stats = loop.simulate(**request.limit) if request.simulate else loop.run(**request.limit)
        except KeyboardInterrupt as error:
            return Outcome("interrupted", loop.stats, error)
        except SetupError as error:
            return Outcome("refused" if loop.settings.strict else "failed", loop.stats, error)
        except BaseException as error:  # a step in Python may also raise SystemExit
            return Outcome("failed", loop.stats, error)
    return Outcome("clean", stats, None)


def _report(err: Console, outcome: Outcome, request: Request) -> int:
    """Print the table or the document, write the files, report errors, and return the exit code."""
    from rtloop.revision.tracebacks import describe_exception
    from rtloop.stats import guard_summary
    from rtloop.system.grant import describe_refused_briefly

    stats, error = outcome.stats, outcome.error
    has_run = stats.cycles + stats.missed > 0
    code = {"clean": 0, "failed": 1, "refused": NOT_KEPT, "interrupted": exit_code(error)}[outcome.kind]
    refused = [grant for grant in stats.grants if not grant.ok]
    not_kept = []
    if request.strict and outcome.kind in ("clean", "interrupted"):
        counts = {"missed releases": stats.missed, "overruns": stats.overruns, "refused grants": len(refused)}
        counts["guard violations"] = guard_summary.count(stats.guard)
        not_kept = [f"{count:,} {name}" for name, count in counts.items() if count]
        code = NOT_KEPT if not_kept else code
    if error is None or isinstance(error, KeyboardInterrupt):
        message = ""
    elif isinstance(error, SetupError) and error.refused:
        advice = "More about this machine: rtloop doctor. Without --strict the loop runs degraded"
        missing = as_options(describe_refused_briefly(*error.refused))
        message = f"not everything was granted\n{missing}\n{advice}"
    else:
        message = str(error) if isinstance(error, RtloopError) else describe_exception(error)
    written, unwritten = _write(stats, request) if has_run else ([], "")
    if unwritten:
        code = code or 1
    if request.as_json:
        document = {"outcome": outcome.kind, "error": message or unwritten or None, "exit_code": code}
        click.echo(
            json.dumps(
                {"command": "run", "target": request.target, **document, "stats": stats.to_dict()},
                indent=None if request.watch else 1,  # one line, like the events before it
            )
        )
    elif has_run:
        click.echo(str(stats))
        click.echo(explanation_text(stats), nl=False)
    if refused and outcome.kind != "refused" and not request.as_json:
        err.print("\n[yellow]The loop ran degraded.[/] What is missing:")
        err.print(as_options(describe_refused_briefly(*refused)), markup=False, soft_wrap=True)
    for line in [*written, f"rtloop: {unwritten}"] if unwritten else written:
        err.print(line, markup=False, soft_wrap=True)
    if message:
        what = "The loop did not start: " if not has_run else "The loop failed: "
        err.print(f"\n[red]{what}[/]", end="", soft_wrap=True)
        err.print(message, markup=False, soft_wrap=True)
    elif outcome.kind == "interrupted" and stats.state == "running":
        err.print(
            "[red]Not stopped:[/] a callback has not returned; the process exits without waiting for it.",
            soft_wrap=True,
        )
    elif outcome.kind == "interrupted":
        err.print(f"Stopped by {name_of(error)}." if isinstance(error, Terminated) else "Stopped.")
    if not_kept:
        err.print(f"[red]--strict was violated:[/] {', '.join(not_kept)}", soft_wrap=True)
    return code


def _write(stats: Stats, request: Request) -> tuple[list[str], str]:
    """Write the requested files; return a line for each, and the errors, empty if there were none."""
    lines, wrong = [], []
    for path, write in ((request.record, stats.save), (request.plot, stats.plot)):
        if path is not None:
            try:
                written = write(path)
                lines.append(f"wrote {written if isinstance(written, Path) else path}")
            except OSError as problem:
                wrong.append(f"cannot write {path}: {problem.strerror or problem}")
    return lines, "; ".join(wrong)

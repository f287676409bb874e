"""``rtloop run``: from a .pyx, or a function, to a running loop, in one line."""

from __future__ import annotations

import json
import os
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from rtloop.errors import ConfigError, RtloopError, RTSetupWarning, SetupError
from rtloop.tools.options import check_picture, to_duration, to_period
from rtloop.tools.run.target import Target, TargetError, find_target, has_no_step, make_loop, parse_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from rtloop.loop.loop import RTLoop
    from rtloop.stats.stats import Stats

__all__ = ["NOT_KEPT", "Outcome", "run"]

#: The exit code of --strict, where a grant was refused, or not every cycle ran in its time.
NOT_KEPT = 3


class Outcome(NamedTuple):
    """How a run ended.

    Attributes
    ----------
    kind : str
        "clean", "failed", "refused" or "interrupted".
    stats : Stats
        Of the whole run.
    error : BaseException or None
        What ended it.
    """

    kind: str
    stats: Stats
    error: BaseException | None


class _Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: the loop ends as with Ctrl-C, for its leave() may have motors to stop."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


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
    """Turn ``3``, ``0,2-3``, ``auto`` or ``none`` into what a loop gets as `cpu`: a click callback."""
    if value is None or value == "auto":
        return value
    if value == "none":
        return "none"
    try:
        cpus: list[int] = []
        for piece in value.split(","):
            first, _, last = piece.partition("-")
            cpus += range(int(first), int(last or first) + 1)
    except ValueError:
        cpus = []
    if not cpus:
        raise click.BadParameter(f"{value!r}: give numbers such as 3 or 0,2-3, or auto, or none", ctx, param)
    return cpus


def to_spin(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """Turn ``50us``, ``0`` or ``auto`` into what a loop gets as `spin`: a click callback."""
    if value is None or value == "auto":
        return value
    return 0 if value == "0" else to_duration(ctx, param, value)


def _maybe(convert: Any) -> Any:
    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
        return None if value is None else convert(ctx, param, value)

    return callback


_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.argument("target")
@click.option("--rate", metavar="RATE", callback=to_period, default="1kHz", show_default=True, help="Or the period.")
@click.option("--duration", metavar="TIME", callback=_maybe(to_duration), help="Until Ctrl-C, if not given.")
@click.option("--cycles", type=click.IntRange(min=1), help="Instead of --duration.")
@click.option(
    "-p", "given", metavar="NAME=VALUE", multiple=True, callback=to_values,
    help="A keyword of the class, one of its attributes, or any other setting of RTLoop.",
)  # fmt: skip
@click.option("--priority", type=click.IntRange(1, 99), help="80, if not given.")
@click.option("--policy", type=click.Choice(["fifo", "rr", "other", "deadline"]), help="fifo, if not given.")
@click.option("--cpu", metavar="LIST", callback=to_cpu, help="3, or 0,2-3; none: any; auto: those that are isolated.")
@click.option("--spin", metavar="TIME", callback=to_spin, help="Wake up early, by TIME or auto, and spin.")
@click.option("--lock", type=click.Choice(["all", "onfault", "own", "off"]), help="Memory to lock; all, if not given.")
@click.option(
    "--overrun", type=click.Choice(["skip", "catch-up", "shift", "stop"]), help="What follows an overrun; skip."
)
@click.option("--guard", metavar="MODE", help="off, count or stop: page faults, system calls and malloc in step.")
@click.option("--guard-alloc", is_flag=True, help="Load what sees malloc in step; --guard is count, if not given.")
@click.option("--name", metavar="NAME", help="The loop's and the thread's.")
@click.option(
    "--strict", is_flag=True,
    help=f"Exit with {NOT_KEPT} where a grant is refused (and do not start), or a release is missed or overrun.",
)  # fmt: skip
@click.option("--simulate", is_flag=True, help="In virtual time: no thread, no privilege.")
@click.option("--plot", type=_FILE, metavar="FILE", help="Draw the run into FILE (.png, .svg, .pdf).")
@click.option("--record", type=_FILE, metavar="FILE", help="Save the stats, with the last cycles, to FILE (.npz).")
@click.option("--rebuild", is_flag=True, help="Compile, even where nothing has changed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of the table.")
def run(
    target: str, rate: int, duration: int | None, cycles: int | None, given: dict[str, Any], strict: bool,
    simulate: bool, plot: Path | None, record: Path | None, rebuild: bool, as_json: bool, guard_alloc: bool,
    **options: Any,
) -> int:  # fmt: skip
    """Compile a step if need be, run it as a real-time loop, and print what happened.

    TARGET is FILE.pyx:CLASS, FILE.py:NAME or MODULE:NAME: a subclass of RTLoop, a compiled function (Numba's cfunc,
    ctypes, cffi), or a function of Python, which gets the cycle. The name can be left out where there is one alone.
    A .pyx is compiled once; nothing else is needed but Cython and a C compiler.

    \b
    rtloop run servo.pyx --duration 10s                       the class in it, at 1 kHz
    rtloop run servo.pyx:Servo --rate 4kHz -p gain=2.0        with a keyword of its constructor
    rtloop run servo.pyx --cpu 3 --spin auto --strict         or say why not, with exit code 3
    rtloop run servo.pyx --duration 10s --guard count         does step do what can make it wait?
    rtloop run servo.pyx --duration 1h --simulate             in seconds
    rtloop run control.py:step --rate 100Hz --record out.npz  a function; look later: rtloop report out.npz

    What the kernel refuses is said at the end, and the loop runs without it, unless --strict is given.

    \b
    Exit code  0 the loop ended by itself, or its time was over
               1 it failed, or could not be compiled or started
               2 the command line is wrong
               3 --strict: a grant was refused, a release missed or overrun, or a guard found something
             130 Ctrl-C (143 SIGTERM): it was stopped; the table is printed
    """  # noqa: D301 - the backslash is for click
    import faulthandler

    from rich.console import Console

    if not faulthandler.is_enabled():
        faulthandler.enable(all_threads=False)  # a step in C that goes astray says more than "Segmentation fault"
    err = Console(stderr=True, highlight=False)
    if guard_alloc:
        if options["guard"] == "off":
            raise click.UsageError("--guard-alloc counts what --guard=off leaves alone: give one of them")
        options["guard"] = options["guard"] or "count"
    if duration is not None and cycles is not None:
        raise click.UsageError("--duration and --cycles both say when it ends: give one of them")
    if simulate and duration is None and cycles is None:
        raise click.UsageError("--simulate needs --duration or --cycles: there is no Ctrl-C in virtual time")
    if plot is not None:
        check_picture(plot)
    if record is not None:
        if record.suffix not in ("", ".npz"):
            raise click.BadParameter(f"{record}: the name must end in .npz", param_hint="--record")
        if not os.access(record.parent, os.W_OK):
            raise click.BadParameter(f"{record.parent} is not a folder one can write to", param_hint="--record")
    if guard_alloc:
        from rtloop import guard

        guard.reexec()  # this program begins again, once; where it cannot, the run says what is not counted
    try:
        with _ended_by_signals():
            found = _find(err, target, force=rebuild)
        if "period" in given and _is_given("rate"):
            raise TargetError("the period is given twice: by --rate and by -p")
        loop = _make(err, found, rate, options, given, strict=strict)
    except (TargetError, ConfigError) as error:
        raise click.UsageError(str(error)) from None
    except _Terminated as error:  # the folder that was compiled in is gone
        err.print(f"Stopped by {signal.Signals(error.number).name}.")
        return 128 + error.number
    outcome = _run(err, loop, duration, cycles, simulate=simulate)
    return _report(err, outcome, target, plot, record, strict=strict, as_json=as_json)


def _is_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is click.core.ParameterSource.COMMANDLINE


def _find(err: Console, target: str, *, force: bool) -> Target:
    """Find and compile the target; say what took its time, and what Cython warns of."""
    from contextlib import nullcontext

    from rtloop.compiler.diagnostics import show_complaint

    status = err.status(f"building {target.partition(':')[0]}") if err.is_terminal else nullcontext()
    try:
        with status:
            found = find_target(target, force=force)
    except (RtloopError, click.ClickException, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        raise TargetError(f"{error.filename}: {error.strerror}") from None
    except BaseException as error:  # the user's module, as it is imported
        raise _user_error(error, f"{target} cannot be imported") from error
    if found.built is not None:
        if found.built.seconds:
            err.print(f"compiled in {found.built.seconds:.1f} s", markup=False)
        for hint in found.built.hints:
            err.print(show_complaint(hint, "hint: "), markup=False, soft_wrap=True)
        for note in found.built.notes:
            err.print(f"note: {note}", markup=False, soft_wrap=True)
    return found


def _user_error(error: BaseException, what: str) -> click.ClickException:
    from rtloop.tools.run.show import describe_exception

    return click.ClickException(f"{what}:\n{describe_exception(error)}")


def _make(
    err: Console, found: Target, rate: int, options: dict[str, Any], given: dict[str, Any], *, strict: bool
) -> RTLoop:
    renamed = {"lock": "lock_memory"}
    settings = {renamed.get(name, name): value for name, value in options.items() if value is not None}
    if settings.get("cpu") == "none":
        settings["cpu"] = None
    if strict:
        settings["strict"] = True
    twice = sorted(set(settings) & set(given))
    if twice:
        raise TargetError(f"{twice[0]} is given twice: by an option and by -p")
    period = given.pop("period", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RTSetupWarning)
        try:
            loop = make_loop(found, rate if period is None else period, settings, {"strict": False}, given)
        except RtloopError:
            raise
        except Exception as error:
            raise _user_error(error, f"{found.name} cannot be made") from error
    if getattr(loop, "data", found) is None:
        err.print(
            f"note: {found.name} gets no data, its second argument is NULL; -p data=NAME gives it an array of the file",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    if has_no_step(found):
        err.print(f"note: {found.name} has no step() of its own: the loop runs, and does nothing", markup=False)
    for warning in caught:
        if issubclass(warning.category, RTSetupWarning):
            err.print(f"note: {warning.message}", markup=False, soft_wrap=True)
    return loop


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise _Terminated(number)

    # What is ignored stays so: that is how nohup keeps a program alive.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(err: Console, loop: RTLoop, duration: int | None, cycles: int | None, *, simulate: bool) -> Outcome:
    from rtloop.tools.run.show import LiveLine

    # With the unit that the user has written, for a bare int that is shorter than a period is refused.
    limit: dict[str, Any] = {"cycles": cycles}
    if duration is not None:
        limit = {"duration": f"{duration}ns"}
    seconds = duration if cycles is None else cycles * loop.settings.period_ns
    with warnings.catch_warnings(), _ended_by_signals():
        warnings.simplefilter("ignore", RTSetupWarning)  # what is missing is told at the end
        try:
            with LiveLine(err, loop, None if seconds is None else seconds * 1e-9):
                stats = loop.simulate(**limit) if simulate else loop.run(**limit)
        except KeyboardInterrupt as error:
            return Outcome("interrupted", loop.stats, error)
        except SetupError as error:
            return Outcome("refused" if loop.settings.strict else "failed", loop.stats, error)
        except BaseException as error:  # a step in Python may raise SystemExit, too
            return Outcome("failed", loop.stats, error)
    return Outcome("clean", stats, None)


def _report(
    err: Console, outcome: Outcome, target: str, plot: Path | None, record: Path | None, *, strict: bool, as_json: bool
) -> int:
    """Print the table or the document, write the files, say what went wrong, and return the exit code."""
    from rtloop.stats import guard_summary
    from rtloop.system.grant import describe_refused
    from rtloop.tools.run.show import describe_exception

    stats, error = outcome.stats, outcome.error
    has_run = stats.cycles + stats.missed > 0
    code = {"clean": 0, "failed": 1, "refused": NOT_KEPT, "interrupted": 130}[outcome.kind]
    if isinstance(error, _Terminated):
        code = 128 + error.number
    refused = [grant for grant in stats.grants if not grant.ok]
    not_kept = []
    if strict and outcome.kind in ("clean", "interrupted"):
        counts = {"missed releases": stats.missed, "overruns": stats.overruns, "refused grants": len(refused)}
        counts["guard violations"] = guard_summary.count(stats.guard)
        not_kept = [f"{count:,} {name}" for name, count in counts.items() if count]
        code = NOT_KEPT if not_kept else code
    if error is None or isinstance(error, KeyboardInterrupt):
        message = ""
    elif isinstance(error, SetupError) and error.refused:
        advice = "More about this machine: rtloop doctor. Without --strict the loop runs degraded"
        message = f"not everything was granted\n{describe_refused(*error.refused)}\n{advice}"
    else:
        message = str(error) if isinstance(error, RtloopError) else describe_exception(error)
    written, unwritten = _write(stats, record, plot) if has_run else ([], "")
    if unwritten:
        code = code or 1
    if as_json:
        document = {"outcome": outcome.kind, "error": message or unwritten or None, "exit_code": code}
        click.echo(json.dumps({"command": "run", "target": target, **document, "stats": stats.to_dict()}, indent=1))
    elif has_run:
        click.echo(str(stats))
    if refused and outcome.kind != "refused" and not as_json:
        err.print("\n[yellow]The loop ran degraded.[/] What is missing:")
        err.print(describe_refused(*refused), markup=False, soft_wrap=True)
    for line in [*written, f"rtloop: {unwritten}"] if unwritten else written:
        err.print(line, markup=False, soft_wrap=True)
    if message:
        what = "The loop did not start: " if not has_run else "The loop failed: "
        err.print(f"\n[red]{what}[/]", end="", soft_wrap=True)
        err.print(message, markup=False, soft_wrap=True)
    elif outcome.kind == "interrupted" and stats.state == "running":
        err.print("[red]Not stopped:[/] a callback has not returned; the process ends without it.", soft_wrap=True)
    elif outcome.kind == "interrupted":
        err.print("Stopped." if code == 130 else f"Stopped by {signal.Signals(code - 128).name}." if code > 128 else "")
    if not_kept:
        err.print(f"[red]Not as strictly as asked:[/] {', '.join(not_kept)}", soft_wrap=True)
    return code


def _write(stats: Stats, record: Path | None, plot: Path | None) -> tuple[list[str], str]:
    """Write the files that were asked for; returns what was written, and what went wrong: empty where nothing did."""
    lines, wrong = [], []
    for path, write in ((record, stats.save), (plot, stats.plot)):
        if path is not None:
            try:
                written = write(path)
                lines.append(f"wrote {written if isinstance(written, Path) else path}")
            except OSError as problem:
                wrong.append(f"cannot write {path}: {problem.strerror or problem}")
    return lines, "; ".join(wrong)

"""Options that several commands share, and their message while they wait."""

from __future__ import annotations

import os
import re
import sys
import threading
import warnings
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

from rtloop.errors import ConfigError, RTSetupWarning
from rtloop.settings import make_settings
from rtloop.system.cpuset import describe_absent
from rtloop.units import parse_duration, parse_period

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from rich.console import Console

    from rtloop.stats.stats import Stats
    from rtloop.system.grant import Grant

__all__ = [
    "OUTPUT_FILE",
    "as_json_option",
    "as_options",
    "check_cpus",
    "check_folder",
    "check_picture",
    "complete_loop",
    "config_option",
    "count_of",
    "exact_rate_option",
    "explain_above_option",
    "explain_option",
    "explained",
    "explanation_text",
    "make_out",
    "plot_option",
    "rate_option",
    "refusals_first",
    "running_names",
    "say_if_slow",
    "say_once",
    "to_duration",
    "to_exact_period",
    "to_period",
    "to_spin",
]

#: Type of an option that names a file to write.
OUTPUT_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)

#: Columns of a console whose lines are not wrapped.
_UNWRAPPED = 2000
#: Number of explanations that are printed.
_MOST_EXPLAINED = 20
_FORMS = (
    "; write it with a unit, such as 250us, 10ms or 2s",
    "; write a rate, such as 4kHz, or a period, such as 250us",
)
#: Grants, or kinds of grants, that a setting asks for.
_ASKED = {
    "policy": "policy", "priority": "policy", "runtime": "policy", "deadline": "policy", "cpu": "cpu",
    "spin": "rt_bandwidth", "lock_memory": "lock", "explain": "explain", "guard": "guard",
    "dma_latency": "dma_latency", "core_dumps": "core_dumps", "flush_denormals": "denormals",
}  # fmt: skip
#: Settings whose option has another name.
_RENAMED = {"lock_memory": "lock"}
#: Options that are something else than the setting of the same name.
_DIFFERENT = {"record"}
_VALUE = r"'([^']*)'|\"([^\"]*)\"|[(\[]([^)\]]*?),?[)\]]|([\w.]+)"
_SETTING = re.compile(rf"(?<![\w.-])({'|'.join(make_settings.__kwdefaults__ or ())})=(?:{_VALUE})?")


def complete_loop(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a running loop: for `shell_complete` of an argument or option."""
    return sorted(name for name in running_names() if name.startswith(incomplete))


def running_names() -> set[str]:
    """Return the names of the running loops of this machine, also those that tell equal ones apart."""
    from rtloop.telemetry.attach import running

    names = set()
    for loop in running():
        with loop:
            names |= {loop.name, loop.label}
    return names


def to_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Turn an option such as ``10s`` into nanoseconds, None if it is not given: a click callback."""
    return None if value is None else _parse(ctx, param, value, rate=False)


def to_period(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """Turn an option such as ``1kHz`` or ``250us`` into the period in nanoseconds: a click callback."""
    return round(to_exact_period(ctx, param, value))


def to_exact_period(ctx: click.Context, param: click.Parameter, value: str) -> Fraction:
    """Turn an option such as ``44.1kHz`` into the exact period in nanoseconds: a click callback."""
    return Fraction(_parse(ctx, param, value, rate=True))


def to_spin(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """Turn ``50us``, ``0`` or ``auto`` into a loop's `spin`, None if it is not given: a click callback."""
    return 0 if value == "0" else value if value == "auto" else to_duration(ctx, param, value)


def rate_option(function: Any) -> Any:
    """Add ``--rate``, in nanoseconds of the period."""
    return _rate_option(to_period)(function)


def exact_rate_option(function: Any) -> Any:
    """Add ``--rate``, a Fraction of nanoseconds of the period."""
    return _rate_option(to_exact_period)(function)


def _rate_option(callback: Callable[..., Any]) -> Callable[[Any], Any]:
    return click.option(
        "--rate", metavar="RATE", callback=callback, default="1kHz", show_default=True, help="Rate, or period."
    )


def plot_option(help_text: str) -> Callable[[Any], Any]:
    """Return a decorator that adds ``--plot FILE``."""
    return click.option("--plot", type=OUTPUT_FILE, metavar="FILE", help=f"{help_text} into FILE (.png, .svg, .pdf).")


def as_json_option(instead: str) -> Callable[[Any], Any]:
    """Return a decorator that adds ``--json``, as the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print one JSON document {instead}.")


def config_option(function: Any) -> Any:
    """Add ``--config``, a file of Zenoh's own configuration."""
    return click.option(
        "--config", type=click.Path(exists=True, dir_okay=False), help="Zenoh's configuration, JSON5 or YAML."
    )(function)


def _parse(ctx: click.Context, param: click.Parameter, value: str, *, rate: bool) -> Any:
    try:
        if rate:
            return parse_period(value, param.name or "")
        return parse_duration(value, param.name or "", minimum=1)
    except ConfigError as error:
        # The Python interface's text names types that a command line does not have.
        what, forms, _ = str(error).removeprefix(f"{param.name}=").partition("; give an int (nanoseconds)")
        raise click.BadParameter(what + (_FORMS[rate] if forms else ""), ctx, param) from None


def check_picture(plot: Path) -> None:
    """Refuse a path that no picture can be written to, before the runs."""
    import matplotlib.figure

    canvas = matplotlib.figure.Figure().canvas
    if plot.suffix.lstrip(".") not in canvas.get_supported_filetypes():
        raise click.BadParameter(f"{plot}: the name must end in .png, .svg or .pdf", param_hint="--plot")
    check_folder(plot, "--plot")


def check_folder(path: Path, option: str) -> None:
    """Refuse a file that cannot be made, before the runs."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise click.BadParameter(f"{path.parent} is not a writable folder", param_hint=option)


def check_cpus(cpus: object, option: str) -> None:
    """Refuse CPUs that this machine does not have, or that are offline. Anything else than CPUs is not checked."""
    every = [cpus] if isinstance(cpus, int) else cpus
    if isinstance(every, (list, tuple)) and all(type(cpu) is int for cpu in every) and (why := describe_absent(every)):
        raise click.BadParameter(why, param_hint=option)


def as_options(text: str) -> str:
    """Write the settings in a message of the Python interface as options of the present command.

    ``cpu=3`` becomes ``--cpu 3``, and a setting without an option of its own ``-p NAME=VALUE``.
    """
    context = click.get_current_context(silent=True)
    if context is None:
        return text
    options = {one.name for one in context.command.params} - _DIFFERENT

    def as_option(found: re.Match[str]) -> str:
        name = _RENAMED.get(found[1], found[1])
        value = next((one for one in found.groups()[1:] if one is not None), "").replace(", ", ",")
        if name not in options:
            return f"-p {found[1]}={value}"
        if value in ("True", "False"):
            return f"--{name}" if value == "True" else f"leave out --{name}"
        return f"--{name} {value.lower() if value == 'None' else value}".rstrip()

    return _SETTING.sub(as_option, text)


@contextmanager
def refusals_first(asked: Collection[str], tell: Callable[[tuple[Grant, ...]], None]) -> Iterator[None]:
    """Tell which of the settings that were asked for a loop is refused, before its first cycle.

    All other warnings of its setup are left to the end of the run.

    Parameters
    ----------
    asked : collection of str
        Names of the settings that were asked for by name.
    tell : callable
        Called with the refused grants, if there are any.
    """
    wanted = {_ASKED[name] for name in asked if name in _ASKED}
    told: set[Grant] = set()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **others: Any) -> None:
        if not isinstance(message, RTSetupWarning):
            before(message, category, *rest, **others)
            return
        refused = tuple(one for one in message.grants if {one.name, one.kind} & wanted and one not in told)
        told.update(refused)
        if refused:
            tell(refused)

    with warnings.catch_warnings():
        warnings.simplefilter("always", RTSetupWarning)
        before, warnings.showwarning = warnings.showwarning, show
        try:
            yield
        finally:  # with context-aware warnings, catch_warnings does not restore it
            warnings.showwarning = before


def say_once() -> Callable[[str], None]:
    """Return a function that prints only the first text that it is given, on stderr."""
    said: list[str] = []

    def say(text: str) -> None:
        if not said:
            print(f"{text} (Ctrl-C ends)", file=sys.stderr, flush=True)
        said.append(text)

    return say


class _WithoutTrailingBlanks:
    """Standard output, with lines that end without blanks."""

    def write(self, text: str) -> int:
        return sys.stdout.write(re.sub(r" +$", "", text, flags=re.MULTILINE))

    def flush(self) -> None:
        sys.stdout.flush()


def make_out() -> Console:
    """Return a console on stdout; a file or a pipe gets lines that are not wrapped and end without blanks."""
    from rich.console import Console

    if sys.stdout.isatty() or {"COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"} & os.environ.keys():
        return Console()
    return Console(file=cast("IO[str]", _WithoutTrailingBlanks()), width=_UNWRAPPED)


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


@contextmanager
def say_if_slow(text: str, after_s: float = 1.0) -> Iterator[None]:
    """Print a text on stderr if the block takes longer than `after_s` seconds."""
    timer = threading.Timer(after_s, lambda: print(f"{text} (Ctrl-C ends)", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


explain_option = click.option(
    "--explain", is_flag=True, help="Trace the kernel, and name the causes of late cycles (needs root)."
)
explain_above_option = click.option(
    "--explain-above", metavar="TIME", callback=to_duration,
    help="As --explain, for every cycle that was delayed by more than TIME, not only for the worst.",
)  # fmt: skip


def explained(explain: bool, above: int | None) -> bool | str | None:
    """Return the keyword `explain` of a loop for the two options; None if neither is given."""
    return f"{above}ns" if above else explain or None


def explanation_text(stats: Stats) -> str:
    """Return the explanations of the late cycles as lines, the longest delay first; empty if the run was not traced."""
    if stats.explanations is None:
        return ""
    if not stats.explanations:
        return "\nNo cycle was late enough to be explained.\n"
    every = stats.explain()
    lines = [f"  {one}" for one in every[:_MOST_EXPLAINED]]
    if len(every) > _MOST_EXPLAINED:
        lines.append(f"  and {len(every) - _MOST_EXPLAINED} more, in stats.explain()")
    return "\n".join(["\nWhat delayed the late cycles:", *lines, ""])

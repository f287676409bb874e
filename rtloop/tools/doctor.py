"""``rtloop doctor``: check that this machine and this session are ready for real time, with fixes."""

from __future__ import annotations

import json
from typing import Any

import click

from rtloop.errors import RtloopError
from rtloop.tools.options import make_out, to_duration, to_period
from rtloop.units import format_duration, format_rate

__all__ = ["doctor"]


@click.command()
@click.option("--measure", is_flag=True, help="Also measure the wake-up latency of an empty loop.")
@click.option(
    "--rate", metavar="RATE", callback=to_period, default="1kHz", show_default=True, help="Rate for --measure."
)
@click.option(
    "--duration", metavar="DURATION", callback=to_duration, default="5s", show_default=True,
    help="Duration of --measure.",
)  # fmt: skip
@click.option("--strict", is_flag=True, help="Exit with 1 on a warning as well.")
@click.option("--json", "form", flag_value="json", help="Print one JSON document instead of the tables.")
@click.option(
    "--markdown",
    "form",
    flag_value="markdown",
    help="Print Markdown for a bug report, with kernel, hardware and settings, without private data.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show why each check matters and where it was read.")
@click.pass_context
def doctor(
    ctx: click.Context, measure: bool, rate: int, duration: int, strict: bool, form: str | None, verbose: bool
) -> None:
    """Report what hinders real time here, with its fixes.

    It names what is misconfigured, and prints the commands that fix it. It reads, and never writes. To see what the
    kernel really grants, a child process runs a loop for 20 ms, which locks its own memory, runs one SCHED_FIFO
    thread and holds /dev/cpu_dma_latency. Two samples, half a second apart, find real-time threads that hog a CPU,
    and stolen time.

    Exit code: 0 no check fails, 1 a check fails, or with --strict warns, 2 the command line is wrong.
    """
    from rtloop.machine.doctor.machine_files import Machine
    from rtloop.machine.doctor.report import exit_code, make_document, make_markdown, print_page
    from rtloop.machine.doctor.run_all import examine, gather

    if duration < 20 * rate:
        raise click.BadParameter(f"{format_duration(duration)} is less than 20 cycles", param_hint="--duration")
    if form is None:
        console = make_out()
    machine = Machine()
    checks = examine(machine, gather(machine))
    measured: dict[str, Any] | None = None
    if measure:
        from rtloop.machine.doctor.measure import failed_measurement, judge, run_measurement

        try:
            with _waiting(f"an empty loop at {format_rate(rate)} for {format_duration(duration)}", duration):
                stats = run_measurement(rate, duration)
        except RtloopError as error:  # the other checks are still reported, and may explain it
            checks.append(failed_measurement(error))
        else:
            checks.append(judge(stats, rate))
            measured = stats.to_dict()
            measured.pop("records", None)
    if form == "json":
        click.echo(json.dumps(make_document(checks, measured), indent=1))
    elif form == "markdown":
        click.echo(make_markdown(checks, machine))
    else:
        print_page(console, checks, verbose=verbose)
    ctx.exit(exit_code(checks, strict=strict))


class _waiting:  # noqa: N801 - reads as a verb in its with statement
    """Progress bar on stderr while something takes long; nothing without a terminal."""

    def __init__(self, text: str, duration_ns: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn(text), BarColumn(bar_width=30), TimeRemainingColumn(), console=self._console, transient=True
        )
        self._seconds = duration_ns / 1e9

    def __enter__(self) -> None:
        if self._console.is_terminal:
            import threading
            import time

            self._bar.start()
            task, begin = self._bar.add_task("", total=self._seconds), time.monotonic()
            self._end = threading.Event()

            def move() -> None:
                while not self._end.wait(0.2):
                    self._bar.update(task, completed=time.monotonic() - begin)

            self._thread = threading.Thread(target=move, daemon=True)
            self._thread.start()

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._end.set()
            self._thread.join()
            self._bar.stop()

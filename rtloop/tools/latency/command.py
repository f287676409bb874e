"""``rtloop latency``: wake-up latency of an empty loop on this machine, and the loop rate that it supports."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from rtloop.errors import RtloopError
from rtloop.machine.latency.load import LOADS, Load
from rtloop.system.cpu import format_cpu_list, parse_cpu_list
from rtloop.system.cpu_choice import usable_isolated_cpus
from rtloop.system.cpuset import describe_absent
from rtloop.tools.interruption import ended_by_signals, exit_code
from rtloop.tools.options import (
    OUTPUT_FILE,
    as_json_option,
    check_folder,
    check_picture,
    explain_above_option,
    explain_option,
    explained,
    explanation_text,
    make_out,
    plot_option,
    rate_option,
    refusals_first,
    to_duration,
    to_spin,
)
from rtloop.units import format_duration, format_rate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from rtloop.machine.latency.runner import Run
    from rtloop.stats.histogram import Histogram
    from rtloop.stats.stats import Stats

__all__ = ["latency", "make_document"]

PERCENTILES = (50, 99, 99.9, 99.99)
#: Alternating pairs of a comparison.
PAIRS = 3
#: The exit code if a breakpoint was hit.
HIT = 3
#: The least length of a measurement; a warm-up is half of it.
MIN_CYCLES = 20
#: Settings whose option has another name.
_SETTINGS = {"cpus": "cpu", "explain_above": "explain"}


def to_cpus(ctx: click.Context, param: click.Parameter, value: str) -> list[Any]:
    """Turn ``0,2-3``, ``all`` or ``auto`` into the `cpu` of each loop: a click callback."""
    # The kernel starts every process off the isolated CPUs, and lets it move there on request.
    allowed = sorted({*os.sched_getaffinity(0), *usable_isolated_cpus()})
    if value == "auto":
        return ["auto"]
    if value == "all":
        return list(allowed)
    try:
        found = parse_cpu_list(value)
    except ValueError:
        raise click.BadParameter(f"{value!r}: give numbers such as 0,2-3, or all, or auto", ctx, param) from None
    if not found or not {*found} <= {*allowed}:
        absent = describe_absent(set(found) - set(allowed))
        why = f"{absent}; " if absent else ""
        text = f"{value!r}: {why}this process may run only on CPUs {format_cpu_list(allowed)}"
        raise click.BadParameter(text, ctx, param)
    return list(found)


@click.command()
@rate_option
@click.option("--duration", metavar="TIME", callback=to_duration, default="10s", show_default=True)
@click.option(
    "--cpus",
    metavar="LIST",
    callback=to_cpus,
    default="auto",
    show_default=True,
    help="One loop on each of these CPUs: 0,2-3 or all. auto: one loop on its default CPUs.",
)
@click.option("--priority", type=click.IntRange(1, 99), default=80, show_default=True)
@click.option("--policy", type=click.Choice(["fifo", "rr", "other"]), default="fifo", show_default=True)
@click.option(
    "--spin",
    metavar="TIME",
    callback=to_spin,
    default="0",
    show_default=True,
    help='Wake up TIME early and spin until the release; "auto" learns how much.',
)
@click.option(
    "--load",
    "kind",
    type=click.Choice(LOADS),
    default="none",
    show_default=True,
    help="Load during the measurement. gil is a busy Python thread in this process.",
)
@click.option(
    "--breakpoint",
    "limit",
    metavar="US",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Stop at the first wake-up after the warm-up that is later than US microseconds, with exit code {HIT}.",
)
@click.option(
    "--trace",
    type=OUTPUT_FILE,
    metavar="FILE",
    help="With --breakpoint: trace the kernel until that moment, and write the trace to FILE (root).",
)
@explain_option
@explain_above_option
@click.option("--compare", is_flag=True, help=f"Alternate with cyclictest, {PAIRS} times, and report the ratio.")
@click.option("--histogram", is_flag=True, help="Also print the histogram.")
@plot_option("Draw the latencies")
@as_json_option("instead of the tables")
def latency(
    rate: int, duration: int, cpus: list[Any], priority: int, policy: str, spin: int | str, kind: str,
    limit: float | None, trace: Path | None, explain: bool, explain_above: int | None, compare: bool, histogram: bool,
    plot: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Measure the wake-up latency of an empty loop.

    It reports the loop rate that this latency supports. Wake-up latency is the time from the planned release to the
    start of the step, with everything that rtloop sets up for a loop: SCHED_FIFO, locked memory, a CPU kept awake.
    Refused requests are listed; the loop runs without them.

    \b
    rtloop latency --duration 10min --load stress-ng     before you trust a machine
    rtloop latency --cpus all --rate 4kHz                 which CPU is best
    rtloop latency --duration 10min --explain             what delayed it (root)
    rtloop latency --breakpoint 100 --trace late.txt      the kernel's trace of one delay
    rtloop latency --compare                              compared with cyclictest
    """  # noqa: D301 - the backslash is for click
    from rich.console import Console

    from rtloop.tools.latency.show import conclude_run, draw, print_run

    if duration < MIN_CYCLES * rate:
        text = f"{format_duration(duration)} is less than {MIN_CYCLES} cycles of {format_duration(rate)}"
        raise click.BadParameter(text, param_hint="--duration")
    if trace is not None and limit is None:
        raise click.UsageError("--trace belongs to --breakpoint: give --breakpoint US as well")
    if compare and (len(cpus) > 1 or limit is not None):
        raise click.UsageError("--compare measures one loop on one CPU: name one CPU, and leave out --breakpoint")
    if plot is not None:
        check_picture(plot)
    if trace is not None:
        check_folder(trace, "--trace")
    settings: dict[str, Any] = {"policy": policy, "spin": spin}
    if policy in ("fifo", "rr"):
        settings["priority"] = priority
    if (why := explained(explain, explain_above)) is not None:
        settings["explain"] = why
    out, err = make_out(), Console(stderr=True)
    plan = f"{format_rate(rate)} for {format_duration(duration, 1)}, load {kind}"
    if not as_json:
        out.print(f"An empty loop at {plan}." + (f" {PAIRS} times in turn with cyclictest." if compare else ""))
    asked = {"period_ns": rate, "duration_ns": duration, **settings}
    with ended_by_signals():
        if compare:
            return _compare(out, err, cpus, asked, kind, as_json=as_json, histogram=histogram, plot=plot)
        run = _measure(
            err, cpus, asked, kind, limit_ns=0 if limit is None else max(1, round(limit * 1000)), trace=trace
        )
        if plot is not None:
            draw({stats.name: stats.latency for stats in run.stats}, plot)
            err.print(f"wrote {plot}", highlight=False, soft_wrap=True)
        if as_json:
            click.echo(json.dumps(make_document(run, asked, kind), indent=1))
        else:
            print_run(out, run, cpus, histogram=histogram)
            for stats in run.stats:
                click.echo(explanation_text(stats), nl=False)
            out.print("\n" + conclude_run(run, rate), highlight=False)
            if trace is not None:
                told = f"The kernel's trace up to that moment: {trace}" if any(run.hits) else "No trace was written."
                out.print(told, highlight=False, soft_wrap=True)
        if run.interrupt is not None:
            return exit_code(run.interrupt)
        return HIT if any(run.hits) else 0


def _measure(
    err: Console, cpus: Sequence[Any], asked: dict[str, Any], kind: str, *, limit_ns: int = 0, trace: Path | None = None
) -> Run:
    from rtloop.machine.latency.kernel_trace import KernelTrace
    from rtloop.machine.latency.runner import run_loops
    from rtloop.tools.latency.show import Progress, print_early

    context = click.get_current_context()
    given = [
        _SETTINGS.get(name, name)
        for name in context.params
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    starting = refusals_first(given, lambda refused: print_early(err, refused))
    with Load(kind) as load, KernelTrace() if trace else nullcontext() as tracing, Progress(err, asked) as progress:
        fd = -1 if tracing is None else tracing.fd
        run = run_loops(
            cpus, limit_ns=limit_ns, trace_fd=fd, load=load, progress=progress.update,
            starting=starting, **asked,
        )  # fmt: skip
        if tracing is not None and trace is not None and any(run.hits):
            tracing.save(trace)
    return run


def _compare(
    out: Console, err: Console, cpus: Sequence[Any], asked: dict[str, Any], kind: str, *, as_json: bool,
    histogram: bool, plot: Path | None,
) -> int:  # fmt: skip
    """Run both in turn on the same CPU, and print the comparison."""
    from rtloop.machine.latency.cyclictest import find_cyclictest, run_cyclictest
    from rtloop.tools.latency.show import draw, join_pairs, print_comparison

    program = find_cyclictest()
    cpu = max(usable_isolated_cpus() or os.sched_getaffinity(0)) if cpus == ["auto"] else cpus[0]
    if asked["period_ns"] % 1000 or "priority" not in asked or asked["policy"] != "fifo":
        raise RtloopError(
            "--compare needs --policy fifo, and a --rate whose period is a whole number of microseconds, as cyclictest "
            "requires"
        )
    cycles = asked["duration_ns"] // asked["period_ns"]
    pairs: list[tuple[Histogram, Histogram]] = []
    ours: list[Stats] = []
    for number in range(PAIRS):
        if err.is_terminal:
            err.print(f"pair {number + 1} of {PAIRS}", highlight=False)
        run = _measure(err, [cpu], asked, kind)
        if run.interrupt is not None:
            raise run.interrupt  # half a comparison is useless
        with Load(kind):
            theirs = run_cyclictest(
                period_ns=asked["period_ns"], cycles=cycles, priority=asked["priority"], cpu=cpu, program=program
            )
        ours.append(run.stats[0])
        pairs.append((run.stats[0].latency, theirs))
    document = print_comparison(None if as_json else out, pairs, ours, histogram=histogram)
    if plot is not None:
        draw(join_pairs(pairs), plot)
        err.print(f"wrote {plot}", highlight=False, soft_wrap=True)
    if as_json:
        click.echo(json.dumps({**_head(asked, kind), "cpu": cpu, **document}, indent=1))
    return 0


def _head(asked: dict[str, Any], kind: str) -> dict[str, Any]:
    from rtloop import __version__
    from rtloop.system.host import host_facts

    return {"rtloop": __version__, "command": "latency", "asked": {**asked, "load": kind}, "host": host_facts()}


def make_document(run: Run, asked: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    from rtloop.machine.latency.tail import CONFIDENCE, claims
    from rtloop.tools.latency.show import conclude_run, tails_of

    def summary(stats: Stats) -> dict[str, Any]:
        return {
            "name": stats.name,
            "cpu": stats.settings["cpu"],
            "cycles": stats.cycles,
            "missed": stats.missed,
            "overruns": stats.overruns,
            "page_faults": stats.page_faults._asdict(),
            "latency": stats.to_dict()["latency"],
            "explanations": stats.to_dict()["explanations"],
            "refused": [grant.to_dict() for grant in stats.grants if not grant.ok],
        }

    return {
        **_head(asked, kind),
        "is_interrupted": run.is_interrupted,
        "loops": [summary(stats) | {"breakpoint_ns": hit} for stats, hit in zip(run.stats, run.hits, strict=True)],
        "confidence": CONFIDENCE,
        "claims": [claim._asdict() for claim in claims(tails_of(run))],
        "conclusion": conclude_run(run, asked["period_ns"]),
    }

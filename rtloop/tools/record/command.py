"""``rtloop record``: the command line."""

from __future__ import annotations

from pathlib import Path

import click

from rtloop.tools.options import as_json_option, complete_loop, config_option, to_duration

__all__ = ["record"]


@click.command()
@click.argument("name", required=False, shell_complete=complete_loop)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False),
              help="The file to write: .npy, .npz, .csv or .mcap; with --zenoh .mcap.")  # fmt: skip
@click.option("--for", "--duration", "duration", metavar="TIME", callback=to_duration,
              help="Duration; by default until Ctrl-C or the end of the loop.")  # fmt: skip
@click.option("--pid", type=click.IntRange(1), help="Process of the loop, if several have a loop NAME.")
@click.option(
    "--trigger",
    metavar="EXPR",
    help="Write a file each time this becomes true: 'overrun or abs(error) > 0.1'.",
)
@click.option("--before", metavar="TIME", callback=to_duration, help="With --trigger: time before it; 1s by default.")
@click.option("--after", metavar="TIME", callback=to_duration, help="With --trigger: time after it; 1s by default.")
@click.option("--events", type=click.IntRange(1), metavar="N", help="With --trigger: end after N events.")
@click.option(
    "--keep", type=click.IntRange(1), metavar="N", help="With --trigger: keep the newest N files; 1000 by default."
)
@click.option("--zenoh", "keys", metavar="KEYS", help="Record the bridges of several hosts: 'rtloop/**'.")
@config_option
@click.option(
    "--strict", is_flag=True, help="With --zenoh: exit code 3 if clocks disagree or jump, or bridges share a key."
)
@as_json_option("instead of the table")
def record(
    name: str | None,
    output: str,
    duration: int | None,
    pid: int | None,
    trigger: str | None,
    before: int | None,
    after: int | None,
    events: int | None,
    keep: int | None,
    keys: str | None,
    config: str | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Record the signals of a running loop.

    It records a loop of this machine, or with --zenoh loops on several hosts. NAME is the name of the loop; without
    it, exactly one loop must be running. The loop has to have signals, needs no other preparation, and is not
    delayed. Samples that this command was too slow for are counted as lost. Ctrl-C ends the recording and keeps the
    file.

    With --trigger it keeps the last seconds in memory, and writes a file for each event, with the time (UTC) and a
    number in its name: FILE-20261129T191429.123Z-0001. The expression may contain signals, items of arrays
    (`error[0]`), numbers, comparisons, and, or, not, + - * / % **, abs, min, max, sqrt and isfinite.

    It may also contain events of the loop: `overrun`, `missed` (releases), `late` (starts), `stall`, `fault`
    (page faults), `violation` (of a guard), `refused` (sets of parameters), `limit` (signals outside of their limits),
    `swap` and `clock_step`. Each is the number of these events in the cycle. `latency`, `execution` and `response` are
    times of the cycle in ns. If a signal has such a name, write `loop.overrun`. The file also contains the parameters
    and the counters at the event.

    rtloop run --record saves the timing of one run, and a Recorder in your program saves the signals of its own loops.
    Exit code 1 if nothing was recorded.

    With --zenoh, the times are the records' own, in the time of day of their hosts, whose clocks must be synchronised.
    A host whose clock disagrees with this one's is named at once and at the end; a jump is also marked in the file.
    """
    if trigger is None and any(value is not None for value in (before, after, events, keep)):
        raise click.UsageError(
            "--before, --after, --events and --keep belong to --trigger: give --trigger EXPR as well"
        )
    if Path(output).suffix not in (".npy", ".npz", ".csv", ".mcap"):
        raise click.BadParameter(f"{output}: the name must end in .npy, .npz, .csv or .mcap", param_hint="--output")
    if keys is not None:
        if name is not None or pid is not None or trigger is not None:
            raise click.UsageError("NAME, --pid and --trigger select from this machine's loops: leave out --zenoh")
        from rtloop.tools.record.hosts import record_hosts

        record_hosts(keys, output, duration, config, strict, as_json)
        return
    if config is not None or strict:
        raise click.UsageError("--config and --strict belong to --zenoh: give --zenoh KEYS as well")
    from rtloop.tools.record.local import record_events, record_loop

    if trigger is None:
        record_loop(name, pid, output, duration, as_json)
    else:
        times = (1_000_000_000 if before is None else before, 1_000_000_000 if after is None else after)
        most = 1000 if keep is None else keep
        record_events(name, pid, output, duration, trigger, times, events, most, as_json)

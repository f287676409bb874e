"""Measure reading a running loop: a snapshot of its statistics, and a million records as a NumPy array.

    python benchmarks/snapshot.py [--pairs 15] [--json FILE]

A loop of 10 kHz runs all the time. Slices with readings alternate with slices without, and the loop's wake-up latency
in both is compared, because a reader must never make it wait. A snapshot has the counters, four histograms, the grants
and the settings. The first snapshot copies all records into new memory, the second does so once more and leaves room
for half as many again, and later ones copy only the new records until that is used up. The peer is NumPy's own copy of
as many records. After 100 seconds the loop has run a million cycles. With a smaller `--seconds` the block has fewer
records, and the figure is scaled to a million.

Needs SCHED_FIFO and locked memory.
"""

from __future__ import annotations

import statistics
import sys
import time

from common import claim, exit_code, parser, print_claims, run_script, say, write_json

from rtloop import RTLoop, RtloopError

TARGET_MS = 2.0
LATENCY_TARGET = 1.05
MILLION = 1_000_000
SLICE_S = 0.5


def look_once(loop: RTLoop) -> tuple[float, float, int]:
    """Read a loop. Returns the milliseconds, those of NumPy's copy of as many records, and the number of records."""
    begin = time.perf_counter_ns()
    records = loop.stats.records
    end = time.perf_counter_ns()
    copy = records.copy()
    return (end - begin) / 1e6, (time.perf_counter_ns() - end) / 1e6, len(copy)


def look(loop: RTLoop, seconds: float) -> list[tuple[float, float, int]]:
    """Read a loop ten times a second for a number of seconds, at least once."""
    found = []
    end = time.monotonic() + seconds
    while not found or time.monotonic() < end:
        found.append(look_once(loop))
        time.sleep(0.1)
    return found


def latency_ns(loop: RTLoop, seconds: float, *, is_watched: bool) -> tuple[float, list[tuple[float, float, int]]]:
    """Return the mean latency of a slice of the loop's time, and the readings in it."""
    before = loop.stats.latency
    looks = look(loop, seconds) if is_watched else []
    if not is_watched:
        time.sleep(seconds)
    after = loop.stats.latency
    return (after.mean * after.count - before.mean * before.count) / max(1, after.count - before.count), looks


def main() -> int:
    arguments = parser(
        __doc__ or "", pairs=15, seconds=20.0, of="time for which the loop runs before the readings"
    ).parse_args()
    try:
        with RTLoop("100us", record=1 << 20, priority=80, name="looked at") as loop:
            begin = time.monotonic()
            while (left := arguments.seconds - (time.monotonic() - begin)) > 0:
                say(f"{left:.0f} s until there are enough records")
                time.sleep(min(1, left))
            first, second = look_once(loop)[0], look_once(loop)[0]
            looks, ours, theirs = [], [], []
            for number in range(arguments.pairs):
                say(f"pair {number + 1} of {arguments.pairs}")
                theirs.append(latency_ns(loop, SLICE_S, is_watched=False)[0])
                mean, found = latency_ns(loop, SLICE_S, is_watched=True)
                ours.append(mean)
                looks += found
        with RTLoop("100us", record=1024, priority=80, name="looked at") as loop:
            time.sleep(0.2)
            small = [ms for ms, _, _ in look(loop, 2)]
    except RtloopError as error:
        sys.exit(f"\n{error}")
    say("")
    count = statistics.median(records for _, _, records in looks)
    claims = [
        claim("a snapshot of the statistics, 1024 records", "ms", small, target=TARGET_MS),
        claim("records to NumPy, a million", "ms",
              [ms * MILLION / records for ms, _, records in looks], target=TARGET_MS),
        claim("the first snapshot of as many records", "ms", [first]),
        claim("the second snapshot of as many records", "ms", [second]),
        claim("as many records to NumPy", "ms", [ms for ms, _, _ in looks], "NumPy's copy", [ms for _, ms, _ in looks]),
        claim("mean latency of the loop meanwhile", "us", [ns / 1000 for ns in ours], "unread",
              [ns / 1000 for ns in theirs], LATENCY_TARGET),
    ]  # fmt: skip
    print_claims(f"Reading a running loop, with {count:,.0f} records", claims)
    write_json(arguments.json, benchmark="snapshot", options=vars(arguments), looks=looks, claims=claims)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)

"""Compare the age of setpoints in a bridge with that in a Zenoh subscription with an equivalent callback.

    python benchmarks/setpoints.py [--pairs 3] [--seconds 3] [--json FILE]

A process sends timestamped setpoints over loopback, 1000 and then 100 000 a second. A busy Python thread runs in the
receiving process. Both processes use the machine's monotonic clock. The reported age is the 99.9 % quantile of the
setpoints that were taken. A bridge counts the setpoints that it skips because a newer one has come, and the counts have
to add up. Needs eclipse-zenoh.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
from common import claim, exit_code, need_module, parser, positive, print_claims, print_table, run_script, write_json
from zenoh_bridge import QUIET, free_address

from rtloop import Latest, PyLoop, RtloopError

KEY = "rtloop/bench/setpoints"
SENDER = """
import json, struct, sys, time, rtloop.zenoh
config, rate, seconds = json.loads(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
session = rtloop.zenoh.open_session(config)
publisher = session.declare_publisher("KEY/setpoints/age")
while not publisher.matching_status.matching:
    time.sleep(0.01)
header = rtloop.zenoh.pack(0.0, "f8")[:-8]
number = 1
publisher.put(header + struct.pack("<d", time.monotonic()), attachment=struct.pack("<QQ", 1, number))
time.sleep(0.2)  # a receiver counts from the first number that it sees
begun = time.monotonic()
while (now := time.monotonic()) < begun + seconds:
    if number - 1 < (now - begun) * rate:
        number += 1
        publisher.put(header + struct.pack("<d", now), attachment=struct.pack("<QQ", 1, number))
    elif rate < 10_000:
        time.sleep(0.0003)
time.sleep(0.5)
number += 1
publisher.put(header + struct.pack("<d", time.monotonic()), attachment=struct.pack("<QQ", 1, number))
time.sleep(0.5)  # so that it is sent before the session closes
print(number)
""".replace("KEY", KEY)


def send(there: dict[str, Any], rate: float, seconds: float) -> int:
    """Send setpoints, and return their number."""
    command = [sys.executable, "-P", "-c", SENDER, json.dumps(there), str(rate), str(seconds)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def through_bridge(rate: float, seconds: float) -> tuple[list[float], dict[str, int]]:
    """Return the ages of the setpoints that a bridge takes, in s, and the counts of all setpoints."""
    from rtloop.zenoh import Bridge

    ages: list[float] = []

    def is_allowed(sent: float) -> bool:
        ages.append(time.monotonic() - sent)
        return True

    here, there = endpoints()
    loop = PyLoop(lambda cycle: None, "1kHz", name="setpoints", record=64)
    with Bridge(loop, key=KEY, config=here, setpoints={"age": (Latest("f8"), is_allowed)}) as bridge:
        sent = send(there, rate, seconds)
        counts = bridge.stats
    found = {"sent": sent, "accepted": counts.accepted, "refused": counts.refused, "skipped": counts.skipped}
    found["uncounted"] = sent - counts.accepted - counts.refused - counts.skipped
    return ages, found


def through_callback(rate: float, seconds: float) -> list[float]:
    """Return the ages of the setpoints in a callback that reads each and writes it into a Latest."""
    from rtloop.zenoh import open_session, unpack

    ages: list[float] = []
    latest = Latest("f8")

    def take(sample: Any) -> None:
        value = unpack(sample.payload.to_bytes()).records[0]
        ages.append(time.monotonic() - value)
        latest.write(value)

    here, there = endpoints()
    session = open_session(here)
    subscriber = session.declare_subscriber(f"{KEY}/setpoints/age", take)
    try:
        send(there, rate, seconds)
    finally:
        subscriber.undeclare()
        session.close()
    return ages


def endpoints() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the configurations of a receiver and of its sender."""
    address = [free_address()]
    return (
        {**QUIET, "listen": {"endpoints": address}},
        {**QUIET, "mode": "client", "connect": {"endpoints": address}},
    )


def main() -> int:
    """Run the benchmark."""
    made = parser(str(__doc__), pairs=3)
    made.add_argument("--seconds", type=positive, default=3, metavar="S", help="length of a run (3)")
    options = made.parse_args()
    need_module("zenoh", "eclipse-zenoh")
    is_over = threading.Event()

    def never_rest() -> None:
        while not is_over.is_set():
            pass

    threading.Thread(target=never_rest, daemon=True).start()
    claims, counts = [], []
    try:
        for rate in (1_000, 100_000):
            ours, theirs = [], []
            for _ in range(options.pairs):
                ages, found = through_bridge(rate, options.seconds)
                ours.append(float(np.quantile(ages, 0.999)) * 1e3)
                counts.append({"rate": rate, **found})
                theirs.append(float(np.quantile(through_callback(rate, options.seconds), 0.999)) * 1e3)
            target = 2 if rate < 10_000 else 1  # a callback keeps up at the slow rate
            claims.append(claim(f"age at {rate} a second, p99.9", "ms", ours, "callback", theirs, target=target))
    except RtloopError as error:
        sys.exit(str(error))
    finally:
        is_over.set()
    print_claims("Age of setpoints next to a busy Python thread", claims)
    print_table(
        "Counts of setpoints",
        list(counts[0]),
        [[f"{value:,}" for value in one.values()] for one in counts],
    )
    write_json(options.json, benchmark="setpoints", options=vars(options), claims=claims, counts=counts)
    return exit_code(claims) or int(any(one["uncounted"] for one in counts))


if __name__ == "__main__":
    run_script(main)

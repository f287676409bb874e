"""Run the cascade, prove from its records that the phases hold, and report how old the data at the motor was."""

import sys
import threading

import numpy as np
from cascade import Current, Planning, Velocity

from rtloop import Chain, LoopGroup

duration = sys.argv[1] if len(sys.argv) > 1 else "3s"
picture = sys.argv[2] if len(sys.argv) > 2 else None
current = Current("10kHz", name="current", strict=False)
velocity = Velocity("1kHz", current, name="velocity", phase="20us", strict=False)
planning = Planning("100Hz", current, velocity, name="planning", phase="40us", strict=False)
chains = [
    Chain([current, velocity, current], via=[current.to_velocity, current.setpoint], max_age="3ms", name="inner loop"),
    Chain(
        [current, planning, velocity, current],
        via=[current.to_planning, velocity.setpoint, current.setpoint],
        max_age="15ms",
        name="outer loop",
    ),
]
group = LoopGroup([current, velocity, planning], name="servo", chains=chains)

parts = []
has_ended = threading.Event()


def collect():
    """Drain the log while the loops run."""
    while not has_ended.wait(0.2):
        parts.append(current.log.drain())


collector = threading.Thread(target=collect)
collector.start()
try:
    stats = group.run(duration)
finally:
    has_ended.set()
    collector.join()
log = np.concatenate([*parts, current.log.drain()])

for name, s in stats.items():
    print(s)
    settings = group.settings[name]
    releases = log["release"] if name == "current" else s.records["release"]  # the log has all cycles, however many
    off = (releases - group.origin_ns - settings.phase_ns) % settings.period_ns
    print(f"{name}: {len(off)} releases recorded, {np.count_nonzero(off)} of them off the common grid\n")
    if off.any():
        raise SystemExit(f"{name} has left the grid")

followed = log[log["seen"] > 0]
age = (followed["release"] - followed["seen"]) / 1000
print(f"age of what the current loop followed: {np.median(age):.0f} us (median), at most {age.max():.0f} us\n")
print("Traced through the records, from the release that saw the motor to the end of the step that acted on it:")
ages = group.ages(percentile=99.9)
print(ages, "\n")
inner = ages["inner loop"]
if (inner.values < inner.releases - log["seen"][np.searchsorted(log["release"], inner.releases)]).any():
    raise SystemExit("the timestamps show older data than the records")
print(f"the plan's final error was {planning.error:+.4f} rad; {current.log.dropped} records dropped")
if len(log) + current.log.dropped != stats["current"].cycles:
    raise SystemExit(f"{stats['current'].cycles} cycles, but {len(log)} records")
if not any(s.missed for s in stats.values()) and abs(planning.error) > 0.2:
    raise SystemExit("the motor does not follow its plan")
if picture:
    group.plot(picture)

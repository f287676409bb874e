"""Run somebody else's controller at 1 kHz and print what it counted, and what the loop says, as JSON."""

from __future__ import annotations

import importlib
import json
import sys
import warnings

import rtloop

COUNTERS = (
    "steps", "enters", "leaves", "overruns", "misnumbered", "first_release", "last_release", "last_start", "missed",
    "early", "backwards", "position", "t",
)  # fmt: skip


def main(module: str) -> None:
    servo_class = importlib.import_module(module).Servo
    assert issubclass(servo_class, rtloop.RTLoop)
    warnings.simplefilter("ignore", rtloop.RTSetupWarning)  # without privileges it runs degraded

    loop = servo_class("1kHz", strict=False, name="servo")
    stats = loop.run(duration="500ms")
    report = {name: getattr(loop, name) for name in COUNTERS}
    report["stats"] = {"cycles": stats.cycles, "missed": stats.missed, "overruns": stats.overruns}
    report["period"] = loop.settings.period_ns

    stopper = servo_class("1kHz", strict=False)
    stopper.stop_after = 50
    report["stopped"] = {"cycles": stopper.run(duration="5s").cycles, "steps": stopper.steps, "state": stopper.state}
    report["rtloop"] = rtloop.__file__
    report["include"] = rtloop.get_include()
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])

"""An FMU at 1 kHz: its functions called from C by a loop, and by FMPy's own Python."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import Any

from counterpart_rows import Figures, modules_missing, run_client
from counterpart_rows._grid import KEPT, PERIOD_NS, PRIORITY, judge, run_in_python, run_in_rtloop

ORDER = 5
TITLE = "FMU of OpenModelica under PID control at 1 kHz"
REFEREE = KEPT
SIDES = ("rtloop", "fmpy")
NEEDS = {"fmpy": "pip install --no-deps fmpy==0.3.32", "gemseo_fmu": "pip install --no-deps gemseo-fmu==3.1.1",
         "lxml": "pip install attrs lark lxml msgpack"}  # fmt: skip

EXAMPLE = Path(__file__).parents[2] / "examples" / "fmu"
SETPOINT, KP, KI, KD = -0.5, 2e3, 4e5, 80.0  # as in the example


def missing() -> dict[str, str]:
    """Return what is not installed."""
    return modules_missing(NEEDS)


@functools.cache
def folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder in which each client extracts the FMU."""
    return tempfile.TemporaryDirectory(prefix="rtloop-fmu-")


def run(side: str, company: str, seconds: float) -> Figures:
    """Run one side."""
    result = run_client("fmu", side, company, seconds, folder().name)
    return judge(result.pop("cycles"), result)


def client(side: str, seconds: float, where: str) -> dict[str, Any]:
    """Control the FMU with one of the sides; return its cycles."""
    sys.path.insert(0, str(EXAMPLE))
    import fmpy
    import plant

    import rtloop

    built = rtloop.build(EXAMPLE / "fmu.pyx")  # both sides, for the FMU's messages
    with tempfile.TemporaryDirectory(dir=where) as own:
        slave, force, position = plant.initialised(Path(own) / "fmu", built.logger_address())
        if side == "rtloop":
            record = round(seconds * 1e9 / PERIOD_NS) + 1000
            loop = built.Controlled(slave, force, position, priority=PRIORITY, record=record, guard="count")
            cycles = run_in_rtloop(loop, seconds)
            reached = loop.log.drain()["position"][-1]
            said = {"page faults": sum(loop.stats.page_faults), "guard": str(loop.stats.guard)}
        else:
            cycles, said = run_in_python(in_python(slave, force, position), seconds), {}
            (reached,) = slave.getReal([position])
        slave.terminate()
    return {"cycles": cycles, "position, m": float(reached), "messages": built.messages(), "fmpy": fmpy.__version__,
            **said}  # fmt: skip


def in_python(slave: Any, force: int, position: int) -> Any:
    """Return the same controller as a function of Python, with the calls of FMPy's own master."""
    dt = PERIOD_NS * 1e-9
    done, integral, output = 0, 0.0, 0.0
    (last,) = slave.getReal([position])

    def step() -> None:
        nonlocal done, integral, output, last
        slave.setReal([force], [output])
        slave.doStep(currentCommunicationPoint=done * dt, communicationStepSize=(done + 1) * dt - done * dt)
        done += 1
        (now,) = slave.getReal([position])
        integral += KI * (SETPOINT - now) * dt
        output = KP * (SETPOINT - now) + integral - KD * (now - last) / dt
        last = now

    return step

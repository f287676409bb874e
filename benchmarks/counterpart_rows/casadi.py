"""CasADi at 1 kHz: a nonlinear program in the C code that it generates, solved by a loop, and CasADi's own Python."""

from __future__ import annotations

import functools
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from counterpart_rows import Figures, modules_missing, run_client
from counterpart_rows._grid import KEPT, PERIOD_NS, PRIORITY, judge, run_in_python, run_in_rtloop

ORDER = 4
TITLE = "CasADi, nonlinear model-predictive control at 1 kHz"
REFEREE = KEPT
SIDES = ("rtloop", "casadi")
NEEDS = {"casadi": "pip install casadi", "osqp": "pip install osqp", "scipy": "pip install scipy",
         "jinja2": "pip install jinja2"}  # fmt: skip

EXAMPLE = Path(__file__).parents[2] / "examples" / "mpc"
GOAL, ROPE = 2.0, 1.8  # m


def missing() -> dict[str, str]:
    """Return what is not installed."""
    return modules_missing(NEEDS)


@functools.cache
def generated() -> tempfile.TemporaryDirectory[str]:
    """Generate the C code of the example, once for all runs."""
    folder = tempfile.TemporaryDirectory(prefix="rtloop-casadi-")
    for name in ("mpc.pyx", "crane.py"):
        shutil.copy(EXAMPLE / name, folder.name)
    crane(folder.name).generate(Path(folder.name) / "generated")
    return folder


def crane(folder: str) -> Any:
    """Import the example's description of the problem."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import crane

    return crane


def run(side: str, company: str, seconds: float) -> Figures:
    """Run one side."""
    result = run_client("casadi", side, company, seconds, generated().name)
    return judge(result.pop("cycles"), result)


def client(side: str, seconds: float, folder: str) -> dict[str, Any]:
    """Move the crane with one of the sides; return its cycles."""
    import casadi

    problem = crane(folder)
    if side == "rtloop":
        import rtloop

        record = round(seconds * 1e9 / PERIOD_NS) + 1000
        loop = rtloop.build(Path(folder) / "mpc.pyx").Nonlinear(
            PERIOD_NS, priority=PRIORITY, record=record, guard="count"
        )
        loop.parameters.update(goal=GOAL, rope=ROPE)
        cycles = run_in_rtloop(loop, seconds)
        return {"cycles": cycles, "unsolved": loop.unsolved, "page faults": sum(loop.stats.page_faults),
                "guard": str(loop.stats.guard), "casadi": casadi.__version__}  # fmt: skip
    function = problem.nonlinear_step()
    z, u, reference = [0.0, 0.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0], [0.0, 1.0]
    found: Any = [np.zeros(function.numel_in(index)) for index in (1, 2, 3)]
    dt, unsolved = PERIOD_NS * 1e-9, 0

    def step() -> None:
        """Move the crane and its references as the example does, and solve."""
        nonlocal found, unsolved
        z[3] -= dt * (u[0] * math.cos(z[2]) + 9.81 * math.sin(z[2]) + 2 * z[5] * z[3]) / z[4]
        z[1] += dt * u[0]
        z[5] += dt * u[1]
        z[0] += dt * z[1]
        z[2] += dt * z[3]
        z[4] += dt * z[5]
        most = problem.SPEED * dt
        for index, goal in enumerate((GOAL, ROPE)):
            reference[index] += max(-most, min(most, goal - reference[index]))
        answer = function(z + reference, *found)
        u[0], u[1] = float(answer[0][0]), float(answer[0][1])
        if math.isfinite(u[0]):
            found = answer
        else:
            unsolved += 1

    return {"cycles": run_in_python(step, seconds), "unsolved": unsolved, "casadi": casadi.__version__}

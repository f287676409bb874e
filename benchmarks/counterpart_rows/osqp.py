"""OSQP at 1 kHz: the C code that it generates, solved by a loop, and OSQP's own Python."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpart_rows import Figures, modules_missing, run_client
from counterpart_rows._grid import KEPT, PERIOD_NS, PRIORITY, judge, run_in_python, run_in_rtloop

ORDER = 3
TITLE = "OSQP, model-predictive control at 1 kHz"
REFEREE = KEPT
SIDES = ("rtloop", "osqp")
NEEDS = {"osqp": "pip install osqp", "scipy": "pip install scipy", "jinja2": "pip install jinja2"}

HORIZON, STEP_S, FORCE = 20, 0.01, 5.0
FIRST = 2 * (HORIZON + 1)  # of the inputs among the variables


def missing() -> dict[str, str]:
    """Return what is not installed."""
    return modules_missing(NEEDS)


def solver() -> tuple[Any, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Set up the problem of a double integrator: the solver, and the lower and upper bounds."""
    import osqp
    from scipy import sparse

    a = np.array([[1, STEP_S], [0, 1]])
    b = np.array([[STEP_S**2 / 2], [STEP_S]])
    states, inputs = FIRST, HORIZON
    cost = sparse.block_diag(
        [sparse.kron(sparse.eye(HORIZON + 1), sparse.diags([10.0, 0.1])), 0.01 * sparse.eye(inputs)], format="csc"
    )
    follow = sparse.kron(sparse.eye(HORIZON + 1), -sparse.eye(2)) + sparse.kron(sparse.eye(HORIZON + 1, k=-1), a)
    drive = sparse.kron(sparse.vstack([sparse.csc_matrix((1, HORIZON)), sparse.eye(HORIZON)]), b)
    bounded = sparse.hstack([sparse.csc_matrix((inputs, states)), sparse.eye(inputs)])
    rows = sparse.vstack([sparse.hstack([follow, drive]), bounded], format="csc")
    upper = np.r_[np.zeros(states), np.full(inputs, FORCE)]
    lower = -upper
    made = osqp.OSQP()
    made.setup(cost, np.zeros(states + inputs), rows, lower, upper, verbose=False)
    return made, lower, upper


@functools.cache
def generated() -> tempfile.TemporaryDirectory[str]:
    """Generate the C code, once for all runs."""
    folder = tempfile.TemporaryDirectory(prefix="rtloop-osqp-")
    solver()[0].codegen(folder.name, prefix="mpc_", force_rewrite=True, parameters="vectors")
    shutil.copy(Path(__file__).with_name("osqp_mpc.pyx"), folder.name)
    return folder


def run(side: str, company: str, seconds: float) -> Figures:
    """Run one side."""
    result = run_client("osqp", side, company, seconds, generated().name)
    return judge(result.pop("cycles"), result)


def client(side: str, seconds: float, folder: str) -> dict[str, Any]:
    """Control the plant with one of the sides; return its cycles."""
    import osqp

    made, lower, upper = solver()
    if side == "rtloop":
        import rtloop

        built = rtloop.build(Path(folder) / "osqp_mpc.pyx")
        record = round(seconds * 1e9 / PERIOD_NS) + 1000
        loop = built.Controller(PERIOD_NS, lower, upper, FIRST, STEP_S, priority=PRIORITY, record=record, guard="count")
        cycles = run_in_rtloop(loop, seconds)
        return {"cycles": cycles, "unsolved": loop.unsolved, "page faults": sum(loop.stats.page_faults),
                "guard": str(loop.stats.guard), "osqp": osqp.__version__}  # fmt: skip
    state, count, unsolved = np.array([1.0, 0.0]), 0, 0
    a = np.array([[1, STEP_S], [0, 1]])
    b = np.array([STEP_S**2 / 2, STEP_S])

    def step() -> None:
        nonlocal state, count, unsolved
        lower[:2] = upper[:2] = -state
        made.update(l=lower, u=upper)
        result = made.solve()
        unsolved += result.info.status_val != 1
        state = a @ state + b * result.x[FIRST]
        count += 1
        if count % 1000 == 0:
            state[0] = 1

    return {"cycles": run_in_python(step, seconds), "unsolved": unsolved, "osqp": osqp.__version__}

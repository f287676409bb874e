"""MuJoCo at 1 kHz: mj_step called from C by a loop, and by MuJoCo's own Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from counterpart_rows import Figures, modules_missing, run_client
from counterpart_rows._grid import KEPT, PERIOD_NS, PRIORITY, judge, run_in_python, run_in_rtloop

ORDER = 2
TITLE = "MuJoCo, arm and contacts at 1 kHz"
REFEREE = f"{KEPT}; the states of both sides are compared with mj_step's, bit for bit"
SIDES = ("rtloop", "mujoco")
NEEDS = {"mujoco": "pip install mujoco"}

LINKS, BOXES = 7, 6


def model_text() -> str:
    """Return a chain of hinges over a floor with boxes on it, as MJCF."""
    geom = '<geom type="capsule" fromto="0 0 0 0 0 0.2" size="0.04" mass="1"/>'
    chain = "".join(
        f'<body pos="0 0 {0.2 if link else 1.6}"><joint axis="{link % 2} {1 - link % 2} 0" damping="1"/>{geom}'
        for link in range(LINKS)
    )
    chain += "</body>" * LINKS
    boxes = "".join(
        f'<body pos="{0.3 * box} 0.5 0.1"><freejoint/><geom type="box" size="0.1 0.1 0.1" mass="1"/></body>'
        for box in range(BOXES)
    )
    return (f'<mujoco><option timestep="{PERIOD_NS * 1e-9}"/><worldbody><geom type="plane" size="5 5 0.1"/>'
            f"{chain}{boxes}</worldbody></mujoco>")  # fmt: skip


def missing() -> dict[str, str]:
    """Return what is not installed."""
    return modules_missing(NEEDS)


def run(side: str, company: str, seconds: float) -> Figures:
    """Run one side."""
    result = run_client("mujoco", side, company, seconds)
    return judge(result.pop("cycles"), result)


def client(side: str, seconds: float) -> dict[str, Any]:
    """Step the model with one of the sides; return its cycles."""
    import mujoco
    import numpy as np

    model = mujoco.MjModel.from_xml_string(model_text())
    data, again = mujoco.MjData(model), mujoco.MjData(model)
    if side == "rtloop":
        import rtloop

        built = rtloop.build(Path(__file__).with_name("mujoco_plant.pyx"))
        record = round(seconds * 1e9 / PERIOD_NS) + 1000
        loop = built.Plant(PERIOD_NS, model, data, priority=PRIORITY, record=record, guard="count")
        cycles = run_in_rtloop(loop, seconds)
        said = {"page faults": sum(loop.stats.page_faults), "guard": str(loop.stats.guard)}
    else:
        cycles = run_in_python(lambda: mujoco.mj_step(model, data), seconds)
        said = {}
    steps = round(data.time / model.opt.timestep)
    mujoco.mj_step(model, again, nstep=steps)
    if not np.array_equal(data.qpos, again.qpos):
        raise RuntimeError(f"after {steps} steps the state is not that of mj_step")
    return {"cycles": cycles, "steps": steps, "mujoco": mujoco.__version__, **said}

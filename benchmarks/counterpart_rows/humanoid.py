"""A walking policy at 50 Hz: compiled as a loop, and in the Python loop of its authors, on the same simulated robot."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from counterpart_rows import Figures, modules_missing, run_client
from counterpart_rows._grid import PRIORITY, judge

ORDER = 6
TITLE = "Humanoid, walking policy at 50 Hz"
REFEREE = (
    "a cycle counts if its targets are written before the next; robot and drives are the same compiled loops at 1 kHz"
)
SIDES = ("rtloop", "holosoma-inference")
NEEDS = {"mujoco": "pip install mujoco", "onnxruntime": "pip install onnxruntime",
         "holosoma_inference": "pip install --no-deps holosoma-inference==0.1.3"}  # fmt: skip

EXAMPLE = Path(__file__).parents[2] / "examples" / "humanoid"
PERIOD_NS = 20_000_000
FORWARD = 0.5  # m/s


def missing() -> dict[str, str]:
    """Return what is not installed, the environment of the authors' package included."""
    lacking = modules_missing(NEEDS)
    if not lacking and not (authors().FOLDER / "installed").exists():
        lacking["environment of holosoma-inference"] = "python examples/humanoid/authors.py --install"
    return lacking


def authors() -> Any:
    """Import the example's start of the authors' loop."""
    if str(EXAMPLE) not in sys.path:
        sys.path.insert(0, str(EXAMPLE))
    import authors

    return authors


def run(side: str, company: str, seconds: float) -> Figures:
    """Run one side; the company is in the interpreter of the policy."""
    here = company if side == "rtloop" else "alone"
    result = run_client("humanoid", side, here, seconds, company)
    return judge(result.pop("cycles"), result, PERIOD_NS)


def client(side: str, seconds: float, company: str) -> dict[str, Any]:
    """Let the robot walk by one of the sides; return the cycles of the policy."""
    start = authors().start
    import robot

    import rtloop

    humanoid = rtloop.build(EXAMPLE / "humanoid.pyx")
    it, share = robot.load("fastsac"), f"counterparts-{os.getpid()}"
    body = humanoid.Robot(it.model, robot.standing(it), share=f"{share}/pose", name="robot", priority=PRIORITY)
    target = None if side == "rtloop" else f"{share}/target"  # a shared one has its writer in the other process
    drives = humanoid.Drives(
        "1kHz", body, it.kp, it.kd, it.limit, robot.DEFAULT, share=target, name="drives", phase="300us",
        priority=PRIORITY,
    )  # fmt: skip
    loops = [body, drives]
    if side == "rtloop":
        policy = humanoid.Policy(
            PERIOD_NS, body, drives, robot.runtime(), it.policy, robot.DEFAULT, robot.ACTION_SCALE, name="policy",
            phase="500us", priority=PRIORITY, record=round(seconds * 1e9 / PERIOD_NS) + 1000, tune_malloc=True,
        )  # fmt: skip
        policy.parameters["forward"] = FORWARD
        with robot.may_fall(body), rtloop.LoopGroup([*loops, policy], name="ours", on_failure="keep"):
            time.sleep(seconds)
        records = policy.stats.records
        cycles = list(zip(records["release"].tolist(), records["end"].tolist(), strict=True))
    else:
        body.parameters["held"] = 1
        options = [f"--seconds={seconds}", f"--forward={FORWARD}", f"--priority={PRIORITY}", "--cycles"]
        options += ["--busy"] * ("busy" in company)
        with (
            robot.may_fall(body),
            rtloop.LoopGroup(loops, name="theirs", on_failure="keep"),
            start(authors().FOLDER, f"{share}/pose", target, *options) as process,
        ):
            body.parameters["held"] = 0
            cycles = json.loads(process.stdout.read().splitlines()[-1])
    log = body.log.drain()
    walked = float(log["position"][-1, 0] - log["position"][0, 0])
    return {"cycles": cycles, "falls": int(body.state == "failed"), "walked, m": round(walked, 3)}

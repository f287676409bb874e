"""The planner: a step in Python that turns sightings into goals, a hundred times a second, in a process of its own."""

import time

import numpy as np

import rtloop

SIGHTING = GOAL = np.dtype([("angle", "f8"), ("seen", "i8")], align=True)


def make(share: str) -> rtloop.ProcessLoop:
    """Return the loop. Each of its starts is a new process."""
    state = {"share": share, "angle": 0.0, "seen": 0, "speed": 0.0}
    return rtloop.ProcessLoop(step, "100Hz", setup=connect, data=state, strict=False, name="planner")


def connect(state: dict) -> None:
    """Open both exchanges, before or after the camera starts; take over from a planner that was killed."""
    state["sighting"] = rtloop.Latest(SIGHTING, share=f"{state['share']}/sighting", role="reader")
    state["goal"] = rtloop.Latest(GOAL, share=f"{state['share']}/goal")
    print(f"planner: started, with {state['goal'].written} values written before it", flush=True)


def step(cycle: rtloop.Cycle, state: dict) -> None:
    """Share a goal: where the target is now, more or less."""
    if state["sighting"].is_new:
        found = state["sighting"].read()
        if state["seen"] and found["seen"] > state["seen"]:
            state["speed"] = 1e9 * (found["angle"] - state["angle"]) / (found["seen"] - state["seen"])
        state["angle"], state["seen"] = float(found["angle"]), int(found["seen"])
    if state["seen"]:
        passed = min(1e-9 * (time.monotonic_ns() - state["seen"]), 0.1)
        state["goal"].write((state["angle"] + 0.7 * state["speed"] * passed, state["seen"]))

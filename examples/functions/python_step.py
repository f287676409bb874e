"""A step in Python: the same controller, for a prototype."""

state = {"target": 1.0, "position": 0.0}


def step(cycle):  # a rtloop.Cycle: index, release, start, period, missed, t, dt
    command = 4.0 * (state["target"] - state["position"])
    state["position"] += command * cycle.dt

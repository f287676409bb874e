"""A step in Python for a process of its own: functions at the top level of a module, which that process imports."""


def step(cycle, state):
    command = state["gain"] * (state["target"] - state["position"])
    state["position"] += command * cycle.dt


def leave(state):
    print(f"the drive is off at {float(state['position']):.2f}")

"""Run a compiled function and Python functions as loops, for a second each."""

import numpy as np
import python_step

import rtloop

try:
    import numba_step
except ModuleNotFoundError as error:
    print(f"{error}; skipping the compiled step\n")
else:
    step, leave, state = numba_step.step, numba_step.leave, numba_step.state
    with rtloop.FunctionLoop(step, "1kHz", leave=leave, data=state, strict=False, name="compiled") as loop:
        state[0] = 2.0  # the loop sees it in its next cycle
        loop.join("1s")
    print(f"{loop.stats}\n\nthe position is {state[1]:.2f} on its way to 2, the command is {state[2]}\n")

stats = rtloop.PyLoop(python_step.step, "100Hz", strict=False, name="python").run("1s")
print(f"{stats}\n\nthe position is {python_step.state['position']:.2f} on its way to 1")

state = np.array((1.0, 4.0, 0.0), [("target", "f8"), ("gain", "f8"), ("position", "f8")])
loop = rtloop.ProcessLoop(
    "process_step:step",
    "100Hz",
    leave="process_step:leave",
    data=state,
    parameters=["target", "gain"],
    signals=["position"],
    strict=False,
    name="apart",
)
with loop:
    loop.parameters["target"] = 2.0
    loop.join("1s")
    print(f"the position is {loop.signals.latest()['position']:.2f} on its way to 2")
print(f"{loop.stats}")

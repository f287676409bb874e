"""Run a compiled function and a Python function as loops, for a second each."""

import python_step

import rtloop

try:
    import numba_step
except ModuleNotFoundError as error:
    print(f"{error}; skipping the compiled step\n")
else:
    with rtloop.FunctionLoop(numba_step.step, "1kHz", data=numba_step.state, strict=False, name="compiled") as loop:
        numba_step.state[0] = 2.0  # the loop sees it in its next cycle
        loop.join("1s")
    print(f"{loop.stats}\n\nthe position is {numba_step.state[1]:.2f} on its way to 2\n")

stats = rtloop.PyLoop(python_step.step, "100Hz", strict=False, name="python").run("1s")
print(f"{stats}\n\nthe position is {python_step.state['position']:.2f} on its way to 1")

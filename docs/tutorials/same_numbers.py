"""Run the Python step and the compiled step for ten virtual seconds, and compare the final positions."""

import sys

sys.path.insert(0, ".")

import numba_step
import python_step

import rtloop

rtloop.PyLoop(python_step.step, "1kHz").simulate("10s")
rtloop.FunctionLoop(numba_step.step, "1kHz", data=numba_step.state).simulate("10s")

print(f"Python: {python_step.state['position']!r}")
print(f"Numba:  {float(numba_step.state[1])!r}")
assert python_step.state["position"] == numba_step.state[1]

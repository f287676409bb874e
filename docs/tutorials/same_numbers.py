"""Run the step in Python and the compiled one for ten virtual seconds, and compare where they end."""

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

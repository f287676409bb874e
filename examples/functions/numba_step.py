"""A step that Numba compiles (pip install 'rtloop[numba]'), and the array that it shares with Python."""

import numpy as np
from numba import carray, cfunc

import rtloop
import rtloop.numba

state = np.array([1.0, 0.0, 0.0])  # target, position, command


@cfunc(rtloop.numba.signature)
def step(cycle, data):
    state = carray(data, (3,), dtype=np.float64)
    state[2] = 4.0 * (state[0] - state[1])
    state[1] += state[2] * carray(cycle, 1)[0].dt
    return rtloop.RT_CONTINUE


@cfunc(rtloop.numba.leave_signature)
def leave(data):  # after the last cycle, however the loop ends
    carray(data, (3,), dtype=np.float64)[2] = 0.0

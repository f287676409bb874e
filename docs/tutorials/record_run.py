"""Record the cart of examples/exchange for four seconds while Python moves its setpoint."""

import sys
import time

sys.path.insert(0, ".")

from exchange import Follower

import rtloop

loop = Follower("1kHz", strict=False)
with rtloop.Recorder(loop.log, "run.npy") as recorder, loop:
    for setpoint in (0.1, -0.1, 0.2, 0.0):
        loop.parameters.write((setpoint, 900.0, 40.0))
        time.sleep(1)

loop.stats.save("run.npz")
print(f"{loop.stats.cycles} cycles, {recorder.written} records written, {recorder.lost} lost")

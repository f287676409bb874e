"""Play the other host: send a setpoint every 10 ms until killed."""

import json
import math
import sys
import time

import rtloop.zenoh

key, config = sys.argv[1], json.loads(sys.argv[2])
session = rtloop.zenoh.open_session(config)
print("sending", flush=True)
while True:
    angle = 1.0 + 0.3 * math.sin(10 * time.monotonic())
    session.put(f"{key}/setpoints/angle", rtloop.zenoh.pack(angle, "f8"))
    time.sleep(0.01)

"""The planner: a process of its own, which writes a setpoint a hundred times a second until it is killed."""

import sys
import time

import rtloop

cart, goal = sys.argv[1], float(sys.argv[2])
with rtloop.Latest("f8", share=f"{cart}/setpoint") as setpoint:  # takes over from a planner that has died
    print(f"planner: goal {goal:+.2f} m, {setpoint.written} setpoints before it", flush=True)
    while True:
        setpoint.write(goal)
        time.sleep(0.01)

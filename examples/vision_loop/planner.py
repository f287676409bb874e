"""The planner: a process that turns sightings into goals, a hundred times a second, at ordinary priority."""

import sys
import time

import numpy as np

import rtloop

SIGHTING = GOAL = np.dtype([("angle", "f8"), ("seen", "i8")], align=True)


def main(share: str) -> None:
    """Share a goal a hundred times a second, until this process is killed."""
    sighting = rtloop.Latest(SIGHTING, share=f"{share}/sighting", role="reader")  # before or after the camera starts
    with rtloop.Latest(GOAL, share=f"{share}/goal") as goal:
        print("planner", goal.written, flush=True)
        turned, angle, seen, speed = 0.0, 0.0, 0, 0.0
        while True:
            if sighting.is_new:
                found = sighting.read()
                if seen and found["seen"] > seen:
                    speed = 1e9 * (found["angle"] - angle) / (found["seen"] - seen)
                angle, seen = float(found["angle"]), int(found["seen"])
            if seen:
                passed = min(1e-9 * (time.monotonic_ns() - seen), 0.1)
                turned = angle + 0.7 * speed * passed  # where the target is now, more or less
                goal.write((turned, seen))
            time.sleep(0.01)


if __name__ == "__main__":
    main(sys.argv[1])

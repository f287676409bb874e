"""The loop: a process that turns the head a thousand times a second, until its input ends."""

import sys

from servo import Servo

OLDEST_GOAL, OLDEST_IMAGE = 50_000_000, 300_000_000  # ns; without younger ones, the head stays where it is

if __name__ == "__main__":
    loop = Servo("1kHz", share=sys.argv[1], oldest_goal=OLDEST_GOAL, oldest_image=OLDEST_IMAGE, strict=False)
    with loop:
        print("loop", loop.angle.written, flush=True)
        sys.stdin.read()
    print(loop.stats)

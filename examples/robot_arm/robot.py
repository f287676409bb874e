"""Play the robot in a process of its own: print the port, and run until standard input is closed."""

import argparse
import sys
import warnings

from robot_arm import Robot

from rtloop import RTSetupWarning

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tolerance", type=int, default=20)
robot = Robot("1kHz", tolerance=parser.parse_args().tolerance, priority=85, strict=False, name="robot")
warnings.simplefilter("ignore", RTSetupWarning)  # the controller's own warning is enough
with robot:
    print(robot.address[1], flush=True)
    sys.stdin.read()
print(robot.stats)
print(*(f"{name}: {value}" for name, value in robot.report.items()), sep=", ")

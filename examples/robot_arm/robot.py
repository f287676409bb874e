"""The robot's process, which stands for the robot: it prints where it listens, and works until its input is closed."""

import argparse
import sys
import warnings

from robot_arm import Robot

from rtloop import RTSetupWarning

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--tolerance", type=int, default=20)
robot = Robot("1kHz", tolerance=parser.parse_args().tolerance, priority=85, strict=False, name="robot")
warnings.simplefilter("ignore", RTSetupWarning)  # the controller's own grants say the same
with robot:
    print(robot.address[1], flush=True)
    sys.stdin.read()
print(robot.stats)
print(*(f"{name}: {value}" for name, value in robot.report.items()), sep=", ")

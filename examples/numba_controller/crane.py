"""A crane with a swinging load: control law and simulated plant, in Python that Numba compiles."""

import errno
import math

import numpy as np

import rtloop

try:
    import numba

    import rtloop.numba
except ModuleNotFoundError:
    numba = None

#: The fields that the step shares with Python. Each number may be changed while the loop runs.
CRANE = np.dtype(
    [
        ("goal", "f8"), ("reference", "f8"),      # m: the target, and the moving reference
        ("position", "f8"), ("velocity", "f8"),   # m, m/s, of the trolley
        ("angle", "f8"), ("rate", "f8"),          # rad, rad/s, of the rope
        ("acceleration", "f8"),                   # m/s^2: the command
        ("worst", "f8"),                          # rad: the largest angle so far
    ],
    align=True,
)  # fmt: skip
ROPE, GRAVITY, DAMPING = 1.5, 9.81, 0.02  # m, m/s^2, 1/s
SPEED, LIMIT = 0.8, 2.0  # m/s, m/s^2
# The linear-quadratic regulator for Q = diag(20, 1, 100, 10), R = 1: of position, velocity, angle and rate.
GAINS = (4.47, 4.59, -12.2, -1.41)
TOO_FAR, FAILED = 0.5, -errno.ERANGE  # rad, and the code with which the loop fails beyond it


def compiled(function):
    """Compile a function for the step; without Numba, return it unchanged.

    With ``error_model="numpy"`` a division by zero gives inf. An exception would take the GIL without ending the loop.
    """
    return numba.njit(error_model="numpy")(function) if numba else function


@compiled
def clip(value, limit):
    return min(max(value, -limit), limit)


@compiled
def control(crane, dt):
    """Set the acceleration: follow the reference, which moves steadily to the goal, and damp the load."""
    crane.reference += clip(crane.goal - crane.reference, SPEED * dt)
    wanted = (
        GAINS[0] * (crane.reference - crane.position)
        - GAINS[1] * crane.velocity
        - GAINS[2] * crane.angle
        - GAINS[3] * crane.rate
    )
    crane.acceleration = clip(wanted, LIMIT)


@compiled
def move(crane, dt):
    """Simulate the crane; with a real one, read the sensors and set the drive here."""
    swing = -(GRAVITY * math.sin(crane.angle) + crane.acceleration * math.cos(crane.angle)) / ROPE
    crane.rate += (swing - DAMPING * crane.rate) * dt
    crane.angle += crane.rate * dt
    crane.velocity += crane.acceleration * dt
    crane.position += crane.velocity * dt
    crane.worst = max(crane.worst, abs(crane.angle))


@compiled
def update(crane, dt):
    """Run one cycle; shared by the compiled step and the Python step."""
    control(crane, dt)
    move(crane, dt)
    return rtloop.RT_CONTINUE if abs(crane.angle) < TOO_FAR else FAILED


def new_crane(goal=0.0):
    """Return a crane at rest: an array of one record, with the fields as attributes."""
    crane = np.zeros(1, CRANE).view(np.recarray)
    crane.goal = goal
    return crane


def make_loop(crane, period="500Hz", **settings):
    """Return the loop that moves a crane: compiled if Numba is installed, otherwise in Python."""
    if numba:
        return rtloop.FunctionLoop(step, period, data=crane, **settings)
    record = crane[0]  # the same memory
    return rtloop.PyLoop(lambda cycle: update(record, cycle.dt), period, **settings)


if numba:

    @numba.cfunc(rtloop.numba.signature)
    def step(cycle, data):
        return update(numba.carray(data, 1, CRANE)[0], numba.carray(cycle, 1)[0].dt)

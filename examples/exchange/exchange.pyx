"""A cart that follows a setpoint: parameters come in through a Latest, the log goes out through a Ring."""

from rtloop cimport RT_CONTINUE, Cycle, Latest, Ring, RTLoop

import numpy as np


cdef struct Parameters:
    double setpoint   # m
    double stiffness  # 1/s^2
    double damping    # 1/s


cdef struct Record:
    double t  # s
    double setpoint, position  # m

# The same structs for NumPy. align=True lays out the fields as C does.
PARAMETERS = np.dtype([("setpoint", "f8"), ("stiffness", "f8"), ("damping", "f8")], align=True)
RECORD = np.dtype([("t", "f8"), ("setpoint", "f8"), ("position", "f8")], align=True)
assert (PARAMETERS.itemsize, RECORD.itemsize) == (sizeof(Parameters), sizeof(Record))


cdef class Follower(RTLoop):
    """Pull a cart to the setpoint with a spring and a damper, and log its position."""

    cdef readonly Latest parameters
    cdef readonly Ring log
    cdef Parameters now
    cdef double position, speed

    def __init__(self, *args, **settings):
        cdef Parameters first
        super().__init__(*args, **settings)
        self.parameters = Latest(PARAMETERS)
        first.setpoint, first.stiffness, first.damping = 0.0, 900.0, 60.0
        self.parameters.write(&first)  # without it, all fields are zero until Python writes
        self.log = Ring(RECORD, 4000)  # four seconds at 1 kHz, longer than Python is ever busy

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Record record
        self.parameters.read(&self.now)  # the newest set, never a mix
        self.speed += cycle.dt * (
            self.now.stiffness * (self.now.setpoint - self.position) - self.now.damping * self.speed
        )
        self.position += cycle.dt * self.speed
        record.t, record.setpoint, record.position = cycle.t, self.now.setpoint, self.position
        self.log.push(&record)  # a full ring drops and counts it
        return RT_CONTINUE

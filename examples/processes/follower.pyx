"""A cart that follows a setpoint of another process, and stops if that process is silent."""

from rtloop cimport RT_CONTINUE, Cycle, Latest, Ring, RTLoop

import numpy as np


cdef struct Record:
    double t  # s
    double setpoint, position  # m
    double age  # s, of the setpoint

RECORD = np.dtype([("t", "f8"), ("setpoint", "f8"), ("position", "f8"), ("age", "f8")], align=True)
assert RECORD.itemsize == sizeof(Record)


cdef class Follower(RTLoop):
    """Pull a cart to the setpoint. Without a fresh one, hold the position."""

    cdef readonly Latest setpoint
    cdef readonly Ring log
    cdef double target, position, speed

    def __init__(self, *args, cart="cart", **settings):
        super().__init__(*args, **settings)
        self.setpoint = Latest("f8", share=f"{cart}/setpoint", role="reader")
        self.log = Ring(RECORD, 4000, share=f"{cart}/log")

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Record record
        cdef double target
        self.setpoint.read(&target)
        if self.setpoint.age(cycle.start) < 50_000_000:  # ns; what is older, or was never written, is not followed
            self.target = target
        else:
            self.target = self.position
        self.speed += cycle.dt * (900.0 * (self.target - self.position) - 60.0 * self.speed)
        self.position += cycle.dt * self.speed
        record.t, record.setpoint, record.position = cycle.t, self.target, self.position
        record.age = min(self.setpoint.age(cycle.start), 1_000_000_000) * 1e-9
        self.log.push(&record)  # a process that waits for it is woken after this step
        return RT_CONTINUE

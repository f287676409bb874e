"""An actuator that follows setpoints from another host, and switches to a safe output when they are too old."""

from libc.stdint cimport int64_t

from rtloop cimport RT_CONTINUE, Cycle, Latest, Ring, RTLoop

import numpy as np


cdef struct Record:
    int64_t release  # ns
    int64_t age      # ns, of the setpoint that this cycle used
    double setpoint, output

RECORD = np.dtype([("release", "i8"), ("age", "i8"), ("setpoint", "f8"), ("output", "f8")], align=True)
assert RECORD.itemsize == sizeof(Record)


cdef class Actuator(RTLoop):
    """Output the setpoint while it is not older than `max_age`, and then 0, the safe output."""

    cdef readonly Latest setpoint
    cdef readonly Ring log
    cdef readonly double output  # with a real actuator, this value is sent to it
    cdef int64_t max_age

    def __init__(self, *args, max_age, **settings):
        super().__init__(*args, **settings)
        self.setpoint = Latest("f8", clock=self.settings.clock)  # timestamped on the clock that step compares with
        self.log = Ring(RECORD, 20000)
        self.max_age = max_age

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Record record
        self.setpoint.read(&record.setpoint)
        record.age = self.setpoint.age(cycle.start)  # above any limit if there is no value yet
        self.output = record.setpoint if record.age <= self.max_age else 0.0
        record.output = self.output
        record.release = cycle.release
        self.log.push(&record)
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        """Output the safe value, however the loop ended: the setpoint may have been new to the last."""
        self.output = 0

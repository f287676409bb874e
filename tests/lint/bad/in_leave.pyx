"""The GIL, and an exception that ends leave before the actuator is at rest."""

from posix.unistd cimport usleep
from rtloop cimport RTLoop


cdef class Loop(RTLoop):
    cdef double[4] outputs
    cdef int used

    cdef void leave(self) noexcept nogil:
        usleep(1000)
        self.outputs[0] /= self.used  # BAD: division
        with gil:  # BAD: gil
            print("left")

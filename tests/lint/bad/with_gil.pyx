"""Python in the middle of a step."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        with gil:  # BAD: gil
            print(cycle.index)
        return RT_CONTINUE

"""C that takes the GIL."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from *:
    """
    static void report(void) {
        PyGILState_STATE state = PyGILState_Ensure();  // BAD: gil
        PyErr_Print();
        PyGILState_Release(state);
    }
    """
    void report() noexcept nogil


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        report()
        return RT_CONTINUE

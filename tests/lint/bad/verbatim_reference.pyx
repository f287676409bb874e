"""C that counts references."""

from cpython.object cimport PyObject
from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from *:
    """
    static void keep(PyObject *o) {
        Py_INCREF(o);  // BAD: reference
    }
    """
    void keep(PyObject *o) noexcept nogil


cdef class Loop(RTLoop):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        keep(<PyObject *>self)
        return RT_CONTINUE

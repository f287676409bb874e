"""Declarations of CPython that Cython does not ship."""

from cpython.object cimport PyObject, PyTypeObject


cdef extern from * nogil:
    """
    #if PY_VERSION_HEX >= 0x030D0000
    #define rt_py_is_ending() Py_IsFinalizing()
    #else
    #define rt_py_is_ending() _Py_IsFinalizing()
    #endif
    """
    bint rt_py_is_ending()


cdef extern from *:
    """
    #define rt_is_heap_type(type) PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)
    #define rt_set_type_name(type, name) ((type)->tp_name = (name))
    """
    bint rt_is_heap_type(PyTypeObject *type)
    void rt_set_type_name(PyTypeObject *type, const char *name)  # which is not copied


cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *value)
    object PyObject_Call(object function, tuple arguments, PyObject *keywords)
    size_t PyThread_get_stacksize()
    int PyThread_set_stacksize(size_t size)


cdef extern from "Python.h" nogil:
    ctypedef struct PyThreadState:
        pass
    ctypedef int PyGILState_STATE
    PyGILState_STATE PyGILState_Ensure()
    void PyGILState_Release(PyGILState_STATE state)
    PyThreadState *PyEval_SaveThread()
    enum:
        PyGILState_LOCKED
        PyGILState_UNLOCKED

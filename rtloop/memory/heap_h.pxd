"""Declarations of include/rtloop/heap.h, for rtloop's own modules: whoever cimports this needs the header."""

cdef extern from "../include/rtloop/heap.h" nogil:
    int rt_heap_is_glibc()
    int rt_heap_tune()
    const char *rt_heap_owner(const char *function)

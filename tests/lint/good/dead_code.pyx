"""Code that is never run, and names in strings and comments."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from *:
    """
    #include <stdio.h>
    #include <stdlib.h>
    #if 0
    static void never(void) { free(malloc(1)); }
    #endif
    #define LOG(...)
    static int quiet(int x) {
        if (0) printf("%d", x);
        if (0) { free(malloc(1)); }
    #ifdef __cplusplus
        puts("C++");
    #else
        LOG("malloc(1)");
    #endif
        /* abort(); */
        return x;  // exit(1);
    }
    """
    int quiet(int x) noexcept nogil


cdef class Loop(RTLoop):
    cdef int n
    cdef const char *text

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.n = quiet(1)  # malloc(1)
        self.text = "free(p); printf()"
        return RT_CONTINUE

"""Declarations of libc and Linux that Cython does not ship."""

from libc.stdint cimport int32_t, uint32_t


cdef extern from "<sys/mman.h>" nogil:
    enum:
        MCL_CURRENT
        MCL_FUTURE
        PROT_READ
        MAP_SHARED
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int mlock(const void *addr, size_t length)
    int munlock(const void *addr, size_t length)
    int mlockall(int flags)
    int munlockall()
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)


cdef extern from "<sys/resource.h>" nogil:
    enum:
        RLIMIT_MEMLOCK


cdef extern from * nogil:
    """
    #include <sys/mman.h>
    #ifndef MCL_ONFAULT
    #define MCL_ONFAULT 4
    #endif
    """
    enum:
        MCL_ONFAULT


cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_join(pthread_t thread, void **value)
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)

"""Declarations of libc and Linux that Cython does not ship."""

from libc.stdint cimport int32_t, uint32_t


cdef extern from "<sys/mman.h>" nogil:
    enum:
        MCL_CURRENT
        MCL_FUTURE
        PROT_READ
        PROT_WRITE
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


cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size)


cdef extern from "<unistd.h>" nogil:
    ssize_t write(int fd, const void *buffer, size_t size)
    long syscall(long number, ...)


cdef extern from "<sys/syscall.h>" nogil:
    const long SYS_clock_gettime


cdef extern from "<sched.h>" nogil:
    enum:
        CLONE_NEWNET
        CLONE_NEWUSER
    int unshare(int flags)


cdef extern from "<poll.h>" nogil:
    enum:
        POLLIN
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *files, unsigned long count, int timeout)


cdef extern from "<sys/prctl.h>" nogil:
    enum:
        PR_SET_NAME
        PR_SET_PDEATHSIG
    int prctl(int option, const char *name)


cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        pass
    cdef struct sockaddr_storage:
        pass
    int connect(int fd, const sockaddr *address, socklen_t length)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t recvfrom(int fd, void *buffer, size_t size, int flags, sockaddr *address, socklen_t *length)
    ssize_t send(int fd, const void *buffer, size_t size, int flags)


cdef extern from "<dlfcn.h>" nogil:
    enum:
        RTLD_LAZY
        RTLD_NOLOAD
    void *RTLD_DEFAULT
    ctypedef struct Dl_info:
        const char *dli_fname
    int dladdr(const void *address, Dl_info *info)
    int dlclose(void *handle)
    void *dlopen(const char *name, int flags)
    void *dlsym(void *handle, const char *name)


cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attr)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_join(pthread_t thread, void **value)
    ctypedef unsigned int pthread_key_t
    int pthread_key_create(pthread_key_t *key, void (*destructor)(void *) noexcept)
    int pthread_setspecific(pthread_key_t key, const void *value)
    void *pthread_getspecific(pthread_key_t key)
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)

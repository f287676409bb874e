"""A loop that breaks a rule of the kernel's monitors in each step, or waits in a way that they accept."""

from libc.errno cimport EIO
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef extern from "<time.h>" nogil:
    int clock_nanosleep(int clock, int flags, const timespec *request, timespec *remain)
    enum:
        TIMER_ABSTIME


cdef extern from "<unistd.h>" nogil:
    long gettid()


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *mask)
    enum:
        POLLIN


cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *buffer, size_t size, int flags)


cdef extern from "<sys/epoll.h>" nogil:
    struct epoll_event:
        pass
    int epoll_wait(int fd, epoll_event *events, int count, int timeout)


cdef extern from "<sched.h>" nogil:
    struct sched_param:
        int sched_priority
    int sched_getparam(int thread, sched_param *param)
    int sched_setscheduler(int thread, int policy, const sched_param *param)
    enum:
        SCHED_FIFO
        SCHED_OTHER


cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t *semaphore, int shared, unsigned int value)
    int sem_wait(sem_t *semaphore)
    int sem_post(sem_t *semaphore)


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t size)
    int munlock(const void *address, size_t size)
    int madvise(void *address, size_t size, int advice)
    enum:
        MADV_DONTNEED
        MAP_ANONYMOUS
        MAP_PRIVATE
        PROT_READ
        PROT_WRITE


cdef enum:
    NOTHING
    PAGE_FAULT
    RECV
    PPOLL
    RELATIVE_SLEEP
    REALTIME_SLEEP
    SEMAPHORE
    EPOLL

#: Numbers of what a step can do, by name.
KINDS = {
    "nothing": NOTHING, "page fault": PAGE_FAULT, "recv": RECV, "ppoll": PPOLL, "relative sleep": RELATIVE_SLEEP,
    "sleep on CLOCK_REALTIME": REALTIME_SLEEP, "semaphore": SEMAPHORE, "epoll_wait": EPOLL,
}


cdef class Planted(RTLoop):
    """Does one thing of `kind` in each step before number `until`; each but the fault sleeps once, for 20 ms.

    `fd` is a socket without data and with a timeout of 20 ms, or an epoll. For a semaphore, a thread calls `post` for
    each step that has counted `asked`.
    """

    cdef public int kind, fd
    cdef public int64_t until, done, asked
    cdef readonly long tid
    cdef sem_t semaphore

    def __init__(self, period, *, kind, **settings):
        super().__init__(period, **settings)
        self.kind = KINDS[kind]
        self.until = 5
        sem_init(&self.semaphore, 0, 0)

    def post(self):
        """Let the step that waits for the semaphore go on."""
        sem_post(&self.semaphore)

    cdef int enter(self) noexcept nogil:
        self.tid = gettid()
        if self.kind == PAGE_FAULT and fault_as_ordinary_thread():
            return -EIO
        return RT_CONTINUE

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef timespec pause
        cdef pollfd ready
        cdef epoll_event event
        cdef char byte
        if <int64_t>cycle.index >= self.until:
            return RT_CONTINUE
        pause.tv_sec, pause.tv_nsec = 0, 20_000_000
        if self.kind == PAGE_FAULT:
            if touch_fresh_page():
                return -EIO
        elif self.kind == RECV:
            recv(self.fd, &byte, 1, 0)
        elif self.kind == PPOLL:
            ready.fd, ready.events = self.fd, POLLIN
            ppoll(&ready, 1, &pause, NULL)
        elif self.kind == RELATIVE_SLEEP:
            clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL)
        elif self.kind == REALTIME_SLEEP:
            clock_gettime(CLOCK_REALTIME, &pause)
            pause.tv_nsec += 20_000_000
            if pause.tv_nsec >= 1_000_000_000:
                pause.tv_sec, pause.tv_nsec = pause.tv_sec + 1, pause.tv_nsec - 1_000_000_000
            clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &pause, NULL)
        elif self.kind == SEMAPHORE:
            self.asked += 1
            sem_wait(&self.semaphore)
        elif self.kind == EPOLL:
            epoll_wait(self.fd, &event, 1, 20)
        self.done += 1
        return RT_CONTINUE


cdef int touch_fresh_page() noexcept nogil:
    """Fault once, even if all future memory is locked, which maps pages at once."""
    cdef char *page = <char *>mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if page == <char *>-1:
        return -1
    if munlock(page, 4096) or madvise(page, 4096, MADV_DONTNEED):
        return -1
    page[0] = 1
    return munmap(page, 4096)


cdef int fault_as_ordinary_thread() noexcept nogil:
    """Fault once while this thread is not a real-time thread.

    The kernel's `pagefault` judges a thread from a fault that it accepts on, and knows no other event.
    """
    cdef sched_param real_time, ordinary
    ordinary.sched_priority = 0
    if sched_getparam(0, &real_time) or sched_setscheduler(0, SCHED_OTHER, &ordinary) or touch_fresh_page():
        return -1
    return sched_setscheduler(0, SCHED_FIFO, &real_time)

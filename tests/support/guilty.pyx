"""Loops whose steps do what a step must not: each planted once, in a known cycle."""

from libc.stdint cimport int64_t, uint64_t
from libc.stdio cimport fflush, printf, stdout
from libc.stdlib cimport free, malloc

from rtloop cimport RT_CONTINUE, Cycle, RTLoop


cdef extern from "<stdlib.h>" nogil:
    char *l64a(long value)


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *mutex, const void *attr)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)


cdef extern from "<unistd.h>" nogil:
    int getppid()
    int getpid()
    int vfork_and_wait "rt_vfork_and_wait"()


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset)
    int munlock(void *address, size_t size)
    int madvise(void *address, size_t size, int advice)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MADV_DONTNEED


cdef extern from * nogil:
    """
    #include <errno.h>
    #include <signal.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <unistd.h>
    #include <dlfcn.h>

    static void *volatile kept; /* or the compiler would leave out the allocation with its use */

    /* Not inlined, so that it has a symbol of its own. */
    static __attribute__((noinline)) void touch_fresh_memory(volatile char *page) { *page = 1; }

    /* 80 places, which make a system call each. */
    #define CALL_FOUR_TIMES() (getppid() + getppid() + getppid() + getppid())
    #define CALL_TWENTY_TIMES() \\
      (CALL_FOUR_TIMES() + CALL_FOUR_TIMES() + CALL_FOUR_TIMES() + CALL_FOUR_TIMES() + CALL_FOUR_TIMES())
    static __attribute__((noinline)) int call_from_80_places(void) {
      return CALL_TWENTY_TIMES() + CALL_TWENTY_TIMES() + CALL_TWENTY_TIMES() + CALL_TWENTY_TIMES();
    }

    static int rt_vfork_and_wait(void) {
      int status = -1;
      pid_t child = vfork();
      if (child == 0) _exit(7);
      if (child < 0 || waitpid(child, &status, 0) != child) return -1;
      return WEXITSTATUS(status);
    }

    /* A failing call leaves its errno, and a blocked signal stays blocked. */
    static int errno_of_a_bad_close(void) { errno = 0; return close(-1) == -1 ? errno : 0; }
    static int block_a_signal(void) {
      sigset_t set, now;
      sigemptyset(&set);
      sigaddset(&set, SIGTRAP);
      sigprocmask(SIG_BLOCK, &set, NULL);
      sigprocmask(SIG_BLOCK, NULL, &now);
      const int is_blocked = sigismember(&now, SIGTRAP);
      sigprocmask(SIG_UNBLOCK, &set, NULL);
      return is_blocked;
    }
    """
    void touch_fresh_memory(volatile char *page)
    int call_from_80_places()
    int errno_of_a_bad_close()
    int block_a_signal()
    void *kept


cdef extern from "Python.h" nogil:
    int PyGILState_Ensure()
    void PyGILState_Release(int)


cdef class Guilty(RTLoop):
    """Does nothing but its crime, in cycle `at`; with `every`, from then on in every cycle."""

    cdef public int64_t at
    cdef public bint every
    cdef readonly int64_t result
    cdef pthread_mutex_t mutex
    cdef char *page

    def __init__(self, period="2ms", **settings):
        super().__init__(period, **settings)
        self.at = 20
        pthread_mutex_init(&self.mutex, NULL)

    def setup(self):
        # There, but given back: the next touch of it is a fault, however much of the process is locked.
        self.page = <char *>mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)

    cdef int enter(self) noexcept nogil:
        munlock(self.page, 1 << 16)
        madvise(self.page, 1 << 16, MADV_DONTNEED)
        return RT_CONTINUE

    def take(self):
        """Hold the mutex."""
        with nogil:
            pthread_mutex_lock(&self.mutex)

    def give(self):
        """Let the mutex go."""
        with nogil:
            pthread_mutex_unlock(&self.mutex)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        if cycle.index == <uint64_t>self.at or (self.every and cycle.index > <uint64_t>self.at):
            self.crime()
        return RT_CONTINUE

    cdef void crime(self) noexcept nogil:
        pass


cdef class Toucher(Guilty):
    cdef void crime(self) noexcept nogil:
        touch_fresh_memory(self.page)


cdef class Caller(Guilty):
    cdef void crime(self) noexcept nogil:
        self.result = getppid()


cdef class Printer(Guilty):
    cdef void crime(self) noexcept nogil:
        printf(b"hello from cycle %d\n", <int>self.at)
        fflush(stdout)


cdef class Talker(Guilty):
    """Prints, and then takes the GIL: whose calls leave their remains where the next printf has its buffer."""

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        printf(b"%d\n", <int>cycle.index)
        fflush(stdout)
        with gil:
            pass
        return RT_CONTINUE


cdef class Allocator(Guilty):
    cdef void crime(self) noexcept nogil:
        global kept
        kept = malloc(100)
        free(kept)


cdef class Noisy(Guilty):
    """Makes system calls in every cycle, and its crime once."""

    cdef void crime(self) noexcept nogil:
        global kept
        kept = malloc(100)
        free(kept)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.result = call_from_80_places()
        return Guilty.step(self, cycle)


cdef class Waiter(Guilty):
    cdef void crime(self) noexcept nogil:
        pthread_mutex_lock(&self.mutex)
        pthread_mutex_unlock(&self.mutex)


cdef class Binder(Guilty):
    """Calls a function for the first time, whose name is then looked up in libraries that are not in the page table."""

    cdef size_t low, size

    def setup(self):
        with open("/proc/self/maps") as file:
            lines = [line.split() for line in file]
        for fields in lines:
            # Its names are in the first segment, with which arm64 maps the code as well.
            if fields[1] in ("r--p", "r-xp") and fields[2] == "00000000" and "/libc" in fields[-1]:
                low, high = (int(text, 16) for text in fields[0].split("-"))
                self.low, self.size = low, high - low

    cdef int enter(self) noexcept nogil:
        munlock(<void *>self.low, self.size)
        madvise(<void *>self.low, self.size, MADV_DONTNEED)
        return RT_CONTINUE

    cdef void crime(self) noexcept nogil:
        l64a(42)


cdef class Pythonic(Guilty):
    cdef void crime(self) noexcept nogil:
        PyGILState_Release(PyGILState_Ensure())


cdef class Forker(Guilty):
    """What a handler cannot do for its thread: vfork, a signal mask, errno."""

    cdef readonly int64_t code, error, is_blocked

    cdef void crime(self) noexcept nogil:
        self.is_blocked = block_a_signal()

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        if cycle.index == 20:
            self.code = vfork_and_wait()
        elif cycle.index == 21:
            self.error = errno_of_a_bad_close()
        elif cycle.index == 22:
            self.crime()
        elif cycle.index == 23:
            self.result = getppid()
        return RT_CONTINUE

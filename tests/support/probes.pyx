"""Loops that misbehave on purpose, and tell what happened to them."""

from time import monotonic, sleep

from libc.errno cimport EIO
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from rtloop cimport RT_CONTINUE, RT_STOP, Cycle, HugeBuffer, Pool, RTLoop


cdef extern from "<time.h>" nogil:
    int clock_nanosleep(int clock, int flags, const timespec *request, timespec *remain)
    enum:
        TIMER_ABSTIME


cdef extern from "<unistd.h>" nogil:
    long gettid()
    int execl(const char *path, const char *name, ...)
    int fork()
    ssize_t write(int fd, const void *buffer, size_t size)


cdef extern from "<sys/wait.h>" nogil:
    int waitpid(int pid, int *status, int options)


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t size)
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS


cdef int64_t now() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return ts.tv_sec * 1_000_000_000 + ts.tv_nsec


cdef int sleep_until(int64_t time) noexcept nogil:
    cdef timespec ts
    ts.tv_sec = time // 1_000_000_000
    ts.tv_nsec = time % 1_000_000_000
    return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL)


cdef class Probe(RTLoop):
    """A loop whose step can be slow, fail, stop or hang, and that counts what it sees."""

    cdef public int64_t busy_ns, busy_every, jitter_ns
    cdef public int64_t stop_at, fail_at, fail_code, enter_code, overrun_code, shift_at, shift_ns, shift_rc
    cdef public int64_t setups, enters, steps, overruns, leaves, enter_ns, left_at
    cdef public int64_t missed_in_step, missed_in_overrun, index_errors, dt_errors, last_index, late_starts
    cdef public double first_dt, last_t, dt_sum
    cdef public bint hang, let_go, is_spinning, safe_lets_go, says_leave
    cdef public int64_t hang_at, leave_ns, peer_failures, peer_code, peer_tid
    cdef public int64_t safes, safe_code, safe_tid, safe_at, safe_ns
    cdef long thread_id
    cdef readonly size_t stack_at, state_at
    cdef uint64_t seed

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.stop_at = self.fail_at = self.shift_at = self.hang_at = -1
        self.fail_code = -EIO
        self.peer_code = RT_STOP
        self.seed = 88172645463325252

    @property
    def tid(self):
        """The number of its thread, in which `enter` has begun: waited for, however busy the machine is."""
        deadline = monotonic() + 60
        while self.thread_id == 0 and monotonic() < deadline:
            sleep(0.001)
        return self.thread_id

    def setup(self):
        self.setups += 1

    cdef int enter(self) noexcept nogil:
        cdef char here = 0
        self.enters += 1
        self.thread_id = gettid()
        self.stack_at = <size_t>&here
        self.state_at = <size_t>self._rt
        self.steps = self.overruns = self.missed_in_step = self.missed_in_overrun = self.index_errors = 0
        self.dt_errors = self.last_index = self.late_starts = 0
        self.dt_sum = 0
        if self.enter_ns:
            sleep_until(now() + self.enter_ns)
        return <int>self.enter_code

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int64_t end = 0
        self.index_errors += cycle.index != <uint64_t>self.steps
        self.late_starts += cycle.start < cycle.release
        if self.steps == 0:
            self.first_dt = cycle.dt
        elif self.shift_at < 0 and not (cycle.dt > 0):
            self.dt_errors += 1
        self.steps += 1
        self.last_index = <int64_t>cycle.index
        self.last_t = cycle.t
        self.dt_sum += cycle.dt
        self.missed_in_step += cycle.missed
        if self.busy_ns and (self.busy_every <= 1 or self.steps % self.busy_every == 0):
            end = cycle.start + self.busy_ns
        if self.jitter_ns:
            self.seed ^= self.seed << 13
            self.seed ^= self.seed >> 7
            self.seed ^= self.seed << 17
            end = cycle.start + <int64_t>(self.seed % <uint64_t>self.jitter_ns)
        while now() < end:
            pass
        while (self.hang or self.hang_at == <int64_t>cycle.index) and not self.let_go:
            if not self.is_spinning:
                sleep_until(now() + 1_000_000)
            now()  # or nobody would look at let_go again
        if self.shift_at == <int64_t>cycle.index:
            self.shift_rc = self.shift(self.shift_ns)
        if self.fail_at == <int64_t>cycle.index:
            return <int>self.fail_code
        if self.stop_at == <int64_t>cycle.index:
            return RT_STOP
        return RT_CONTINUE

    cdef int overrun(self, const Cycle *cycle, int64_t missed) noexcept nogil:
        self.overruns += 1
        self.missed_in_overrun += missed
        return <int>self.overrun_code

    cdef void leave(self) noexcept nogil:
        if self.says_leave:
            write(2, b"leaving\n", 8)
        if self.leave_ns:
            sleep_until(now() + self.leave_ns)
        self.leaves += 1
        if self.says_leave:
            write(2, b"off\n", 4)
        self.left_at = now()

    cdef int on_peer_failure(self) noexcept nogil:
        self.peer_failures += 1
        self.peer_tid = gettid()
        return <int>self.peer_code

    cdef int safe(self) noexcept nogil:
        self.safe_at = now()
        self.safe_tid = gettid()
        while now() < self.safe_at + self.safe_ns:
            pass
        if self.safe_lets_go:
            self.let_go = True
        self.safes += 1
        return <int>self.safe_code


cdef class Forking(Probe):
    """A loop that forks in one of its methods: the child becomes another program, or returns from the method."""

    cdef public int fork_in  # 0 to 4: enter, step, overrun, leave, safe
    cdef public bint child_returns
    cdef readonly int status

    cdef void fork_if_in(self, int method) noexcept nogil:
        cdef int pid
        if method != self.fork_in:
            return
        self.fork_in = -1
        pid = fork()
        if pid:
            waitpid(pid, &self.status, 0)
        elif not self.child_returns:
            execl(b"/bin/sh", b"sh", b"-c", b"exit 9", NULL)

    cdef int enter(self) noexcept nogil:
        self.fork_if_in(0)
        return Probe.enter(self)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.fork_if_in(1)
        return Probe.step(self, cycle)

    cdef int overrun(self, const Cycle *cycle, int64_t missed) noexcept nogil:
        self.fork_if_in(2)
        return Probe.overrun(self, cycle, missed)

    cdef void leave(self) noexcept nogil:
        self.fork_if_in(3)
        Probe.leave(self)

    cdef int safe(self) noexcept nogil:
        self.fork_if_in(4)
        return Probe.safe(self)


cdef class Paced(Probe):
    """A loop paced from outside: it waits by itself, every other time through the loop's own wait."""

    cdef public int64_t waits, wait_code, hang_in_wait_at
    cdef public bint use_own

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.hang_in_wait_at = -1

    cdef int wait(self, int64_t release) noexcept nogil:
        self.waits += 1
        while self.hang_in_wait_at == self.steps and not self.let_go:
            sleep_until(now() + 1_000_000)
        if self.wait_code:
            return <int>self.wait_code
        if self.use_own:
            return RTLoop.wait(self, release)
        return -sleep_until(release)


cdef int recurse(int64_t depth, int64_t *sink) noexcept nogil:
    cdef char[4096] block
    block[0] = <char>depth
    sink[0] += block[0]
    if depth > 0:
        recurse(depth - 1, sink)
    sink[0] += block[depth % 4096]
    return 0


cdef class Deep(RTLoop):
    """Uses `pages` pages of its stack at the cycle number `at`."""

    cdef public int64_t pages, at, sink

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        if <int64_t>cycle.index == self.at:
            recurse(self.pages, &self.sink)
        return RT_CONTINUE


cdef class Faulty(RTLoop):
    """Touches `pages` fresh pages in every cycle before number `until`."""

    cdef public int64_t pages, until, failed

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef size_t size = <size_t>self.pages * 4096
        cdef char *fresh
        cdef size_t at
        if <int64_t>cycle.index >= self.until:
            return RT_CONTINUE
        fresh = <char *>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if fresh == <char *>-1:
            self.failed += 1
            return RT_CONTINUE
        for at in range(0, size, 4096):
            fresh[at] = 1
        munmap(fresh, size)
        return RT_CONTINUE


cdef class Gilded(RTLoop):
    """Takes the GIL in every step, as a method without noexcept would."""

    cdef readonly int64_t steps

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        with gil:
            self.steps += 1
        return RT_CONTINUE


cdef class Denormal(RTLoop):
    """Divides the smallest normal number, and keeps what comes out."""

    cdef public double result
    cdef public double smallest

    def __cinit__(self, *args, **kwargs):
        self.smallest = 2.2250738585072014e-308
        self.result = -1

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.result = self.smallest / 4
        return RT_STOP


cdef class Integrator(RTLoop):
    """A plant: its value grows at a rate that a controller sets."""

    cdef public double value, rate
    cdef public int64_t stop_at

    def __init__(self, period, *, value=1.0, **settings):
        super().__init__(period, **settings)
        self.value = value
        self.stop_at = -1

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.value += self.rate * cycle.dt
        return RT_STOP if self.stop_at == <int64_t>cycle.index else RT_CONTINUE


cdef class Regulator(RTLoop):
    """Drives an integrator to zero."""

    cdef Integrator plant
    cdef public double gain, seen

    def __init__(self, period, *, plant, **settings):
        super().__init__(period, **settings)
        self.plant = plant
        self.gain = 10

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.seen = self.plant.value
        self.plant.rate = -self.gain * self.seen
        return RT_CONTINUE


cdef api int exported_step(const Cycle *cycle, void *data) noexcept nogil:
    (<int64_t *>data)[0] += 1
    return RT_CONTINUE


cdef class Early(RTLoop):
    """Moves its grid before there is one."""

    cdef readonly int result

    def __init__(self):
        self.result = self.shift(1)


def pool_alloc(Pool pool):
    """Take a block; returns its address, or 0."""
    return <size_t>pool.alloc()


def pool_free(Pool pool, size_t address):
    return pool.free(<void *>address)


def overwrite(size_t address):
    (<uint64_t *>address)[0] = 0x0123456789abcdef


ctypedef uint64_t (*counter_t)() noexcept nogil


cdef struct Loan:
    uint64_t *held[4]


cdef class Pooled(RTLoop):
    """Takes a block from each of three pools, writes to all of it, and gives back those of four cycles ago.

    Writes to one more page of a large buffer in every cycle, where it has one.
    """

    cdef Pool a, b, c
    cdef HugeBuffer buffer
    cdef Loan of_a, of_b, of_c
    cdef counter_t counter
    cdef void *planted
    cdef public int64_t refused, exhausted, frees, mallocs, malloc_at

    def __init__(self, period, pools, counter=0, buffer=None, **settings):
        """``counter`` is the address of a function that counts the calling thread's calls of malloc."""
        super().__init__(period, **settings)
        self.a, self.b, self.c = pools
        self.buffer = buffer
        self.counter = <counter_t><size_t>counter
        self.malloc_at = -1

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef uint64_t before = self.counter() if self.counter != NULL else 0
        self.use(self.a, &self.of_a, cycle.index)
        self.use(self.b, &self.of_b, cycle.index)
        self.use(self.c, &self.of_c, cycle.index)
        if self.buffer is not None:
            (<uint64_t *>self.buffer.data)[512 * cycle.index % (self.buffer.nbytes // 8)] = cycle.index
        if <int64_t>cycle.index == self.malloc_at:
            self.planted = malloc(2000)  # kept, or the compiler would leave out both
            free(self.planted)
        if self.counter != NULL:
            self.mallocs += self.counter() - before
        return RT_CONTINUE

    cdef void use(self, Pool pool, Loan *loan, uint64_t index) noexcept nogil:
        cdef uint64_t i
        cdef uint64_t *block = <uint64_t *>pool.alloc()
        cdef uint64_t *old = loan.held[index % 4]
        if block == NULL:
            self.exhausted += 1
            return
        for i in range(32):
            block[i] = index
        if old != NULL:
            self.refused += old[0] != index - 4 or pool.free(old) != 0
            self.frees += 1
        loan.held[index % 4] = block


cdef class Device(RTLoop):
    """Paced by a device that numbers its cycles: after each tenth one it is two cycles further on."""

    cdef public uint64_t number, told
    cdef public int restart_at

    cdef int wait(self, int64_t release) noexcept nogil:
        sleep_until(now() + 200_000)
        self.number += 3 if self.number % 10 == 9 else 1
        if self.restart_at and self.number >= <uint64_t>self.restart_at:
            self.restart_at, self.number = 0, 1
        self.told += self.device_cycle(self.number)
        self.device_cycle(self.number)  # a repetition is neither a cycle nor a miss
        return RT_CONTINUE

"""Loops that exchange data with Python, and the exchanges' Cython methods behind plain functions."""

from libc.stdint cimport int64_t, uint64_t

from rtloop cimport RT_CONTINUE, Cycle, Latest, Ring, RTLoop, SignalLog


cdef struct Parameters:
    double values[6]
    uint64_t check


cdef class Checker(RTLoop):
    """Reads parameters in every cycle, and counts those that are not whole: `check` is the values' exclusive or."""

    cdef Latest _parameters
    cdef readonly uint64_t fresh, torn
    cdef Parameters _now

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self._parameters = Latest([("values", "f8", 6), ("check", "u8")])

    @property
    def parameters(self):
        return self._parameters

    @property
    def last(self):
        return self._now.values[0]

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef uint64_t check = 0
        cdef int i
        if self._parameters.read(&self._now):
            self.fresh += 1
            for i in range(6):
                check ^= (<uint64_t *>&self._now.values[i])[0]
            if check != self._now.check:
                self.torn += 1
        return RT_CONTINUE


cdef class Servo(RTLoop):
    """Logs eight signals that follow from the cycle's index."""

    cdef readonly SignalLog log
    cdef double _signals[8]

    def __init__(self, *args, every=1, capacity=65536, **settings):
        super().__init__(*args, **settings)
        self.log = SignalLog(capacity, every=every)
        for i in range(8):
            self.log.add(f"s{i}", &self._signals[i])

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int i
        for i in range(8):
            self._signals[i] = <double>cycle.index + i
        self.log.sample(cycle)
        return RT_CONTINUE


cdef class Doubler(RTLoop):
    """Takes numbers from one ring and puts their doubles into another."""

    cdef readonly Ring commands, answers

    def __init__(self, *args, commands=None, answers=None, **settings):
        super().__init__(*args, **settings)
        self.commands, self.answers = commands or Ring("i8", 1000), answers or Ring("i8", 1000)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int64_t value
        while self.commands.pop(&value):
            value *= 2
            self.answers.push(&value)
        return RT_CONTINUE


cdef class Derived(Latest):
    """A Latest with methods of its own."""


cdef class Mixed:
    """Signals of every type, without a loop."""

    cdef readonly SignalLog log
    cdef double _d
    cdef float _f
    cdef int64_t _i
    cdef unsigned char _b
    cdef short _h

    def __init__(self, every=1, capacity=4):
        self.log = SignalLog(capacity, every=every)
        self.log.add("d", &self._d)
        self.log.add("f", &self._f, "f4")
        self.log.add("i", &self._i, "i8")
        self.log.add("b", &self._b, "?")
        self.log.add("h", &self._h, "i2")

    def add_again(self, name, dtype="f8", bint null=False):
        self.log.add(name, NULL if null else &self._d, dtype)

    def sample(self, uint64_t index):
        cdef Cycle cycle
        cycle.index, cycle.release, cycle.start = index, 1000 + index, 2000 + index
        self._d, self._f, self._i, self._b, self._h = index / 2, index / 4, -<int64_t>index, index % 2, index
        return self.log.sample(&cycle)


def push_many(Ring ring, const int64_t[::1] items):
    return ring.push_many(&items[0], len(items))


def pop_many(Ring ring, int64_t[::1] items):
    return ring.pop_many(&items[0], len(items))


def push(Ring ring, int64_t item):
    return ring.push(&item)


def pop(Ring ring):
    cdef int64_t item = 0
    return ring.pop(&item), item


def write(Latest latest, double value):
    latest.write(&value)


def read(Latest latest):
    cdef double value = -1
    return latest.read(&value), value


def write_at(Latest latest, double value, int64_t time):
    latest.write_at(&value, time)


def age(Latest latest, int64_t now, int64_t period):
    return latest.age(now), latest.age_cycles(now, period)

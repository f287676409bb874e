# distutils: sources = generated/soem/src/*.c
# distutils: include_dirs = generated/soem/include
# distutils: define_macros = _GNU_SOURCE
# cython: cdivision=True
"""An EtherCAT master: SOEM's process data in a loop that follows the slaves' distributed clocks."""

import os

from libc.math cimport fmax, fmin, llround
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from rtloop cimport RT_CONTINUE, Cycle, Ring, RTLoop

import numpy as np

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec, tv_nsec
    enum: CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *time)

cdef extern from "<unistd.h>" nogil:
    int usleep(unsigned int us)

cdef extern from * nogil:
    void fence "__sync_synchronize"()

cdef extern from "soem/soem.h" nogil:
    enum: EC_STATE_INIT, EC_STATE_PRE_OP, EC_STATE_SAFE_OP, EC_STATE_OPERATIONAL, EC_STATE_ACK, EC_STATE_ERROR
    enum: EC_NOFRAME, EC_TIMEOUTRET, EC_TIMEOUTSTATE, ECT_REG_FMMU0

    ctypedef struct ecx_portt:
        int sockhandle
    ctypedef struct ec_fmmut:
        pass
    ctypedef struct ec_slavet:
        uint16_t state, ALstatuscode, configadr
        uint32_t Obytes, Ibytes
        uint8_t *outputs
        uint8_t *inputs
        uint8_t hasdc, islost
        int (*PO2SOconfig)(ecx_contextt *context, uint16_t slave)
        ec_fmmut FMMU[1]  # EC_MAXFMMU
        uint8_t FMMUunused
        char name[41]
    ctypedef struct ec_groupt:
        uint32_t Obytes, Ibytes
        uint8_t *outputs
        uint16_t outputsWKC, inputsWKC
    ctypedef struct ecx_contextt:
        ecx_portt port
        ec_slavet slavelist[1]  # EC_MAXSLAVE
        ec_groupt grouplist[1]
        int slavecount
        int64_t DCtime
        void *userdata

    int ecx_init(ecx_contextt *context, const char *interface)
    void ecx_close(ecx_contextt *context)
    int ecx_config_init(ecx_contextt *context)
    int ecx_config_map_group(ecx_contextt *context, void *iomap, uint8_t group)
    uint8_t ecx_configdc(ecx_contextt *context)
    void ecx_dcsync0(ecx_contextt *context, uint16_t slave, uint8_t active, uint32_t period, int32_t shift)
    int ecx_readstate(ecx_contextt *context)
    int ecx_writestate(ecx_contextt *context, uint16_t slave)
    uint16_t ecx_statecheck(ecx_contextt *context, uint16_t slave, uint16_t state, int timeout_us)
    int ecx_recover_slave(ecx_contextt *context, uint16_t slave, int timeout_us)
    int ecx_reconfig_slave(ecx_contextt *context, uint16_t slave, int timeout_us)
    int ecx_FPWR(ecx_portt *port, uint16_t node, uint16_t address, uint16_t size, void *data, int timeout_us)
    int ecx_send_processdata(ecx_contextt *context)
    int ecx_receive_processdata(ecx_contextt *context, int timeout_us)

cdef enum:
    IOMAP = 16384      # bytes of process data at most
    PATIENCE_US = 200  # for the answer to the previous cycle's frame, which has had a period to come back
    TOLERANCE = 3      # cycles in a row without valid data; after one more, the outputs are cleared
    ACQUIRE = 100      # cycles in which the grid approaches the slaves' clock, before OP is requested


cdef struct Row:
    double t        # s
    int64_t error   # ns, by how much the release was later than wanted on the slaves' clock
    double ppm      # how much faster the slaves' clock is
    int32_t wkc     # working counter; -1: no frame
    int32_t sure    # 1 if the error was measured in this cycle

cdef struct Outage:
    int64_t at      # ns, release of its first cycle
    int64_t cycles
    int32_t lost    # cycles of them without a frame
    int32_t wkc     # lowest working counter

ROW = np.dtype([("t", "f8"), ("error", "i8"), ("ppm", "f8"), ("wkc", "i4"), ("sure", "i4")], align=True)
OUTAGE = np.dtype([("at", "i8"), ("cycles", "i8"), ("lost", "i4"), ("wkc", "i4")], align=True)
assert ROW.itemsize == sizeof(Row) and OUTAGE.itemsize == sizeof(Outage)

STATES = {0: "none", 1: "INIT", 2: "PRE-OP", 3: "BOOT", 4: "SAFE-OP", 8: "OP"}


class EthercatError(RuntimeError):
    """There is no bus, or it cannot be configured."""


cdef struct Timing:
    uint32_t period       # ns
    int32_t sync0_shift   # ns
    int sync0


cdef int configure(ecx_contextt *context, uint16_t slave) noexcept nogil:
    """Configure what a slave needs before SAFE-OP; SOEM calls it then.

    That is SYNC0, at which the slave applies its outputs, and, if the slave is configured again, the FMMUs, which SOEM
    itself would write too late.
    """
    cdef Timing *timing = <Timing *>context.userdata
    cdef ec_slavet *one = &context.slavelist[slave]
    cdef int i
    for i in range(one.FMMUunused):
        ecx_FPWR(&context.port, one.configadr, ECT_REG_FMMU0 + i * sizeof(ec_fmmut), sizeof(ec_fmmut), &one.FMMU[i],
                 EC_TIMEOUTRET)
    if one.hasdc and timing.sync0:
        ecx_dcsync0(context, slave, 1, timing.period, timing.sync0_shift)
    return 1


cdef class Bus(RTLoop):
    """Exchange process data in each cycle: receive what the previous cycle has sent, compute, send.

    A subclass overrides `control`, which reads `self.inputs` and writes `self.outputs`. The step never changes a
    slave's state: `supervise`, called by another thread every few milliseconds, does that, because it waits for slaves.

    Parameters
    ----------
    interface : str
        The network interface of the bus.
    lead : int
        Time from a release to the next SYNC0 of the slaves, ns, in which the frame has to arrive. By default half a
        period.
    sync0 : bool
        Whether slaves with a clock apply their outputs at SYNC0.
    proportional, integral : float
        Gains of the controller that follows the reference clock, per cycle. The defaults have a damping of 0.7 and
        settle in a fifth of a second, which averages the delays of a simulator. On a bus the clock is exact to a
        microsecond, and gains of 0.05 and 0.001 settle faster.
    """

    cdef ecx_contextt *context
    cdef bint is_open
    cdef object interface
    cdef Timing timing
    cdef uint8_t[IOMAP] iomap
    cdef uint8_t *inputs
    cdef uint8_t *outputs
    cdef int64_t lead, sent_late, dc_before, asked, bad_before
    cdef double proportional, integral, drift
    cdef int has_clock, was_sent, in_row, acquired
    cdef int is_operational  # written by supervise
    cdef int is_changing     # written by supervise: it is changing states
    cdef int is_over         # written by leave: supervise changes nothing any more
    cdef Outage outage                # the present or newest one
    cdef readonly int expected        # working counter if all slaves have processed the frame
    cdef readonly int wkc
    cdef readonly int64_t error       # ns, phase error of the newest cycle
    cdef readonly int64_t exchanges   # cycles with valid process data, in OP
    cdef readonly int64_t no_frame    # cycles without an answer, since the bus was first in OP
    cdef readonly int64_t bad_wkc     # cycles with another working counter, since then
    cdef readonly int end_state       # of the slaves, after leave
    cdef readonly Ring log, outages
    cdef readonly list history        # what supervise has done
    cdef object noted

    def __cinit__(self):
        self.context = <ecx_contextt *>calloc(1, sizeof(ecx_contextt))
        if self.context == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.is_open:
            ecx_close(self.context)
        free(self.context)

    def __init__(self, period="1kHz", *, interface, lead=None, sync0=True, double proportional=0.01,
                 double integral=5e-5, **settings):
        if settings.setdefault("clock", "monotonic") != "monotonic":
            raise ValueError("the phase error is measured on the monotonic clock")
        # send, receive and ppoll are SOEM's.
        settings.setdefault("guard_allow", ("sendto", "recvfrom", "ppoll"))
        super().__init__(period, **settings)
        self.interface, self.proportional, self.integral = interface, proportional, integral
        cdef int64_t period_ns = self.settings.period_ns
        self.lead = period_ns // 2 if lead is None else lead
        self.timing.period, self.timing.sync0 = period_ns, sync0
        self.log, self.outages = Ring(ROW, 65536), Ring(OUTAGE, 4096)
        self.signal("wkc", &self.wkc, "i4")
        self.signal("dc_error", &self.error, "i8").unit("ns")
        self.signal("operational", &self.is_operational, "i4")

    # --- Python: the configuration, and the changes of state, which are slow. ---

    def setup(self):
        """Find and configure the slaves, as far as SAFE-OP. Raises EthercatError."""
        cdef ecx_contextt *context = self.context
        cdef bytes name = os.fsencode(self.interface)
        cdef const char *c_name = name
        cdef int found, used, i
        self.shut()
        memset(context, 0, sizeof(ecx_contextt))
        memset(self.iomap, 0, IOMAP)
        context.userdata = &self.timing
        found = ecx_init(context, c_name)
        self.is_open = True  # also after a failure, which leaves a socket open
        if not found:
            self.shut()
            raise EthercatError(f"no raw socket on {self.interface}: does it exist, and are CAP_NET_RAW and "
                                "CAP_NET_ADMIN granted?")
        os.set_blocking(context.port.sockhandle, False)  # a full queue must not stop the step
        with nogil:
            found = ecx_config_init(context)
        if found <= 0:
            raise EthercatError(f"no slave answers on {self.interface}")
        for i in range(1, context.slavecount + 1):
            context.slavelist[i].PO2SOconfig = configure
        with nogil:
            self.has_clock = ecx_configdc(context)
            used = ecx_config_map_group(context, self.iomap, 0)
            found = ecx_statecheck(context, 0, EC_STATE_SAFE_OP, EC_TIMEOUTSTATE)
        if used > IOMAP:
            raise EthercatError(f"the slaves have {used} bytes of process data; IOMAP has {IOMAP}")
        if found != EC_STATE_SAFE_OP:
            with nogil:
                ecx_readstate(context)
            raise EthercatError(f"not all slaves are in SAFE-OP: {self.slaves}")
        self.expected = 2 * context.grouplist[0].outputsWKC + context.grouplist[0].inputsWKC
        self.outputs, self.inputs = context.slavelist[1].outputs, context.slavelist[1].inputs
        self.history, self.noted = [], None
        self.is_operational = self.was_sent = self.in_row = self.acquired = self.end_state = self.is_over = 0
        self.exchanges = self.no_frame = self.bad_wkc = 0
        self.error = self.dc_before = self.asked = self.bad_before = 0
        self.drift, self.wkc = 0, EC_NOFRAME

    def supervise(self):
        """Bring each slave back to OP, one transition per call; return whether all were in OP when last asked.

        Waits for the slaves, so call it from an ordinary thread, every few milliseconds while the loop runs. What it
        has done is in `history`. In OP it asks only after a cycle without valid data, and four times a second:
        SOEM's locks make the step wait for a frame that is being received here.
        """
        cdef int64_t bad = self.no_frame + self.bad_wkc, instant = now()
        if self.is_operational and bad == self.bad_before and instant < self.asked + 250_000_000:
            return True
        self.asked, self.bad_before = instant, bad
        self.is_changing = 1
        fence()  # leave sees this, or is_over is seen here
        try:
            self.is_operational = self.change_states()
        finally:
            self.is_changing = 0
        return bool(self.is_operational)

    cdef int change_states(self):
        """Bring each slave one step towards OP; return 1 if all are there."""
        cdef ecx_contextt *context = self.context
        cdef uint16_t slave, state
        cdef ec_slavet *one
        cdef int rc, all_in_op = 1
        if self.is_over:
            return 0
        with nogil:
            ecx_readstate(context)
        for slave in range(1, context.slavecount + 1):
            if self.is_over:
                return 0
            one = &context.slavelist[slave]
            state = one.state
            if state == EC_STATE_OPERATIONAL and not one.islost:
                continue
            all_in_op = 0
            if state & 0x0F == 0 or one.islost:
                if not one.islost:
                    self.note(slave, "does not answer")
                    one.islost = 1
                with nogil:
                    rc = ecx_recover_slave(context, slave, EC_TIMEOUTRET)
                if rc:
                    one.islost = 0
                    self.note(slave, "answers again")
            elif state == EC_STATE_SAFE_OP + EC_STATE_ERROR:
                self.note(slave, f"SAFE-OP with error 0x{one.ALstatuscode:04x}: acknowledged")
                one.state = EC_STATE_SAFE_OP + EC_STATE_ACK
                with nogil:
                    ecx_writestate(context, slave)
            elif state == EC_STATE_SAFE_OP:
                if self.has_clock and self.acquired < ACQUIRE:
                    continue
                self.note(slave, "SAFE-OP: OP requested")
                one.state = EC_STATE_OPERATIONAL
                with nogil:
                    ecx_writestate(context, slave)
            else:
                self.acquired = 0
                self.note(slave, f"{STATES.get(state & 0x0F, state)}: configured again")
                with nogil:
                    # A slave that has started again has no address, and ecx_readstate, which broadcasts, hides that.
                    rc = ecx_recover_slave(context, slave, EC_TIMEOUTRET)
                    if rc and state & EC_STATE_ERROR:
                        one.state = (state & 0x0F) + EC_STATE_ACK
                        ecx_writestate(context, slave)
                    if rc:
                        ecx_configdc(context)  # its clock may have started again
                        ecx_reconfig_slave(context, slave, EC_TIMEOUTRET)
        return all_in_op

    def note(self, int slave, what):
        """Add a line to the history, unless it repeats the last one."""
        line = f"slave {slave} {what}"
        if line != self.noted:
            self.history.append(line)
        self.noted = line

    @property
    def slaves(self):
        """Name, state and error code of each slave, as SOEM last read them."""
        return [(bytes(self.context.slavelist[i].name).split(b"\0")[0].decode("latin-1"),
                 STATES.get(self.context.slavelist[i].state & 0x0F, "?"), self.context.slavelist[i].ALstatuscode)
                for i in range(1, self.context.slavecount + 1)]

    def shut(self):
        if self.is_open:
            ecx_close(self.context)
        self.is_open = False

    def close(self):
        super().close()
        self.shut()

    # --- The loop's thread. ---

    cdef void control(self, const Cycle *cycle) noexcept nogil:
        """Write `self.outputs` from `self.inputs`; a subclass overrides this."""

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef bint is_valid = False
        cdef int32_t sure = 0
        if self.was_sent:
            self.wkc = ecx_receive_processdata(self.context, PATIENCE_US)
            is_valid = self.wkc == self.expected
            self.count(cycle, is_valid)
            if is_valid and self.has_clock:
                sure = self.follow(cycle)
        if self.has_clock and not sure:
            self.shift(llround(self.drift))  # keep the rate found so far
        if self.is_operational and self.in_row <= TOLERANCE:
            if is_valid:
                self.control(cycle)
        else:
            memset(self.context.grouplist[0].outputs, 0, self.context.grouplist[0].Obytes)
        self.sent_late = now() - cycle.release
        ecx_send_processdata(self.context)
        self.was_sent = True
        self.record(cycle, sure)
        return RT_CONTINUE

    cdef void count(self, const Cycle *cycle, bint is_valid) noexcept nogil:
        """Count the cycles without valid data, and report each outage at its end."""
        if is_valid:
            self.report()
            self.in_row = 0
            self.exchanges += self.is_operational
            return
        if not self.in_row:
            self.outage.at, self.outage.lost, self.outage.wkc = cycle.release, 0, self.expected
        self.in_row += 1
        if self.wkc == EC_NOFRAME:
            self.outage.lost += 1
        else:
            self.outage.wkc = min(self.outage.wkc, self.wkc)
        if self.exchanges:
            self.no_frame += self.wkc == EC_NOFRAME
            self.bad_wkc += self.wkc != EC_NOFRAME

    cdef void report(self) noexcept nogil:
        """Report an outage that has ended."""
        if self.in_row and self.exchanges:
            self.outage.cycles = self.in_row
            self.outages.push(&self.outage)

    cdef int follow(self, const Cycle *cycle) noexcept nogil:
        """Move the grid towards the reference clock; return 1 if the error was measured.

        The clock was read when the previous cycle's frame passed. `sent_late` after that cycle's release the frame was
        sent. Without that correction, the loop would follow its own jitter as well.
        """
        cdef int64_t period = cycle.period
        cdef int64_t released = self.context.DCtime - self.sent_late
        cdef double error, limit = 0.01 * period
        if self.context.DCtime == self.dc_before:
            return 0
        self.dc_before = self.context.DCtime
        self.error = (released + self.lead) % period
        if self.error < 0:
            self.error += period
        if self.error > period // 2:
            self.error -= period
        if not self.is_operational:  # no output is in force, so the grid may move fast
            self.acquired += 1
            self.shift(llround(self.drift - 0.1 * self.error))
            return 1
        error = clip(self.error, 0.05 * period)  # a frame that waited for a simulator is no phase error
        self.drift = clip(self.drift - self.integral * error, limit)
        self.shift(llround(clip(self.drift - self.proportional * error, limit)))
        return 1

    cdef void record(self, const Cycle *cycle, int32_t sure) noexcept nogil:
        cdef Row row
        row.t, row.error, row.wkc, row.sure = cycle.t, self.error, self.wkc, sure
        row.ppm = -1e6 * self.drift / cycle.period
        self.log.push(&row)

    cdef void leave(self) noexcept nogil:
        """Clear the outputs, check that they have arrived, and bring the slaves to SAFE-OP and INIT."""
        cdef ecx_contextt *context = self.context
        self.report()
        self.is_over = 1
        fence()
        memset(context.grouplist[0].outputs, 0, context.grouplist[0].Obytes)
        for _ in range(3):
            ecx_send_processdata(context)
            if ecx_receive_processdata(context, EC_TIMEOUTRET) == self.expected:
                break
        for _ in range(200):  # supervise may be in the middle of a change
            if not self.is_changing:
                break
            usleep(1000)
        context.slavelist[0].state = EC_STATE_SAFE_OP
        ecx_writestate(context, 0)
        ecx_statecheck(context, 0, EC_STATE_SAFE_OP, 50000)
        context.slavelist[0].state = EC_STATE_INIT
        ecx_writestate(context, 0)
        self.end_state = ecx_statecheck(context, 0, EC_STATE_INIT, 50000)


cdef inline double clip(double value, double limit) noexcept nogil:
    return fmax(-limit, fmin(limit, value))


cdef inline int64_t now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return time.tv_sec * <int64_t>1_000_000_000 + time.tv_nsec


cdef class Count(Bus):
    """Count up in the first two bytes of the first slave's outputs."""

    cdef readonly int64_t counted

    cdef void control(self, const Cycle *cycle) noexcept nogil:
        self.counted += 1
        if self.context.slavelist[1].Obytes >= 2:
            self.outputs[0], self.outputs[1] = self.counted & 0xFF, (self.counted >> 8) & 0x7F

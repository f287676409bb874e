# distutils: sources = generated/linear/crane_workspace.c generated/linear/src/*.c generated/nmpc.c
# distutils: include_dirs = generated generated/linear generated/linear/inc/public generated/linear/inc/private
# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Model-predictive control of a crane at 1 kHz: every cycle solves an optimisation problem.

The solvers are C code that OSQP and CasADi have generated, see crane.py.
"""

from libc.math cimport cos, isfinite, sin
from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from rtloop cimport RT_CONTINUE, Cycle, Ring, RTLoop

import numpy as np

cdef extern from "crane_problem.h" nogil:
    enum:
        CRANE_VARIABLES
        CRANE_ROWS
        CRANE_INPUT
        CRANE_PRICE
    const double *crane_pull
    const double *crane_lower
    const double *crane_upper

cdef extern from "osqp.h" nogil:
    ctypedef int OSQPInt
    ctypedef struct OSQPSolution:
        double *x
    ctypedef struct OSQPInfo:
        OSQPInt status_val, iter
    ctypedef struct OSQPSolver:
        OSQPSolution *solution
        OSQPInfo *info
    int OSQP_SOLVED
    OSQPInt osqp_solve(OSQPSolver *solver)
    OSQPInt osqp_cold_start(OSQPSolver *solver)
    OSQPInt osqp_update_data_vec(OSQPSolver *solver, const double *q, const double *l, const double *u)

cdef extern from "crane_workspace.h" nogil:
    OSQPSolver crane_solver

cdef extern from "nmpc.h" nogil:
    ctypedef long long casadi_int
    int nmpc(const double **arg, double **res, casadi_int *iw, double *w, int mem)
    enum:
        nmpc_SZ_ARG
        nmpc_SZ_RES
        nmpc_SZ_IW
        nmpc_SZ_W

cdef enum:
    STATES = 6        # x, v, q, q', l, l'
    FREE = 15    # variables of the nonlinear problem: 7 * 2 inputs, a sway
    BOUND = 28   # and its constraints


cdef struct Row:
    double t
    double z[STATES]
    double u[2]
    int64_t solving  # ns
    int64_t solved   # 1, or 0 if the solver gave up

cdef double SPEED = 0.9  # m/s

ROW = np.dtype([("t", "f8"), ("z", "f8", STATES), ("u", "f8", 2), ("solving", "i8"), ("solved", "i8")], align=True)
assert ROW.itemsize == sizeof(Row)


cdef int64_t now(bint in_virtual_time) noexcept nogil:
    """Return the time in ns; in virtual time the thread's CPU time, on which other programs have no effect.

    The thread's clock needs a system call, the other clock does not.
    """
    cdef timespec time
    clock_gettime(CLOCK_THREAD_CPUTIME_ID if in_virtual_time else CLOCK_MONOTONIC, &time)
    return time.tv_sec * <int64_t>1_000_000_000 + time.tv_nsec


cdef class Crane(RTLoop):
    """Simulate a crane, solve for its acceleration, and measure how long that takes."""

    cdef double z[STATES]
    cdef double u[2]
    cdef double goal, rope    # m, set from outside
    cdef double reference[2]  # m, which approach these at SPEED
    cdef readonly bint in_virtual_time
    cdef readonly int64_t worst  # ns, longest time to solve in all runs
    cdef readonly int64_t unsolved
    cdef readonly Ring log

    def __init__(self, period="1kHz", *, in_virtual_time=False, **settings):
        super().__init__(period, **settings)
        self.in_virtual_time = in_virtual_time
        self.log = Ring(ROW, 65536)
        self.z[4] = self.reference[1] = 1
        self.parameter("goal", &self.goal, 0.0).limits(-20, 20).unit("m")
        self.parameter("rope", &self.rope, 1.0).limits(0.5, 2.5).unit("m")
        self.signal("sway", &self.z[2]).unit("rad")
        self.signal("position", &self.z[0]).unit("m")

    cdef bint solve(self) noexcept nogil:
        """Compute `u` from `z` and the goal; return whether there is a solution."""
        return True

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef Row row
        cdef int64_t begin
        cdef int i
        self.move(cycle.dt if cycle.index else 0)  # with a real crane, read its sensors
        self.approach(self.reference, self.goal, cycle.dt)
        self.approach(self.reference + 1, self.rope, cycle.dt)
        begin = now(self.in_virtual_time)
        row.solved = self.solve()
        row.solving = now(self.in_virtual_time) - begin
        self.worst = max(self.worst, row.solving)
        self.unsolved += not row.solved
        row.t = cycle.t
        for i in range(STATES):
            row.z[i] = self.z[i]
        row.u[0], row.u[1] = self.u[0], self.u[1]
        self.log.push(&row)
        return RT_CONTINUE

    cdef void move(self, double dt) noexcept nogil:
        """Advance the crane by `dt`."""
        cdef double *z = self.z
        z[3] -= dt * (self.u[0] * cos(z[2]) + 9.81 * sin(z[2]) + 2 * z[5] * z[3]) / z[4]
        z[1] += dt * self.u[0]
        z[5] += dt * self.u[1]
        z[0] += dt * z[1]
        z[2] += dt * z[3]
        z[4] += dt * z[5]

    cdef void approach(self, double *reference, double goal, double dt) noexcept nogil:
        """Move a reference towards its goal, so that successive problems differ little."""
        reference[0] += max(-SPEED * dt, min(SPEED * dt, goal - reference[0]))

    cdef void leave(self) noexcept nogil:
        self.u[0] = self.u[1] = 0


cdef class Linear(Crane):
    """Solve a quadratic program over one second, with a rope of constant length: OSQP's generated code.

    Its workspace is one global object, so a process has one such loop.
    """

    cdef double cost[CRANE_VARIABLES]
    cdef double lower[CRANE_ROWS]
    cdef double upper[CRANE_ROWS]

    def setup(self):
        cdef int i
        osqp_cold_start(&crane_solver)
        for i in range(CRANE_ROWS):
            self.lower[i], self.upper[i] = crane_lower[i], crane_upper[i]

    cdef bint solve(self) noexcept nogil:
        cdef int i
        for i in range(4):
            self.lower[i] = self.upper[i] = self.z[i]
        for i in range(CRANE_VARIABLES):
            self.cost[i] = self.reference[0] * crane_pull[i]
        self.cost[CRANE_VARIABLES - 1] = CRANE_PRICE  # of the sway beyond its limit
        osqp_update_data_vec(&crane_solver, self.cost, self.lower, self.upper)
        osqp_solve(&crane_solver)
        self.u[0] = crane_solver.solution.x[CRANE_INPUT]
        return crane_solver.info.status_val == OSQP_SOLVED


cdef class Nonlinear(Crane):
    """Improve a nonlinear program over one second by one iteration per cycle: CasADi's generated code."""

    cdef double at[STATES + 2]
    cdef double values[2][FREE]   # of this and of the previous cycle
    cdef double of_values[2][FREE]  # multipliers
    cdef double of_bounds[2][BOUND]
    cdef int turn
    cdef const double *arguments[nmpc_SZ_ARG]
    cdef double *results[nmpc_SZ_RES]
    cdef casadi_int integers[nmpc_SZ_IW]
    cdef double work[nmpc_SZ_W]

    def setup(self):
        cdef int i
        for i in range(FREE):
            self.values[0][i] = self.of_values[0][i] = 0
        for i in range(BOUND):
            self.of_bounds[0][i] = 0
        self.turn = 0

    cdef bint solve(self) noexcept nogil:
        cdef int i, old = self.turn, new = 1 - self.turn
        for i in range(STATES):
            self.at[i] = self.z[i]
        self.at[STATES], self.at[STATES + 1] = self.reference[0], self.reference[1]
        self.arguments[0], self.arguments[1] = self.at, self.values[old]
        self.arguments[2], self.arguments[3] = self.of_values[old], self.of_bounds[old]
        self.results[0], self.results[1], self.results[2] = self.values[new], self.of_values[new], self.of_bounds[new]
        if nmpc(self.arguments, self.results, self.integers, self.work, 0) or not isfinite(self.values[new][0]):
            return False  # go on with the accelerations of the previous cycle
        self.turn = new
        self.u[0], self.u[1] = self.values[new][0], self.values[new][1]
        return True

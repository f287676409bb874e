# distutils: sources = mpc_workspace.c src/*.c
# distutils: include_dirs = . inc/public inc/private
# distutils: define_macros = OSQP_EMBEDDED_MODE=1
"""Code that OSQP has generated, solved in each cycle for the state of a double integrator."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

import numpy as np

cdef extern from "osqp.h" nogil:
    ctypedef double OSQPFloat
    ctypedef long long OSQPInt
    ctypedef struct OSQPSolution:
        OSQPFloat *x
    ctypedef struct OSQPInfo:
        OSQPInt status_val
        OSQPInt iter
    ctypedef struct OSQPSolver:
        OSQPSolution *solution
        OSQPInfo *info
    OSQPInt osqp_update_data_vec(OSQPSolver *solver, const OSQPFloat *q, const OSQPFloat *l, const OSQPFloat *u)
    OSQPInt osqp_solve(OSQPSolver *solver)

cdef extern from "mpc_workspace.h" nogil:
    OSQPSolver mpc_solver


cdef class Controller(RTLoop):
    """Solve for the plant's state, apply the first input, and advance the plant."""

    cdef double[::1] lower, upper
    cdef double x, v, dt
    cdef Py_ssize_t first
    cdef readonly long unsolved

    def __init__(self, period, lower, upper, first, dt, **settings):
        super().__init__(period, **settings)
        self.lower, self.upper, self.first, self.dt = np.array(lower), np.array(upper), first, dt
        self.x = 1

    @property
    def state(self):
        return self.x, self.v

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef double force
        self.lower[0] = self.upper[0] = -self.x
        self.lower[1] = self.upper[1] = -self.v
        osqp_update_data_vec(&mpc_solver, NULL, &self.lower[0], &self.upper[0])
        osqp_solve(&mpc_solver)
        self.unsolved += mpc_solver.info.status_val != 1
        force = mpc_solver.solution.x[self.first]
        self.x += self.dt * self.v + 0.5 * self.dt * self.dt * force
        self.v += self.dt * force
        if cycle.index % 1000 == 999:
            self.x = 1  # a new setpoint each second
        return RT_CONTINUE

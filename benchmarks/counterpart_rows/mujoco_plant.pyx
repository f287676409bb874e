# rtloop: packages = mujoco
"""MuJoCo's step in C, on a model and data that were made in Python."""

from rtloop cimport RT_CONTINUE, Cycle, RTLoop

cdef extern from "mujoco/mujoco.h" nogil:
    ctypedef struct mjModel:
        pass
    ctypedef struct mjData:
        pass
    void mj_step(const mjModel *model, mjData *data)


cdef class Plant(RTLoop):
    """Advance a model by one of its time steps in each cycle."""

    cdef object model, data
    cdef const mjModel *m
    cdef mjData *d

    def __init__(self, period, model, data, **settings):
        super().__init__(period, **settings)
        self.model, self.data = model, data
        self.m, self.d = <const mjModel *><size_t>model._address, <mjData *><size_t>data._address

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        mj_step(self.m, self.d)
        return RT_CONTINUE

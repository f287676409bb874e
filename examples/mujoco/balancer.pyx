# rtloop: packages = mujoco
# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""A two-wheeled robot in MuJoCo, one physics step per cycle, and the controller that balances and drives it."""

from libc.stdint cimport int64_t

from rtloop cimport RT_CONTINUE, Cycle, Latest, Ring, RTLoop

import mujoco  # its library is loaded; this module uses the same file
import numpy as np

cdef extern from "mujoco/mujoco.h" nogil:
    ctypedef struct mjModel:
        pass
    ctypedef struct mjData:
        double time
        double *qpos
        double *qvel
        double *ctrl
        double *xfrc_applied
    void mj_step(const mjModel *model, mjData *data)

cdef enum:
    JOINTS = 4          # x, z, pitch, wheels
    CHASSIS = 1         # number of the body
    LONGEST_GAP = 100   # physics steps in one cycle after missed releases, at most


cdef struct State:
    int64_t release        # ns, of the cycle that computed it
    double time            # s, as the simulator counts
    double q[JOINTS]       # m, m, rad, rad
    double v[JOINTS]
    double torque          # Nm, that led to it

STATE = np.dtype(
    [("release", "i8"), ("time", "f8"), ("q", "f8", JOINTS), ("v", "f8", JOINTS), ("torque", "f8")], align=True
)
assert STATE.itemsize == sizeof(State)


cdef class Plant(RTLoop):
    """Advance the robot by one time step in each cycle, and by one more for each missed release."""

    cdef object model, data  # keep the memory that the pointers refer to
    cdef const mjModel *m
    cdef mjData *d
    cdef readonly Latest state, torque
    cdef readonly Ring log
    cdef double push

    def __init__(self, model, data, **settings):
        if not isinstance(model, mujoco.MjModel) or not isinstance(data, mujoco.MjData):
            raise TypeError("give an MjModel and an MjData")
        super().__init__(f"{round(model.opt.timestep * 1e9)}ns", **settings)
        if model.nq != JOINTS or model.nv != JOINTS or model.nu != 1:
            raise ValueError(f"the model has {model.nq} positions and {model.nu} motors, not {JOINTS} and 1")
        self.model, self.data = model, data
        self.m, self.d = <const mjModel *><size_t>model._address, <mjData *><size_t>data._address
        self.state, self.torque, self.log = Latest(STATE), Latest("f8"), Ring(STATE, 65536)
        self.parameter("push", &self.push, 0.0).limits(-100, 100).unit("N")

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef State state
        cdef int64_t steps = 1 + cycle.missed
        self.torque.read(self.d.ctrl)  # the newest, or unchanged
        self.d.xfrc_applied[6 * CHASSIS] = self.push
        for _ in range(min(steps, <int64_t>LONGEST_GAP)):
            mj_step(self.m, self.d)
        state.release, state.time, state.torque = cycle.release, self.d.time, self.d.ctrl[0]
        for i in range(JOINTS):
            state.q[i], state.v[i] = self.d.qpos[i], self.d.qvel[i]
        self.state.write(&state)
        self.log.push(&state)
        return RT_CONTINUE


cdef class Balance(RTLoop):
    """Compute the torque of the wheels from the state: drive to `goal` at `speed`, upright."""

    cdef Latest state, torque
    cdef State seen
    cdef double gains[2 * JOINTS]
    cdef double rest[JOINTS]
    cdef double goal, speed, limit, reference

    def __init__(self, period, Plant plant, gains, rest, **settings):
        super().__init__(period, **settings)
        self.state, self.torque = plant.state, plant.torque
        for i, value in enumerate(np.broadcast_to(gains, 2 * JOINTS)):
            self.gains[i] = value
        for i, value in enumerate(np.broadcast_to(rest, JOINTS)):
            self.rest[i] = self.seen.q[i] = value
        self.limit = plant.model.actuator_ctrlrange[0, 1]
        self.parameter("goal", &self.goal, 0.0).limits(-10, 10).unit("m")
        self.parameter("speed", &self.speed, 0.5).limits(0, 2).unit("m/s")
        self.signal("reference", &self.reference).unit("m")

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef int i
        cdef double way = self.goal - self.reference, most = self.speed * cycle.dt, torque = 0
        self.reference += max(-most, min(most, way))
        self.state.read(&self.seen)
        for i in range(JOINTS):
            torque -= self.gains[i] * (self.seen.q[i] - self.rest[i] - (self.reference if i == 0 else 0))
        for i in range(JOINTS):
            torque -= self.gains[JOINTS + i] * self.seen.v[i]
        torque = max(-self.limit, min(self.limit, torque))
        self.torque.write(&torque)
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        """Switch the motor off, however the loop ended."""
        cdef double none = 0
        self.torque.write(&none)

# rtloop: packages = mujoco
# cython: boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""A humanoid in three loops: the robot in MuJoCo and its drives at 1 kHz, and a neural network at 50 Hz.

The network runs in ONNX Runtime. Its C interface is a table of functions whose order never changes, so neither a header
nor the linker is needed: OrtGetApiBase, found by ctypes, is the only symbol.
"""

from libc.errno cimport EIO
from libc.math cimport M_PI, cos, fabs, fmod, sin
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from rtloop cimport RT_CONTINUE, Cycle, Latest, Ring, RTLoop

import ctypes
import os

import mujoco  # its library is loaded; this module uses the same file
import numpy as np

cdef extern from "errno.h" nogil:
    int ECANCELED

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

ctypedef void *const *(*get_api_t)(uint32_t version) noexcept nogil

cdef struct ApiBase:
    get_api_t api

ctypedef const ApiBase *(*get_api_base_t)() noexcept nogil

# Positions in the table of functions, and their types. Each returns NULL, or a status with a message.
cdef enum:
    API = 16  # a version of the table that all newer libraries have
    GET_ERROR_MESSAGE = 2
    CREATE_ENV = 3
    CREATE_SESSION = 7
    RUN = 9
    CREATE_SESSION_OPTIONS = 10
    SET_INTRA_OP_THREADS = 24
    SET_INTER_OP_THREADS = 25
    CREATE_TENSOR = 49
    CREATE_CPU_MEMORY_INFO = 69
    RELEASE_ENV = 92
    RELEASE_STATUS = 93
    RELEASE_MEMORY_INFO = 94
    RELEASE_SESSION = 95
    RELEASE_VALUE = 96
    RELEASE_SESSION_OPTIONS = 100
    WARNING = 2
    FLOAT = 1

ctypedef const char *(*message_t)(void *status) noexcept nogil
ctypedef void *(*create_env_t)(int severity, const char *name, void **env) noexcept nogil
ctypedef void *(*create_options_t)(void **options) noexcept nogil
ctypedef void *(*set_int_t)(void *options, int value) noexcept nogil
ctypedef void *(*create_session_t)(void *env, const char *path, void *options, void **session) noexcept nogil
ctypedef void *(*create_memory_info_t)(int allocator, int memory, void **info) noexcept nogil
ctypedef void *(*create_tensor_t)(void *info, void *data, size_t size, const int64_t *shape, size_t dimensions,
                                  int type, void **tensor) noexcept nogil
ctypedef void *(*run_t)(void *session, void *options, const char **inputs, const void **values, size_t count,
                        const char **outputs, size_t output_count, void **results) noexcept nogil
ctypedef void (*release_t)(void *thing) noexcept nogil

cdef enum:
    JOINTS = 29
    OBSERVED = 100


cdef struct State:
    int64_t release         # ns, of the cycle that computed it
    double time             # s, as the simulator counts
    double position[3]      # m, of the pelvis
    double quaternion[4]
    double gyro[3]          # rad/s, in the pelvis' frame
    double q[JOINTS]        # rad
    double v[JOINTS]        # rad/s

cdef struct Row:
    double time
    double position[3]
    double upright          # cosine of the pelvis' inclination
    double push             # N, present

STATE = np.dtype(
    [("release", "i8"), ("time", "f8"), ("position", "f8", 3), ("quaternion", "f8", 4), ("gyro", "f8", 3),
     ("q", "f8", JOINTS), ("v", "f8", JOINTS)],
    align=True,
)
ROW = np.dtype([("time", "f8"), ("position", "f8", 3), ("upright", "f8"), ("push", "f8")], align=True)
JOINT_VALUES = np.dtype([("values", "f8", JOINTS)])
assert (STATE.itemsize, ROW.itemsize) == (sizeof(State), sizeof(Row))


cdef class Robot(RTLoop):
    """Advance the robot by one time step in each cycle, push it from time to time, and detect a fall."""

    cdef object model, data  # keep the memory that the pointers refer to
    cdef const mjModel *m
    cdef mjData *d
    cdef readonly Latest torque, to_drives, to_policy, pose
    cdef readonly Ring log
    cdef readonly int64_t pushes
    cdef int pushed, log_every
    cdef double push, every, lowest
    cdef int held
    cdef double force[2]
    cdef uint64_t random
    cdef int64_t until, next_push

    def __init__(self, model, data, *, share=None, pushed="torso_link", seed=1, log_every=10, **settings):
        super().__init__(f"{round(model.opt.timestep * 1e9)}ns", **settings)
        if (model.nq, model.nv, model.nu) != (JOINTS + 7, JOINTS + 6, JOINTS):
            raise ValueError(f"the model has {model.nu} motors; the loops are written for {JOINTS}")
        if not isinstance(model, mujoco.MjModel) or not isinstance(data, mujoco.MjData):
            raise TypeError("give an MjModel and an MjData")
        self.model, self.data = model, data
        self.m, self.d = <const mjModel *><size_t>model._address, <mjData *><size_t>data._address
        self.torque, self.to_drives, self.to_policy = Latest(JOINT_VALUES), Latest(STATE), Latest(STATE)
        self.pose = Latest(STATE) if share is None else Latest(STATE, share=share)  # for a viewer
        self.log = Ring(ROW, 65536)
        self.pushed, self.random, self.log_every = model.body(pushed).id, seed, log_every
        self.lowest = 0.5
        self.parameter("push", &self.push, 0.0).limits(0, 500).unit("N")
        self.parameter("held", &self.held, 0, "i4").limits(0, 1)  # 1: it hangs from a hoist, and does not move
        self.parameter("every", &self.every, 4.0).limits(0.5, 60).unit("s")

    def setup(self):
        self.until = self.next_push = 0

    cdef double uniform(self) noexcept nogil:
        """Return the next pseudo-random number in [0, 1)."""
        self.random = self.random * 6364136223846793005ULL + 1442695040888963407ULL
        return (self.random >> 11) * (1.0 / 9007199254740992.0)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef State state
        cdef Row row
        cdef double angle
        cdef int i
        cdef int64_t steps = 0 if self.held else min(1 + cycle.missed, <int64_t>100)
        self.torque.read(self.d.ctrl)
        if self.push > 0 and cycle.release >= self.next_push:
            if self.next_push > 0:
                angle, self.until = 2 * M_PI * self.uniform(), cycle.release + 100_000_000
                self.force[0], self.force[1] = self.push * cos(angle), self.push * sin(angle)
                self.pushes += 1
            self.next_push = cycle.release + <int64_t>(1e9 * self.every * (0.5 + self.uniform()))
        for i in range(2):
            self.d.xfrc_applied[6 * self.pushed + i] = self.force[i] if cycle.release < self.until else 0
        for _ in range(steps):
            mj_step(self.m, self.d)
        state.release, state.time = cycle.release, self.d.time
        memcpy(state.position, self.d.qpos, sizeof(state.position))
        memcpy(state.quaternion, self.d.qpos + 3, sizeof(state.quaternion))
        memcpy(state.gyro, self.d.qvel + 3, sizeof(state.gyro))
        memcpy(state.q, self.d.qpos + 7, sizeof(state.q))
        memcpy(state.v, self.d.qvel + 6, sizeof(state.v))
        self.to_drives.write(&state)
        self.to_policy.write(&state)
        self.pose.write(&state)
        if cycle.index % self.log_every == 0:
            row.time, row.push = state.time, self.push if cycle.release < self.until else 0
            memcpy(row.position, state.position, sizeof(row.position))
            row.upright = 1 - 2 * (state.quaternion[1] ** 2 + state.quaternion[2] ** 2)
            self.log.push(&row)
        return RT_CONTINUE if state.position[2] > self.lowest else -ECANCELED  # it has fallen


cdef class Drives(RTLoop):
    """Control the angles of the joints, as the robot's own drives do: torque = kp (target - q) - kd q'."""

    cdef Latest state, torque
    cdef readonly Latest target
    cdef State seen
    cdef double kp[JOINTS]
    cdef double kd[JOINTS]
    cdef double limit[JOINTS]
    cdef double wanted[JOINTS]

    def __init__(self, period, Robot robot, kp, kd, limit, posture, *, share=None, **settings):
        super().__init__(period, **settings)
        self.state, self.torque = robot.to_drives, robot.torque
        self.target = Latest(JOINT_VALUES) if share is None else Latest(JOINT_VALUES, share=share, role="reader")
        for i in range(JOINTS):
            self.kp[i], self.kd[i], self.limit[i], self.wanted[i] = kp[i], kd[i], limit[i], posture[i]
            self.seen.q[i] = posture[i]

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef double torque[JOINTS]
        cdef int i
        self.state.read(&self.seen)
        self.target.read(self.wanted)
        for i in range(JOINTS):
            torque[i] = self.kp[i] * (self.wanted[i] - self.seen.q[i]) - self.kd[i] * self.seen.v[i]
            torque[i] = max(-self.limit[i], min(self.limit[i], torque[i]))
        self.torque.write(torque)
        return RT_CONTINUE

    cdef void leave(self) noexcept nogil:
        """Only damp, however the loop ended: with the gains of a real robot, it sinks down."""
        cdef double torque[JOINTS]
        cdef int i
        for i in range(JOINTS):
            torque[i] = 0
        self.torque.write(torque)


cdef class Network:
    """An ONNX file with one input and one output, of one row of floats each, on the calling thread."""

    cdef void *const *api
    cdef void *env
    cdef void *options
    cdef void *session
    cdef void *memory
    cdef void *input
    cdef void *output
    cdef float observed[OBSERVED]
    cdef float action[JOINTS]
    cdef object names
    cdef const char *input_name
    cdef const char *output_name

    def __cinit__(self, library, path, input_name, output_name):
        cdef int64_t shape[2]
        cdef size_t base = ctypes.cast(ctypes.CDLL(os.fspath(library)).OrtGetApiBase, ctypes.c_void_p).value
        cdef bytes name = os.fsencode(path)
        self.names = (input_name.encode(), output_name.encode())
        self.input_name, self.output_name = self.names[0], self.names[1]
        self.api = (<get_api_base_t>base)().api(API)
        if self.api == NULL:
            raise RuntimeError(f"{library} does not have version {API} of the C interface")
        self.check((<create_env_t>self.api[CREATE_ENV])(WARNING, "rtloop", &self.env))
        self.check((<create_options_t>self.api[CREATE_SESSION_OPTIONS])(&self.options))
        self.check((<set_int_t>self.api[SET_INTRA_OP_THREADS])(self.options, 1))  # no threads: the step computes
        self.check((<set_int_t>self.api[SET_INTER_OP_THREADS])(self.options, 1))
        self.check((<create_session_t>self.api[CREATE_SESSION])(self.env, name, self.options, &self.session))
        self.check((<create_memory_info_t>self.api[CREATE_CPU_MEMORY_INFO])(1, 0, &self.memory))
        shape[0], shape[1] = 1, OBSERVED
        self.check((<create_tensor_t>self.api[CREATE_TENSOR])(
            self.memory, self.observed, sizeof(self.observed), shape, 2, FLOAT, &self.input))
        shape[1] = JOINTS
        self.check((<create_tensor_t>self.api[CREATE_TENSOR])(
            self.memory, self.action, sizeof(self.action), shape, 2, FLOAT, &self.output))

    def __dealloc__(self):
        if self.api != NULL:
            for thing, release in (
                (<size_t>self.output, RELEASE_VALUE), (<size_t>self.input, RELEASE_VALUE),
                (<size_t>self.memory, RELEASE_MEMORY_INFO), (<size_t>self.session, RELEASE_SESSION),
                (<size_t>self.options, RELEASE_SESSION_OPTIONS), (<size_t>self.env, RELEASE_ENV),
            ):
                if thing:
                    (<release_t>self.api[<int>release])(<void *><size_t>thing)

    cdef int check(self, void *status) except -1:
        """Raise the error that a function of ONNX Runtime has reported."""
        if status != NULL:
            message = (<message_t>self.api[GET_ERROR_MESSAGE])(status).decode()
            (<release_t>self.api[RELEASE_STATUS])(status)
            raise RuntimeError(f"ONNX Runtime: {message}")
        return 0

    cdef void *run(self) noexcept nogil:
        """Compute `action` from `observed`; return NULL or a status."""
        cdef const void *inputs = self.input
        return (<run_t>self.api[RUN])(
            self.session, NULL, &self.input_name, &inputs, 1, &self.output_name, 1, &self.output)

    def __call__(self, observed):
        """Return the action for these observations."""
        if len(observed) != OBSERVED:
            raise ValueError(f"{len(observed)} values; the network takes {OBSERVED}")
        for i in range(OBSERVED):
            self.observed[i] = observed[i]
        self.check(self.run())
        return np.array([self.action[i] for i in range(JOINTS)], dtype="f4")


cdef class Policy(RTLoop):
    """Compute the targets of all joints by the network, from the robot's state and the commanded velocity."""

    cdef readonly Network network
    cdef readonly Latest target
    cdef Latest state
    cdef State seen
    cdef double posture[JOINTS]
    cdef double scale
    cdef double phase[2]
    cdef double forward, sideways, turn
    cdef bint is_standing

    def __init__(self, period, Robot robot, Drives drives, runtime, path, posture, scale, **settings):
        super().__init__(period, **settings)
        if drives.target.role == "reader":
            raise ValueError("the drives take their targets from another process: make them without share=")
        self.network = Network(runtime, path, "actor_obs", "action")
        self.state, self.target, self.scale = robot.to_policy, drives.target, scale
        for i in range(JOINTS):
            self.posture[i] = self.seen.q[i] = posture[i]
        self.seen.quaternion[0] = 1
        self.parameter("forward", &self.forward, 0.0).limits(-1, 1).unit("m/s")
        self.parameter("sideways", &self.sideways, 0.0).limits(-1, 1).unit("m/s")
        self.parameter("turn", &self.turn, 0.0).limits(-1, 1).unit("rad/s")

    def setup(self):
        for _ in range(20):
            self.network([0] * OBSERVED)  # ONNX Runtime allocates its memory in the first calls
        for i in range(JOINTS):
            self.network.action[i] = 0
        self.phase[0], self.phase[1] = 0, M_PI
        self.is_standing = False

    cdef void observe(self) noexcept nogil:
        """Write the observations in the alphabetical order of their names, scaled as in training."""
        cdef float *o = self.network.observed
        cdef double *quaternion = self.seen.quaternion
        cdef double w = quaternion[0], x = quaternion[1], y = quaternion[2], z = quaternion[3]
        cdef int i
        for i in range(JOINTS):
            o[i] = self.network.action[i]                               # actions
            o[37 + i] = <float>(self.seen.q[i] - self.posture[i])       # dof_pos
            o[66 + i] = <float>(0.05 * self.seen.v[i])                  # dof_vel
        for i in range(3):
            o[29 + i] = <float>(0.25 * self.seen.gyro[i])               # base_ang_vel
        o[32], o[33], o[34] = <float>self.turn, <float>self.forward, <float>self.sideways
        for i in range(2):
            o[35 + i] = <float>cos(self.phase[i])
            o[98 + i] = <float>sin(self.phase[i])
        o[95] = <float>(-2 * (x * z - w * y))                           # projected_gravity
        o[96] = <float>(-2 * (y * z + w * x))
        o[97] = <float>(2 * (x * x + y * y) - 1)

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef double target[JOINTS]
        cdef int i
        self.state.read(&self.seen)
        self.observe()
        if self.network.run() != NULL:
            return -EIO
        for i in range(JOINTS):
            self.network.action[i] = max(<float>-100, min(<float>100, self.network.action[i]))
            target[i] = self.posture[i] + self.scale * self.network.action[i]
        self.target.write(target)
        if fabs(self.forward) + fabs(self.sideways) + fabs(self.turn) < 0.01:  # both feet on the ground
            self.phase[0] = self.phase[1] = M_PI
            self.is_standing = True
        elif self.is_standing:
            self.phase[0], self.phase[1] = 0, M_PI
            self.is_standing = False
        else:
            for i in range(2):
                self.phase[i] = fmod(self.phase[i] + 2 * M_PI * cycle.dt + M_PI, 2 * M_PI) - M_PI
        return RT_CONTINUE

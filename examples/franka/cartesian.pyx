# rtloop: packages = mujoco
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Cartesian impedance control of a Franka robot: a spring and a damper at the hand, with a model in MuJoCo."""

from franka cimport JOINTS, Franka
from libc.errno cimport EDOM
from libc.math cimport M_PI, cos, sin, sqrt

import mujoco

cdef extern from "mujoco/mujoco.h" nogil:
    ctypedef struct mjModel:
        pass
    ctypedef struct mjData:
        double *qpos
        double *qvel
        double *xpos  # 3 numbers a body
        double *xmat  # 9, row by row
    void mj_kinematics(const mjModel *model, mjData *data)
    void mj_comPos(const mjModel *model, mjData *data)
    void mj_comVel(const mjModel *model, mjData *data)
    void mj_jac(const mjModel *model, const mjData *data, double *linear, double *turn, const double *point, int body)
    void mj_rne(const mjModel *model, mjData *data, int with_acceleration, double *result)

cdef enum:
    AXES = 6  # three of the position, three of the orientation

cdef double FLANGE = 0.107      # m from the origin of the last link to the flange, along its axis, of an FR3 and an FER
cdef double TOLERANCE = 0.01    # m, of the model's flange from the robot's
cdef double REGULAR = 1e-4      # added to J J^T, so that its inverse stays bounded near a singular pose


cdef class Cartesian(Franka):
    """Cartesian impedance by torques: a spring and a damper between the hand and a swinging pose.

    The hand's pose is the robot's own (`O_T_EE`); the Jacobian and the Coriolis torques are the model's. A weak spring
    holds the posture at the start, as far as that does not move the hand. The robot adds gravity.

    Parameters
    ----------
    model : str or path
        The arm as MJCF or URDF, with seven joints and no hand.
    amplitude : sequence of float
        Of the swing of the hand, m along the axes of the base.
    stiffness : float
        Of the spring, N/m.
    """

    cdef object model_object, data_object  # keep the memory that the pointers refer to
    cdef mjModel *model
    cdef mjData *data
    cdef int body                          # the last link
    cdef double[3] amplitude, home
    cdef double[9] turn_home               # columns of the hand's rotation at the start
    cdef double[42] jacobian               # 6 x 7: three rows linear, three angular
    cdef double[7] coriolis
    cdef double stiffness, turn_stiffness, posture
    cdef double distance, angle

    def __init__(self, period="1kHz", *, model, amplitude=(0, 0.1, 0.1), stiffness=400.0, **settings):
        super().__init__(period, swing=(0,) * JOINTS, **settings)
        if len(amplitude) != 3:
            raise ValueError(f"amplitude={amplitude!r} has {len(amplitude)} values; the base has 3 axes")
        self.controller, self.generator = 2, 4
        made = self.model_object = mujoco.MjModel.from_xml_path(str(model))
        if (made.nq, made.nv) != (JOINTS, JOINTS):
            raise ValueError(f"{model} has {made.nq} positions and {made.nv} velocities; the arm has {JOINTS} joints")
        made.opt.gravity[:] = 0
        self.data_object = mujoco.MjData(made)
        self.model, self.data = <mjModel *><size_t>made._address, <mjData *><size_t>self.data_object._address
        self.body = made.jnt_bodyid[JOINTS - 1]
        for i in range(3):
            self.amplitude[i] = amplitude[i]
        self.turn_stiffness, self.posture = 30, 10                  # Nm/rad
        self.parameter("stiffness", &self.stiffness, stiffness).limits(50, 1000).unit("N/m")
        self.signal("distance", &self.distance).unit("m")           # of the hand from its target
        self.signal("angle", &self.angle).unit("rad")

    cdef int enter(self) noexcept nogil:
        cdef int rc = Franka.enter(self)
        return rc if rc < 0 or self.has_right_flange() else -EDOM

    cdef bint has_right_flange(self) noexcept nogil:
        """Return whether the flange of the robot is where the model allows it: on the axis of its last link."""
        cdef double away, axis, along = 0, squares = 0
        cdef int i, j, k
        self.update_model()
        for i in range(3):
            away = self.state.O_T_EE[12 + i]  # O_T_EE is O_T_F F_T_EE
            for j in range(3):
                for k in range(3):
                    away -= self.state.O_T_EE[4 * j + i] * self.state.F_T_EE[4 * j + k] * self.state.F_T_EE[12 + k]
            away -= self.data.xpos[3 * self.body + i]
            axis = self.data.xmat[9 * self.body + 3 * i + 2]
            along += away * axis
            squares += away * away
        # A robot is at FLANGE; franka-sim 1.1.7 at 0, because it reports the last link as the flange.
        return -TOLERANCE < along < FLANGE + TOLERANCE and squares - along * along < TOLERANCE * TOLERANCE

    cdef void begin(self) noexcept nogil:
        cdef int i, j
        Franka.begin(self)
        for i in range(3):
            self.home[i] = self.state.O_T_EE[12 + i]
            for j in range(3):
                self.turn_home[3 * j + i] = self.state.O_T_EE[4 * j + i]

    cdef void update_model(self) noexcept nogil:
        """Compute the model at the state: its Jacobian at the hand, and the Coriolis torques."""
        cdef double[3] hand
        cdef int i
        for i in range(JOINTS):
            self.data.qpos[i], self.data.qvel[i] = self.state.q[i], self.state.dq[i]
        for i in range(3):
            hand[i] = self.state.O_T_EE[12 + i]
        mj_kinematics(self.model, self.data)
        mj_comPos(self.model, self.data)
        mj_comVel(self.model, self.data)
        mj_rne(self.model, self.data, 0, self.coriolis)
        mj_jac(self.model, self.data, self.jacobian, &self.jacobian[3 * JOINTS], hand, self.body)

    cdef void control(self) noexcept nogil:
        cdef double omega = 2 * M_PI * self.frequency
        cdef double swung = 0.5 * (1 - cos(omega * self.phase))
        cdef double swinging = 0.5 * omega * sin(omega * self.phase) * self.pace
        cdef double damping = 2 * sqrt(self.stiffness), turn_damping = 2 * sqrt(self.turn_stiffness)
        cdef double[6] wrench, free
        cdef double[7] tau
        cdef double off, squares = 0, turns = 0
        cdef int i, j
        self.update_model()
        for i in range(3):
            off = self.home[i] + self.amplitude[i] * swung - self.state.O_T_EE[12 + i]
            squares += off * off
            wrench[i] = self.stiffness * off + damping * (self.amplitude[i] * swinging - self.speed_along(i))
        for i in range(3):
            off = 0  # half the sum of the cross products of the axes, a rotation vector if it is small
            for j in range(3):
                off += 0.5 * self.state.O_T_EE[4 * j + (i + 1) % 3] * self.turn_home[3 * j + (i + 2) % 3]
                off -= 0.5 * self.state.O_T_EE[4 * j + (i + 2) % 3] * self.turn_home[3 * j + (i + 1) % 3]
            turns += off * off
            wrench[3 + i] = self.turn_stiffness * off - turn_damping * self.speed_along(3 + i)
        self.distance, self.angle = sqrt(squares), sqrt(turns)
        for j in range(JOINTS):
            tau[j] = self.posture * (self.start[j] - self.state.q[j]) - 2 * sqrt(self.posture) * self.state.dq[j]
        self.moving_part(tau, free)
        for j in range(JOINTS):
            tau[j] += self.coriolis[j]
            for i in range(AXES):
                tau[j] += self.jacobian[JOINTS * i + j] * (wrench[i] - free[i])
        self.command_torques(tau)

    cdef double speed_along(self, int axis) noexcept nogil:
        """Return the hand's speed along an axis, or its angular speed about one."""
        cdef double speed = 0
        cdef int j
        for j in range(JOINTS):
            speed += self.jacobian[JOINTS * axis + j] * self.state.dq[j]
        return speed

    cdef void moving_part(self, const double *tau, double *wrench) noexcept nogil:
        """Compute the wrench that torques put on the hand: (J J^T)^-1 J tau, by Cholesky's decomposition."""
        cdef double[36] lower
        cdef double value
        cdef int i, j, k
        for i in range(AXES):
            wrench[i] = 0
            for k in range(JOINTS):
                wrench[i] += self.jacobian[JOINTS * i + k] * tau[k]
            for j in range(i + 1):
                value = REGULAR if i == j else 0.0
                for k in range(JOINTS):
                    value += self.jacobian[JOINTS * i + k] * self.jacobian[JOINTS * j + k]
                for k in range(j):
                    value -= lower[AXES * i + k] * lower[AXES * j + k]
                lower[AXES * i + j] = sqrt(value) if i == j else value / lower[AXES * j + j]
            for j in range(i):
                wrench[i] -= lower[AXES * i + j] * wrench[j]
            wrench[i] /= lower[AXES * i + i]
        for i in range(AXES - 1, -1, -1):
            for j in range(i + 1, AXES):
                wrench[i] -= lower[AXES * j + i] * wrench[j]
            wrench[i] /= lower[AXES * i + i]

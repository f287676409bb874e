"""Declarations of franka.pyx, for controllers in modules of their own such as cartesian.pyx."""

from libc.math cimport fmax, fmin
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from rtloop cimport RTLoop

cdef enum:
    JOINTS = 7

# --- The codec: little-endian, packed. ---


cdef packed struct State:
    uint64_t message_id
    float O_T_EE[16]
    float O_T_EE_d[16]
    float F_T_EE[16]
    float EE_T_K[16]
    float F_T_NE[16]
    float NE_T_EE[16]
    float m_ee
    float I_ee[9]
    float F_x_Cee[3]
    float m_load
    float I_load[9]
    float F_x_Cload[3]
    float elbow[2]
    float elbow_d[2]
    float tau_J[7]
    float tau_J_d[7]
    float dtau_J[7]
    float q[7]
    float q_d[7]
    float dq[7]
    float dq_d[7]
    float ddq_d[7]
    float joint_contact[7]
    float cartesian_contact[6]
    float joint_collision[7]
    float cartesian_collision[6]
    float tau_ext_hat_filtered[7]
    float O_F_ext_hat_K[6]
    float K_F_ext_hat_K[6]
    float O_dP_EE_d[6]
    float O_ddP_O[3]
    float elbow_c[2]
    float delbow_c[2]
    float ddelbow_c[2]
    float O_T_EE_c[16]
    float O_dP_EE_c[6]
    float O_ddP_EE_c[6]
    float theta[7]
    float dtheta[7]
    float accelerometer_top[18]
    float accelerometer_bottom[18]
    uint8_t generator
    uint8_t controller
    uint8_t errors[41]
    uint8_t reflex_reason[41]
    uint8_t robot_mode
    float success_rate


cdef packed struct Command:
    uint64_t message_id
    double q_c[7]
    double dq_c[7]
    double O_T_EE_c[16]
    double O_dP_EE_c[6]
    double elbow_c[2]
    uint8_t valid_elbow
    uint8_t motion_finished
    double tau_J_d[7]
    uint8_t torque_finished


cdef inline double clip(double value, double limit) noexcept nogil:
    return fmax(-limit, fmin(limit, value))


cdef class Franka(RTLoop):
    cdef object tcp, udp, host, collision
    cdef int tcp_fd, udp_fd, number, port
    cdef uint32_t controller, generator
    cdef uint8_t[125] move
    cdef uint8_t[512] answer
    cdef size_t answer_size
    cdef State state
    cdef Command command
    cdef bint is_fresh, has_command, is_asked, is_moving, is_started, is_ending
    cdef int silent, silent_max  # waits without a state
    cdef uint64_t last
    cdef double[7] start, reference, speed, swing, tau_max  # rad, rad, rad/s of the reference, rad, Nm
    cdef double frequency, phase, pace
    cdef readonly int status          # the final answer to the newest Move; -1: none yet
    cdef readonly int refused         # status of a Move that did not start; -1: it did
    cdef readonly long answered       # states that were answered while the robot moved
    cdef readonly long behind         # cycles that left states in the queue
    cdef readonly double lowest_rate  # of the robot's success rates, after the first 100 answers
    cdef double rate, error, mode

    cdef void control(self) noexcept nogil
    cdef void command_torques(self, const double *tau) noexcept nogil
    cdef int send_command(self) noexcept nogil
    cdef int next_state(self) noexcept nogil
    cdef int read_newest(self) noexcept nogil
    cdef int await_start(self) noexcept nogil
    cdef void begin(self) noexcept nogil
    cdef int read_answer(self) noexcept nogil
    cdef void compute(self) noexcept nogil
    cdef bint is_at_rest(self) noexcept nogil

"""Datagrams between the cart-pole's plant and its controller, one each way, in native byte order."""

from libc.stdint cimport int64_t

cdef struct State:          # plant -> controller
    int64_t sequence
    int64_t time_ns         # CLOCK_MONOTONIC, when the plant was in this state
    double  x               # m, the cart, to the right
    double  v               # m/s
    double  angle           # rad, the pole: 0 is upright, to the right
    double  rate            # rad/s

cdef struct Force:          # controller -> plant
    int64_t answers         # time_ns of the state acted upon; 0 before there is one
    double  newtons         # on the cart, to the right

"""Start a program below a seccomp filter that answers an errno to one system call: filtered.py CALL ERRNO PROGRAM...

The filter is classic BPF, set with prctl(2) before the program is executed, as a service manager or a container does.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from rtloop.system.syscalls import number_of

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
BPF_LD_W_ABS, BPF_JEQ, BPF_RET = 0x20, 0x15, 0x06
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def forbid(call: str, error: int) -> None:
    """Answer `error` to a system call from now on, in this process and all that it executes."""
    number = number_of(call)
    assert number is not None, f"{call} is not a system call of this machine"
    code = (
        (BPF_LD_W_ABS, 0, 0, 0),  # the number is the first field of struct seccomp_data
        (BPF_JEQ, 0, 1, number),
        (BPF_RET, 0, 0, SECCOMP_RET_ERRNO | error),
        (BPF_RET, 0, 0, SECCOMP_RET_ALLOW),
    )
    text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    libc = ctypes.CDLL(None, use_errno=True)
    program = Program(len(code), ctypes.cast(text, ctypes.c_void_p))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


if __name__ == "__main__":
    forbid(sys.argv[1], int(sys.argv[2]))
    os.execv(sys.argv[3], sys.argv[3:])

"""Kill a process before and after each system call with which it claims a role in an exchange; a successor takes over.

    python killed_claims.py NAME

The victim is a forked child, which is traced with ptrace(2). Between two system calls it changes nothing that anybody
else sees, other than the data, whose instructions tests/native/test_killed.c steps. Prints the number of kills, or why
it cannot trace.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import rtloop
import rtloop.sharing.found_exchanges
from rtloop.system.syscalls import number_of

TRACE_ME, NEXT_CALL, SET_OPTIONS, CALL_INFO = 0, 24, 0x4200, 0x420E
MARK_CALLS, KILL_WITH_TRACER = 1, 0x100000
#: The calls that change the file, its locks and seals, or what is mapped of it.
CALLS = {number_of(name) for name in ("memfd_create", "ftruncate", "pwrite64", "fcntl", "mmap", "mlock", "munmap")}
#: Those that change the socket by which it is found, the lock of its path, or what is sent.
SOCKET_CALLS = {
    number_of(name)
    for name in ("fcntl", "flock", "unlink", "unlinkat", "bind", "fchmod", "listen", "connect", "recvmsg", "epoll_ctl")
}
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace.restype = ctypes.c_long


def trace(request: int, pid: int, address: int = 0, data: Any = None) -> None:
    """Call ptrace(2); end with the reason if it is refused."""
    if libc.ptrace(request, pid, address, data) < 0:
        if pid:
            os.kill(pid, signal.SIGKILL)
        sys.exit(f"cannot trace: {os.strerror(ctypes.get_errno())}")


def is_at_call(pid: int, calls: set[int | None]) -> bool:
    """Test whether a stopped process is before or after one of the calls."""
    info = ctypes.create_string_buffer(88)
    trace(CALL_INFO, pid, len(info), ctypes.addressof(info))
    (operation,) = struct.unpack_from("<B", info)
    if operation == 1:
        (is_at_call.number,) = struct.unpack_from("<Q", info, 24)  # type: ignore[attr-defined]
    return is_at_call.number in calls  # type: ignore[attr-defined]


def kill_at(nth: int, work: Callable[[], object], calls: set[int | None] = CALLS) -> bool:
    """Do some work in a child, and kill it at the nth stop; False if it has fewer."""
    pid = os.fork()
    if pid == 0:
        trace(TRACE_ME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        os._exit(0)
    is_at_call.number = -1  # type: ignore[attr-defined]
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status):
        sys.exit("cannot trace: the child may not be")
    trace(SET_OPTIONS, pid, 0, MARK_CALLS | KILL_WITH_TRACER)
    stops = 0
    while True:
        trace(NEXT_CALL, pid)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "the victim has failed by itself"
            return False
        if os.WSTOPSIG(status) == signal.SIGTRAP | 0x80 and is_at_call(pid, calls):
            stops += 1
            if stops == nth:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return True


def create(name: str) -> int:
    """The victim creates an exchange. Nothing is left of it."""
    kills = 0
    while kill_at(kills + 1, lambda: rtloop.Latest("f8", share=name).write(1.0)):
        kills += 1
        assert rtloop.sharing.found_exchanges.find_exchanges(name) == {}
        with rtloop.Latest("f8", share=name) as writer, rtloop.Latest.open(name) as reader:
            writer.write(float(kills))
            assert (writer.written, reader.read()) == (1, kills)
    return kills


def take_over_latest(name: str, role: str) -> int:
    """The victim takes a side of an exchange that this process keeps. It is free afterwards."""

    def work() -> None:
        side = rtloop.Latest.open(name, role)
        if role == "writer":
            side.write(side.written + 1.0)
        else:
            side.read()

    kills, other = 0, {"writer": "reader", "reader": "writer"}[role]
    with rtloop.Latest("f8", share=name, role=other) as kept:
        while kill_at(kills + 1, work):
            kills += 1
            assert kept.peers == ()
            with rtloop.Latest.open(name, role) as successor:
                writer, reader = (successor, kept) if role == "writer" else (kept, successor)
                assert reader.read() == writer.written, "a value is there with its number, or not at all"
                writer.write(writer.written + 1.0)
                assert reader.read() == writer.written
    return kills


def take_over_ring(name: str, role: str) -> int:
    """The same with a ring of consecutive numbers: at most the item in the victim's hand is gone."""

    def work() -> None:
        side = rtloop.Ring.open(name, role)
        if role == "producer":
            side.push(end[0])
        else:
            side.pop()

    end, next_one, kills = [0], 0, 0
    with rtloop.Ring("i8", 64, share=name, role="consumer" if role == "producer" else "producer") as kept:
        while kill_at(kills + 1, work):
            kills += 1
            assert kept.peers == ()
            with rtloop.Ring.open(name, role) as successor:
                producer, consumer = (successor, kept) if role == "producer" else (kept, successor)
                if role == "producer":
                    end[0] += len(producer)  # the victim's item is there, or not
                producer.push([end[0], end[0] + 1])
                end[0] += 2
                got = consumer.drain().tolist()
                assert got[0] in (next_one, next_one + (role == "consumer"))
                assert got == list(range(got[0], end[0])), "nothing is torn, lost in between, or there twice"
                next_one = end[0]
                if role == "consumer":
                    producer.push(end[0])
                    end[0] += 1
    return kills


def create_at_path(path: str) -> int:
    """The victim creates an exchange at a path, or in the place of one that the victim before it has left."""
    kills = 0
    while kill_at(kills + 1, lambda: rtloop.Latest("f8", share=path).write(1.0), SOCKET_CALLS):
        kills += 1
        if kills % 2:
            continue  # this one's remains are those that the next one finds
        with rtloop.Latest("f8", share=path) as writer, rtloop.Latest.open(path) as reader:
            writer.write(float(kills))
            assert (writer.written, reader.read()) == (1, kills)
        assert os.listdir(os.path.dirname(path)) == []
    return kills


def take_over_at_path(path: str) -> int:
    """The victim takes a side of an exchange that this process gives away, and gives it away itself."""
    kills = 0
    with rtloop.Latest("f8", share=path, role="reader") as kept:
        while kill_at(kills + 1, lambda: rtloop.Latest.open(path, "writer").write(1.0), SOCKET_CALLS):
            kills += 1
            assert kept.peers == ()
            with rtloop.Latest.open(path, "writer") as successor:
                successor.write(float(kills))
                assert kept.read() == kills
    assert os.listdir(os.path.dirname(path)) == []
    return kills


def main() -> None:
    """Run all cases."""
    # The scan looks at this process and its child only, so that its length is not that of the machine's work.
    here = os.getpid()
    rtloop.sharing.found_exchanges.processes = lambda **_: iter({here, os.getpid()})  # type: ignore[assignment]
    name = sys.argv[1]
    counts = {
        "create": create(name),
        "writer": take_over_latest(name, "writer"),
        "reader": take_over_latest(name, "reader"),
        "producer": take_over_ring(name, "producer"),
        "consumer": take_over_ring(name, "consumer"),
    }
    with tempfile.TemporaryDirectory(prefix="rtloop-") as folder:
        counts["creation at a path"] = create_at_path(f"{folder}/x")
        for left in os.listdir(folder):  # of the last victim, which has ended without closing it
            os.unlink(f"{folder}/{left}")
        counts["opening of a path"] = take_over_at_path(f"{folder}/x")
    print(", ".join(f"{what} {count}" for what, count in counts.items()))


if __name__ == "__main__":
    main()

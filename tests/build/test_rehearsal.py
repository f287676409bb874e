"""Laws with bugs: each is refused in a rehearsal, or the loop goes back from it, and the pole stands."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import rtloop
from rtloop import RTSetupWarning, SwapError
from rtloop.child.target import pack
from rtloop.simulation.rehearsal import Order, Rehearser

ROOT = Path(__file__).parents[2]
PATIENCE_S = 150
#: Limit of a rehearsal that must not hang; a busy machine takes its time.
LONG = "2min"

#: Begins as examples/rewritten_law does: the plant, the base class Law, and Centred, which balances the pole.
BUGS = """

from libc.math cimport log, sqrt
from libc.stdlib cimport malloc
from posix.time cimport nanosleep, timespec


cdef class Shown(Centred):
    cdef double shown

    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.signal("force", &self.shown)

    cdef int act(self, double force, const Cycle *cycle) noexcept nogil:
        self.shown = force
        return self.apply(force, cycle)


cdef class NotANumber(Shown):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return self.act(log(-1.0), cycle)


cdef class Infinite(Shown):
    cdef double integral

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        self.integral = 2 * self.integral + 1e300
        return self.act(self.integral, cycle)


cdef class Slow(Centred):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef timespec left
        left.tv_sec, left.tv_nsec = 0, 5_000_000
        nanosleep(&left, NULL)
        return Centred.step(self, cycle)


cdef class Allocates(Centred):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        cdef char *memory = <char *>malloc(64 << 20)    # from the kernel: a system call
        memory[0] = 1
        return Centred.step(self, cycle)


cdef class Crashes(Centred):
    cdef double *table

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return self.apply(self.table[2], cycle)


cdef class Hangs(Centred):
    cdef int counter

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        while cycle.index > 5:
            self.counter += 1
        return RT_CONTINUE


cdef class Fails(Centred):
    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return -5 if cycle.index % 50 == 49 else Centred.step(self, cycle)


cdef class Refuses(Centred):
    cdef int take_over(self, RTLoop former, const Cycle *cycle) noexcept nogil:
        return -7


cdef class NeverStarts(Centred):
    def setup(self):
        raise OSError("no such device")


cdef class Overflows(Centred):
    cdef int deeper(self, int depth) noexcept nogil:
        cdef char[4096] here
        here[depth & 4095] = 1
        return self.deeper(depth + 1) + here[0] if depth >= 0 else 0

    cdef int step(self, const Cycle *cycle) noexcept nogil:
        return self.deeper(<int>self.force)
"""

MAKER = """
import os

import rtloop

def laws():
    return rtloop.build(os.path.join(os.path.dirname(__file__), "bugs.pyx"))

def pair(kind, settings):
    assert os.environ["RTLOOP_REHEARSAL"] == "1"
    built = laws()
    plant = built.Plant()
    return built.Centred("1kHz", plant=plant), getattr(built, kind)("1kHz", plant=plant, **settings)

def alone(kind):
    built = laws()
    return getattr(built, kind)("1kHz", plant=built.Plant())

def network():
    import socket
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        try:
            end.connect(("127.0.0.1", 9))
        except OSError as error:
            raise SystemExit(f"errno {error.errno}")
    raise SystemExit("reached")

def busy():
    while True:
        pass

def killed():
    import signal
    os.kill(os.getpid(), signal.SIGKILL)

def opened():
    places = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    raise SystemExit(str([os.readlink(place) for place in places if os.path.lexists(place)]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("rehearsal")
    law = (ROOT / "examples" / "rewritten_law" / "rewritten_law.pyx").read_text()
    nominal = law.replace("cycle.dt / STEPS", "1e-3 / STEPS")  # the pole must not fall because a busy machine is late
    assert nominal != law
    (folder / "bugs.pyx").write_text(nominal + BUGS)
    (folder / "maker_of_bugs.py").write_text(MAKER)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("RTLOOP_CACHE_DIR", str(folder / "cache"))
        patch.setenv("CFLAGS", "-O0")
        yield folder
    sys.modules.pop("maker_of_bugs", None)


@pytest.fixture(scope="module")
def maker(place: Path) -> ModuleType:
    import maker_of_bugs  # type: ignore[import-not-found]

    return maker_of_bugs  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def bugs(maker: ModuleType) -> ModuleType:
    return maker.laws()  # type: ignore[no-any-return]


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


#: Each law with a bug, and how it is found: refused in a rehearsal, or by the swap, or reverted from.
FOUND = {
    "NotANumber": "its cycle 1: nonfinite", "Infinite": "nonfinite", "Fails": "in its cycle 49: step returned -5",
    "Crashes": r"SIGSEGV at the address 0x10, in bugs\.Crashes\.step", "NeverStarts": "no such device",
    "Refuses": r"take_over\(\) of Refuses returned -7", "Slow": "overrun", "Allocates": "guard",
}  # fmt: skip


def test_eight_laws_with_bugs_never_control_the_pole(
    bugs: ModuleType, maker: ModuleType, ordinary: dict[str, Any]
) -> None:
    plant = bugs.Plant()
    loop = bugs.Centred("1kHz", plant=plant, guard="count", warmup=0, **ordinary)
    refused, reverted = {}, {}
    with warnings.catch_warnings(), loop:
        warnings.simplefilter("ignore", RTSetupWarning)
        for kind in FOUND:
            try:
                rtloop.rehearse(partial(maker.pair, kind, {}), "100ms", timeout=LONG)
            except Exception as error:
                refused[kind] = str(error)
                continue
            new = getattr(bugs, kind)("1kHz", plant=plant, **ordinary)
            loop.swap(new, trial="1h", revert_on=["overrun", "guard", "late", "nonfinite"])
            wait_for(lambda: not loop.on_trial)
            reverted[kind] = loop.stats.swaps[-1].reason
        assert loop.state == "running" and not plant.has_fallen
        cycles = loop.stats.cycles
        wait_for(lambda: loop.stats.cycles > cycles)
    assert len(refused) + len(reverted) == len(FOUND) == 8 and set(reverted) == {"Slow", "Allocates"}
    for kind, text in refused.items():
        assert re.search(FOUND[kind], text), text
    assert all(swap.reason or swap.successor in reverted for swap in loop.stats.swaps)
    assert loop.state == "stopped" and plant.force == 0 and not plant.has_fallen


def test_a_good_law_passes(bugs: ModuleType, maker: ModuleType) -> None:
    rtloop.rehearse(partial(maker.pair, "Integrating", {"name": "smooth"}), "3s", timeout=LONG)
    rtloop.rehearse(partial(maker.alone, "Centred"), timeout=LONG)


@pytest.mark.parametrize(("kind", "line"), [("Crashes", "self.apply(self.table[2], cycle)"), ("Overflows", "")])
def test_a_crash_has_its_function_and_line(kind: str, line: str, bugs: ModuleType, maker: ModuleType) -> None:
    with pytest.raises(
        SwapError, match=rf"crashed in its rehearsal: SIGSEGV at the address 0x.*, in bugs\.{kind}\."
    ) as e:
        rtloop.rehearse(partial(maker.alone, kind), timeout=LONG)
    if line:
        number = 1 + next(i for i, text in enumerate((law_of(maker)).splitlines()) if line in text)
        assert f"(bugs.pyx:{number})" in str(e.value) or not _has_addr2line()


def law_of(maker: ModuleType) -> str:
    return Path(str(maker.__file__)).with_name("bugs.pyx").read_text()


def _has_addr2line() -> bool:
    return shutil.which("addr2line") is not None


def test_a_law_that_hangs_is_refused_in_time(bugs: ModuleType, maker: ModuleType) -> None:
    with pytest.raises(SwapError, match=r"has not ended within 200 ms(, in |$)"):
        rtloop.rehearse(partial(maker.alone, "Hangs"), timeout="200ms")
    with pytest.raises(SwapError, match=r"has not ended within 200 ms"):
        rtloop.rehearse(maker.busy, timeout="200ms")


def test_what_a_rehearsal_cannot_reach(maker: ModuleType) -> None:
    """Its process has no file of this one, and no network, if the kernel lets it leave that of the machine."""
    kept = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(kept, True)
    try:
        with pytest.raises(SystemExit) as found:
            rtloop.rehearse(maker.opened, timeout=LONG)
    finally:
        os.close(kept)
    assert "socket" in str(found.value) and "/dev/zero" not in str(found.value)
    with pytest.raises(SystemExit) as reached:
        rtloop.rehearse(maker.network, timeout=LONG)
    assert str(reached.value) == f"errno {errno.ENETUNREACH}" or not may_leave_network()


def may_leave_network() -> bool:
    """Return whether the kernel lets another process of this user have a network of its own."""
    code = "from rtloop.process.crash_report import leave_network; print(leave_network())"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout == "True\n"


def test_a_process_that_is_killed_and_one_that_cannot_import_are_reported(maker: ModuleType) -> None:
    with pytest.raises(SwapError, match="was ended by SIGKILL"):
        rtloop.rehearse(maker.killed, timeout=LONG)
    with pytest.raises(rtloop.ConfigError, match="cannot be sent"):
        rtloop.rehearse(lambda: None, timeout=LONG)  # type: ignore[arg-type, return-value]


def test_the_process_ends_with_its_parent(maker: ModuleType, place: Path) -> None:
    """The parent is killed in the middle of a rehearsal that would never end."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import maker_of_bugs\n"
        "from rtloop.simulation.rehearsal import Order, Rehearser\n"
        "from rtloop.child.target import pack\n"
        "one = Rehearser(); print(one._process.pid, flush=True)\n"
        "one.rehearse(Order(pack(maker_of_bugs.busy, 'make'), None, 10**9, {}), 10**12)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(place)], stdout=subprocess.PIPE, text=True, cwd=place
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    wait_for(lambda: not _is_alive(pid))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_kill_by_another_thread_ends_the_wait(maker: ModuleType) -> None:
    rehearser = Rehearser()
    threading.Timer(0.05, rehearser.kill).start()
    with pytest.raises(SwapError, match=r"SIGKILL|has not started"):
        rehearser.rehearse(Order(pack(maker.busy, "make"), None, 10**9, {}), 10**12)
    rehearser.close()
    rehearser.close()


def test_a_frozen_program_is_not_started_again_for_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(SwapError, match=r"no process can be started for a rehearsal.*this program is frozen"):
        Rehearser()

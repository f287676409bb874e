"""A Franka robot's interface at 1 kHz: the controller of examples/franka, and pylibfranka, before franka-sim."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from counterpart_rows import Figures, modules_missing, run_client
from counterpart_rows._stalls import Stalls
from counterpart_rows._wire import Wire

ORDER = 1
TITLE = "Franka robot, torques at 1 kHz"
REFEREE = "franka-sim, all limits enforced: a command that answers the newest state counts, before the next state"
SIDES = ("rtloop", "pylibfranka")
NEEDS = {"pylibfranka": "pip install pylibfranka"}

EXAMPLE = Path(__file__).parents[2] / "examples" / "franka"
SIMULATOR = Path(os.environ.get("RTLOOP_FRANKA_SIM") or
                 Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rtloop-franka-sim")  # fmt: skip
PRIORITY, SERVER_PRIORITY, PORT = 80, 60, 1337  # libfranka knows no other port
STIFFNESS = np.array([400, 400, 400, 400, 150, 100, 40.0])
DAMPING = np.array([40, 40, 40, 40, 15, 12, 6.0])
SWING, FREQUENCY = np.array([0, 0, 0, 0.1, 0, 0.1, 0]), 0.25
#: A state that comes within this time of the one before: the server was late, and catches up.
SHORT_NS = 500_000


def missing() -> dict[str, str]:
    """Return what is not installed."""
    absent = modules_missing(NEEDS)
    if not (SIMULATOR / "fr3.xml").exists():
        absent["franka-sim"] = f"python examples/franka/simulator.py --install --folder {SIMULATOR}"
    if os.geteuid():
        absent["root"] = "run it as root, which reads packets off the loopback device"
    return absent


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Run the simulator's server, with a real-time priority below the loop's."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", PORT))
        except OSError as error:
            raise RuntimeError(f"port {PORT} is not free for franka-sim: {error}") from None
    command = [sys.executable, str(EXAMPLE / "simulator.py"), "--folder", str(SIMULATOR), "--limits",
               "--priority", str(SERVER_PRIORITY)]  # fmt: skip
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert server.stdout is not None
        said, deadline = b"", time.monotonic() + 60
        while b"ready for" not in said:
            if not select.select([server.stdout], [], [], 1)[0] and time.monotonic() < deadline:
                continue
            more = os.read(server.stdout.fileno(), 65536)
            if not more:
                raise RuntimeError(f"franka-sim ended: {said.decode(errors='replace')[-300:]}")
            said += more
        with drained(server.stdout.fileno()):
            yield
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


@contextlib.contextmanager
def drained(fd: int) -> Iterator[None]:
    """Read a pipe to its end, so that nobody waits for room in it."""
    import threading

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(fd, 65536):
                pass

    threading.Thread(target=read, daemon=True).start()
    yield


def run(side: str, company: str, seconds: float) -> Figures:
    """Run one side, and read the referee's count off the wire."""
    with Stalls(PRIORITY) as stalls, serving(), Wire() as wire:
        client = run_client("franka", side, company, seconds)
    cycles = wire.cycles()
    lost = ~cycles.kept
    begin, end = cycles.at[lost], cycles.until[lost]
    stalled = stalls.covers(begin, end)
    # Answered on the wire in time, or cut short by a server that was late and catches up.
    by_server = (cycles.in_time[lost] | (end - begin < SHORT_NS)) & ~stalled
    facts = {
        **client,
        "states": len(cycles.kept),
        "lost": int(lost.sum()),
        "lost in a stall of the machine": int(stalled.sum()),
        "lost by the server": int(by_server.sum()),
        "lost otherwise": int((~stalled & ~by_server).sum()),
        "stalls": None if stalls.spans is None else len(stalls.spans),
        "longest stall, us": stalls.longest_us,
        "stalls above 20 ms, s and ms": stalls.longer_than(0.02),
        "windows of 100 states below 0.99": windows_below(cycles.kept),
        "motions": cycles.motions,
        "lost at, s": np.round((begin - stalls.begin) / 1e9, 4).tolist(),
    }
    age = tuple(float(np.percentile(cycles.age, q)) for q in (50, 99, 100)) if len(cycles.age) else (np.nan,) * 3
    return Figures(float(cycles.kept.mean()) if len(cycles.kept) else 0.0, cycles.lowest, age, facts)  # type: ignore[arg-type]


def windows_below(kept: Any, share: float = 0.99) -> int:
    """Count the windows of 100 states, one after the other, of which a smaller share was kept."""
    whole = kept[: len(kept) // 100 * 100].reshape(-1, 100)
    return int((whole.mean(axis=1) < share - 1e-9).sum())


def client(side: str, seconds: float) -> dict[str, Any]:
    """Hold the arm on a swinging reference with one of the sides; return what it says itself."""
    return {"rtloop": drive_with_rtloop, "pylibfranka": drive_with_pylibfranka}[side](seconds)


def drive_with_rtloop(seconds: float) -> dict[str, Any]:
    """Run the torque controller of examples/franka; recover from each reflex, and go on."""
    import rtloop

    franka = rtloop.build(EXAMPLE / "franka.pyx")
    loop = franka.Torque("1kHz", swing=SWING, frequency=FREQUENCY, priority=PRIORITY, guard="count")
    reflexes, missed, answered, faults = 0, 0, 0, 0
    outcome = ""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0.5 or not outcome:
        try:
            loop.run(round(max(left, 0.5) * 1e9))
        except rtloop.CallbackError:
            reflexes += 1
            if loop.status != 8:
                raise RuntimeError(loop.outcome) from None
        outcome = loop.outcome
        missed += loop.stats.device_missed or 0
        answered += loop.answered
        faults += sum(loop.stats.page_faults)
        if loop.status == 8:
            loop.recover()
    loop.close()
    return {"outcome": outcome, "reflexes": reflexes, "answered": answered, "missed (device)": missed,
            "page faults": faults, "guard": str(loop.stats.guard)}  # fmt: skip


def drive_with_pylibfranka(seconds: float) -> dict[str, Any]:
    """Run the same controller in Python, with the same real-time priority; recover from each reflex, and go on."""
    import pylibfranka

    robot = pylibfranka.Robot("127.0.0.1", pylibfranka.RealtimeConfig.kIgnore)  # kEnforce refuses this kernel
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    reflexes = answered = 0
    outcome = ""
    end = time.monotonic() + seconds
    while time.monotonic() < end or not outcome:
        start, phase = None, 0.0
        try:
            control = robot.start_torque_control()
            while True:
                state, passed = control.readOnce()
                q, dq, last = np.array(state.q), np.array(state.dq), np.array(state.tau_J_d)
                start = q if start is None else start
                phase += passed.to_sec()
                reference = start + SWING * 0.5 * (1 - np.cos(2 * np.pi * FREQUENCY * phase))
                tau = STIFFNESS * (reference - q) - DAMPING * dq
                command = pylibfranka.Torques((last + np.clip(tau - last, -0.95, 0.95)).tolist())
                command.motion_finished = time.monotonic() >= end
                control.writeOnce(command)
                answered += 1
                if command.motion_finished:
                    outcome = "finished"
                    break
        except pylibfranka.ControlException as error:
            outcome = str(error).strip().splitlines()[0][:200]
            reflexes += 1
            control = None  # it holds the robot until it is gone
            robot.automatic_error_recovery()
    return {"outcome": outcome, "reflexes": reflexes, "answered": answered}

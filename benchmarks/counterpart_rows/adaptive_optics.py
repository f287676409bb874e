"""Adaptive optics at 1 kHz: the example's loop, and the loop component of pyrtcao between a sensor and a mirror."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpart_rows import Figures, modules_missing, run_client
from counterpart_rows._grid import PERIOD_NS, PRIORITY, judge, run_in_rtloop

ORDER = 7
TITLE = "Adaptive optics, 600 slopes and 300 modes at 1 kHz"
REFEREE = "a frame counts if the mirror's commands from its slopes are written before the next frame is due"
SIDES = ("rtloop", "pyrtcao")
NEEDS = {"pyrtc": "pip install pyrtcao", "scipy": "pip install scipy"}

EXAMPLE = Path(__file__).parents[2] / "examples" / "adaptive_optics"
MODES, SLOPES, ROWS = 300, 600, 1000
GAIN, LEAK = 0.5, 0.99
SETTLED = 100  # frames
ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), "1")

Matrix = npt.NDArray[np.float64]


def missing() -> dict[str, str]:
    """Return what is not installed."""
    return modules_missing(NEEDS)


def run(side: str, company: str, seconds: float) -> Figures:
    """Run one side, with one thread for BLAS, as both need it beside other work."""
    os.environ.update(ONE_THREAD, PYRTC_LOG_LEVEL="ERROR")
    result = run_client("adaptive_optics", side, company, seconds)
    return judge(result.pop("cycles"), result)


def scene() -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Return the sensor's matrix, its pseudoinverse, the turbulence in nm, and the noise; the last two repeat."""
    random = np.random.default_rng(seed=1)
    sensor = random.normal(size=(SLOPES, MODES)) / np.sqrt(SLOPES)
    t, k = np.arange(ROWS) / ROWS, np.arange(1, MODES + 1)
    turbulence = np.zeros((ROWS, MODES))
    for f in range(1, 12):
        turbulence += np.sin(2 * np.pi * f * t[:, None] + random.uniform(0, 2 * np.pi, MODES)) / f
    turbulence *= k ** (-11 / 12)
    turbulence *= 100 / np.sqrt((turbulence**2).mean())
    return sensor, np.ascontiguousarray(np.linalg.pinv(sensor)), turbulence, random.normal(0, 0.2, (ROWS, SLOPES))


def client(side: str, seconds: float) -> dict[str, Any]:
    """Correct the turbulence with one of the sides; return its frames."""
    sensor, reconstructor, turbulence, noise = scene()
    if side != "rtloop":
        return in_pyrtc(seconds, sensor, turbulence, noise)
    import rtloop

    loop = rtloop.build(EXAMPLE / "adaptive_optics.pyx").AdaptiveOptics(
        PERIOD_NS, sensor=sensor, reconstructor=reconstructor, turbulence=turbulence, noise=noise, priority=PRIORITY,
        record=round(seconds * 1e9 / PERIOD_NS) + 1000, guard="count",
    )  # fmt: skip
    cycles = run_in_rtloop(loop, seconds)
    return {"cycles": cycles, "error, nm": error(loop.log.drain()["closed"]),
            "page faults": sum(loop.stats.page_faults), "guard": str(loop.stats.guard)}  # fmt: skip


def error(closed: npt.ArrayLike) -> float:
    """Return the wavefront's error behind the mirror, RMS, without the first frames."""
    return float(np.sqrt((np.asarray(closed)[SETTLED:] ** 2).mean()))


def in_pyrtc(seconds: float, sensor: Matrix, turbulence: Matrix, noise: Matrix) -> dict[str, Any]:
    """Run pyrtcao's loop in one process with a thread per component, at the other side's priority."""
    import pyrtc
    from pyrtc.streams import clear_shms, create_stream

    names = {name: f"counterparts-{os.getpid()}-{name}" for name in ("signal", "wfc")}
    slopes, commands = create_stream(names["signal"], (SLOPES,), "f8"), create_stream(names["wfc"], (MODES,), "f8")
    released: dict[int, int] = {}
    ended: dict[int, int] = {}
    closed: list[float] = []

    class Sensor(pyrtc.Component):
        """Simulated sensor: slopes of what the mirror leaves, at each release; drops releases that have passed."""

        first = due = 0

        def expose(self) -> None:
            if not self.due:
                self.first = self.due = time.monotonic_ns() + PERIOD_NS
            left = self.due - time.monotonic_ns()
            if left > 0:
                time.sleep(left * 1e-9)
            row = (self.due - self.first) // PERIOD_NS % ROWS
            residual = turbulence[row] + commands.read()
            self.frame_id = len(released)
            released[self.frame_id] = self.due
            slopes.write(sensor @ residual + noise[row], frame_id=self.frame_id)
            closed.append(float(np.sqrt((residual**2).mean())))
            self.due += PERIOD_NS * max(1, 1 + (time.monotonic_ns() - self.due) // PERIOD_NS)

    class Loop(pyrtc.Loop):
        """Their loop, and the time at which it has written the commands of each frame."""

        def send_to_wfc(self, correction: Any, slopes: Any = None) -> None:
            super().send_to_wfc(correction, slopes)
            ended[self.frame_id] = time.monotonic_ns()

    loop = Loop({"functions": ["leaky_integrator"], "gain": GAIN, "leaky_gain": 1 - LEAK,
                 "realtime_priority": PRIORITY, "input_streams": {"signal": names["signal"]},
                 "output_streams": {"wfc": names["wfc"]}})  # fmt: skip
    loop.im = sensor.copy()
    loop.compute_cm()
    camera = Sensor({"functions": ["expose"], "realtime_priority": PRIORITY})
    try:
        loop.start()
        camera.start()
        time.sleep(seconds)
        camera.close()
        loop.close()
    finally:
        clear_shms(list(names.values()))
    cycles = [(released[number], end) for number, end in sorted(ended.items()) if number in released]
    return {"cycles": cycles, "error, nm": error(closed), "frames": len(released)}

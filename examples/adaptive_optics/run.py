"""Correct simulated turbulence at a kilohertz by matrix-vector products in the step; compare with NumPy."""

import argparse
import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[name] = "1"  # before anything loads BLAS: a product in a step must not wait for other threads

import numpy as np  # noqa: E402
from adaptive_optics import AdaptiveOptics  # noqa: E402

import rtloop  # noqa: E402

rtloop.guard.reexec()  # lets the guards count allocations as well

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rate", default="1kHz")
parser.add_argument("--duration", default="3s")
parser.add_argument("--modes", type=int, default=300)
parser.add_argument("--plot", metavar="FILE", help="draw the wavefront's error with and without the mirror")
arguments = parser.parse_args()

random = np.random.default_rng(seed=1)
modes, slopes, rows = arguments.modes, 2 * arguments.modes, 1000
sensor = random.normal(size=(slopes, modes)) / np.sqrt(slopes)
u, s, vt = np.linalg.svd(sensor, full_matrices=False)
reconstructor = np.ascontiguousarray((vt.T / s) @ u.T)
# Turbulence as sums of slow oscillations, weaker in higher modes; periodic, so that it can be repeated.
t, k = np.arange(rows) / rows, np.arange(1, modes + 1)
turbulence = sum(
    np.sin(2 * np.pi * f * t[:, None] + random.uniform(0, 2 * np.pi, modes)) / f for f in range(1, 12)
) * k ** (-11 / 12)
turbulence *= 100 / np.sqrt((turbulence**2).mean())  # nm RMS
noise = random.normal(scale=0.2, size=(rows, slopes))


def make(**settings: object) -> AdaptiveOptics:
    """Return the loop."""
    return AdaptiveOptics(
        arguments.rate, sensor=sensor, reconstructor=reconstructor, turbulence=np.ascontiguousarray(turbulence),
        noise=noise, **settings,
    )  # fmt: skip


loop = make(guard="count", strict=False, name="optics")
stats = loop.run(arguments.duration)
print(stats)
log = loop.log.drain()

again = make()
again.simulate(cycles=500)
virtual = again.log.drain()
commands, errors = np.zeros(modes), []
for i in range(500):
    residual = turbulence[i % rows] - commands
    errors.append(np.sqrt((residual**2).mean()))
    commands = 0.99 * commands + 0.5 * (reconstructor @ (sensor @ residual + noise[i % rows]))
difference = np.abs(virtual["closed"] - errors).max()
settled = log["closed"][100:]
print(f"two products of {slopes} x {modes} in {stats.execution.percentile(50) / 1000:.0f} us (median)")
print(f"error {np.sqrt((settled**2).mean()):.1f} nm instead of {np.sqrt((log['open'] ** 2).mean()):.1f} nm (RMS)")
print(f"500 cycles in virtual time differ from NumPy by at most {difference:.1e} nm")
if difference > 1e-9:
    raise SystemExit("the step does not compute what NumPy computes")
if stats.guard["system_calls"] or stats.guard["allocations"]:
    raise SystemExit(stats.guard_sentence)

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    time = np.arange(len(log)) * float(loop.settings.period) / 1e6
    axes.semilogy(time, log["open"], color="#D55E00", label="turbulence")
    axes.semilogy(time, log["closed"], color="#0072B2", label="behind the mirror")
    axes.set_xlabel("time (ms)")
    axes.set_ylabel("wavefront error (nm RMS)")
    axes.set_xlim(0, 1500)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)

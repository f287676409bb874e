"""Filter six seconds of noisy sensor data in real time, then compare with the textbook formulas in NumPy."""

import argparse

import numpy as np
from kalman import ROW, Kalman

import rtloop

rtloop.guard.reexec()  # lets the guard count allocations as well

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=int, default=6)
parser.add_argument("--plot", metavar="FILE", help="draw the estimates with the measured and the true values")
arguments = parser.parse_args()

# Sensors of a swinging arm: a noisy inclinometer, and a gyroscope that drifts.
random = np.random.default_rng(seed=1)
t = np.arange(0, arguments.seconds, 1e-3)
angle = 0.5 * np.sin(2 * np.pi * 0.5 * t) + 0.2 * np.sin(2 * np.pi * 1.3 * t)
rate = np.pi * 0.5 * np.cos(2 * np.pi * 0.5 * t) + 0.52 * np.pi * np.cos(2 * np.pi * 1.3 * t)
bias = 0.3 + 0.02 * np.sin(2 * np.pi * 0.1 * t)
measured = np.column_stack([angle, rate + bias]) + random.normal(scale=(0.05, 0.01), size=(len(t), 2))

loop = Kalman("1kHz", measured=measured, guard="count", strict=False, name="kalman")
stats = loop.run()
print(stats)


def in_numpy() -> np.ndarray:
    """Return the states by the textbook formulas, all sensors at once, for the cycles that ran."""
    x, p, h, r = np.zeros(3), np.eye(3), loop.observed, np.diag(loop.sensor_std**2)
    states = []
    for dt, z in zip(dts, measured[ran], strict=True):
        f = np.array([[1, dt, 0], [0, 1, 0], [0, 0, 1]])
        q = np.zeros((3, 3))
        q[:2, :2] = loop.noise_density[0] * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]])
        q[2, 2] = loop.noise_density[1] * dt
        x, p = f @ x, f @ p @ f.T + q
        gain = p @ h.T @ np.linalg.inv(h @ p @ h.T + r)
        x, p = x + gain @ (z - h @ x), (np.eye(3) - gain @ h) @ p
        states.append(x)
    return np.array(states)


ran = np.isfinite(loop.estimates[:, 0])
estimates = {name: loop.estimates[ran, i] for i, name in enumerate(ROW)}
dts = estimates["dt"]
difference = np.abs(loop.estimates[ran, :3] - in_numpy()).max()
settled = t[ran] > 1
noise, error = (
    np.sqrt(np.mean((values[ran][settled] - angle[ran][settled]) ** 2)) * 1000
    for values in (measured[:, 0], loop.estimates[:, 0])
)
print(f"\nthe angle is known to {error:.1f} mrad instead of {noise:.1f} mrad (RMS)")
print(f"the bias is {estimates['bias'][-1]:.3f} +- {estimates['std_bias'][-1]:.3f} rad/s, in truth {bias[ran][-1]:.3f}")
print(f"{ran.sum():,} rows, which differ from NumPy's by at most {difference:.1e}")
if difference > 1e-9:
    raise SystemExit("the step does not match the textbook formulas")
if stats.guard["system_calls"] or stats.guard["allocations"]:
    raise SystemExit(stats.guard_sentence)

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    upper.plot(t, measured[:, 0], ".", markersize=1, color="#56B4E9", label="inclinometer")
    upper.plot(t, angle, color="#D55E00", label="true")
    upper.plot(t[ran], estimates["angle"], "--", color="black", label="estimated")
    upper.set_ylabel("angle (rad)")
    two = 2 * estimates["std_bias"]
    lower.fill_between(t[ran], estimates["bias"] - two, estimates["bias"] + two, color="#56B4E9", alpha=0.4, lw=0,
                       label="± 2 standard deviations")  # fmt: skip
    lower.plot(t, bias, color="#D55E00", label="true")
    lower.plot(t[ran], estimates["bias"], "--", color="black", label="estimated")
    lower.set_ylim(0.1, 0.5)
    lower.set_ylabel("bias of the gyroscope (rad/s)")
    lower.set_xlabel("time (s)")
    for axes in (upper, lower):
        axes.legend(loc="upper right", ncols=3, frameon=False, markerscale=6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)

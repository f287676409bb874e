"""Compute spectra in real time, then compare each with NumPy's spectrum of the same samples."""

import argparse
import time

import numpy as np
from signal_processing import FRAME, KEPT, RATE, Analyser

import rtloop

rtloop.guard.reexec()  # lets the guard count allocations as well

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=int, default=3, choices=range(1, 31), metavar="1..30")
parser.add_argument("--plot", metavar="FILE", help="draw the spectra over time")
arguments = parser.parse_args()

loop = Analyser("1kHz", guard="count", strict=False, name="analyser")
print(*loop.memory.grants, sep="\n")
parts = []
with loop:
    until = time.monotonic() + arguments.seconds
    while time.monotonic() < until:
        time.sleep(0.05)
        parts.append(loop.drain())
parts.append(loop.drain())
frames, stats = np.concatenate(parts), loop.stats
print(f"{stats}\n")

points, decimation = FRAME["re"].shape[0], round(RATE / KEPT)
spectra = frames["re"] + 1j * frames["im"]
filtered = np.convolve(loop.history[: stats.cycles * 64], loop.taps)
expected = np.array(
    [np.fft.fft(loop.window * filtered[n:][: points * decimation : decimation]) for n in frames["first"]]
)
difference = np.abs(spectra - expected).max() / np.abs(expected).max()
level = 20 * np.log10(np.abs(spectra[:, : points // 2]) / (loop.window.sum() / 2) + 1e-6)  # 0 dB: a sine of amplitude 1
hz = np.arange(points // 2) * KEPT / points
tone, alias = (np.median(level[:, hz == f]) for f in (1000, 2000))
print(f"{len(frames)} spectra, {loop.dropped} without a block; at most {loop.pool.high_water} blocks in use")
print(
    f"the tone at 1 kHz has {tone:.1f} dB; the 20 dB tone at 10 kHz, which would alias to 2 kHz,"
    f" is reduced to {alias:.0f} dB"
)
print(f"the spectra differ from NumPy's by {difference:.1e} of the greatest value")
if difference > 1e-9:
    raise SystemExit("the step does not match NumPy")
if loop.pool.in_use:
    raise SystemExit(f"{loop.pool.in_use} blocks were not returned")
if stats.guard["system_calls"] or stats.guard["allocations"]:
    raise SystemExit(stats.guard_sentence)

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    begin = frames["first"] / RATE
    edges = np.append(begin, begin[-1] + points / KEPT)
    picture = axes.pcolormesh(edges, np.append(hz, KEPT / 2) / 1000, level.T, vmin=-80, vmax=0, rasterized=True)
    figure.colorbar(picture, label="level (dB)")
    axes.set_xlabel("time (s)")
    axes.set_ylabel("frequency (kHz)")
    figure.savefig(arguments.plot, dpi=100)

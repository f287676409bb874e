"""Record two channels at 10 kHz, account for every sample, read the file back, and compute the spectrum."""

import argparse
from pathlib import Path

import numpy as np
from daq import VOLT, Acquisition

import rtloop

rtloop.guard.reexec()  # lets the guard count allocations as well

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=int, default=3, choices=range(1, 3601), metavar="1..3600")
parser.add_argument("--output", type=Path, default=Path("samples.npy"), help="also .npz and .mcap")
parser.add_argument("--plot", metavar="FILE", help="draw the signals and their spectra")
arguments = parser.parse_args()

loop = Acquisition("10kHz", name="daq", guard="count", strict=False)
with rtloop.Recorder(loop.log, arguments.output) as recorder:  # opened before the start: it records nothing earlier
    stats = loop.run(f"{arguments.seconds}s")
print(f"{stats}\n")

print(f"{stats.cycles:,} cycles, {recorder.written:,} samples written, {recorder.lost} lost; {stats.missed} missed")
print(f"at most {loop.log.high_water:,} samples waited in the ring, which has room for {loop.log.capacity:,}")
if recorder.written + recorder.lost != stats.cycles:
    raise SystemExit("the counts do not add up")
if stats.guard["system_calls"] or stats.guard["allocations"]:
    raise SystemExit(stats.guard_sentence)
if arguments.output.suffix == ".mcap":
    raise SystemExit  # for Foxglove

# From here on only the file is used.
file = np.load(arguments.output, mmap_mode="r" if arguments.output.suffix == ".npy" else None)
samples = file if arguments.output.suffix == ".npy" else file["records"]
gaps = np.diff(samples["number"]) - 1
rate = 1e9 * (samples["number"][-1] - samples["number"][0]) / (samples["release"][-1] - samples["release"][0])
print(f"{arguments.output}: {len(samples):,} samples of {rate:,.0f} a second, {gaps.sum()} numbers missing")
if gaps.min() < 0 or (not recorder.lost and gaps.sum() > stats.missed):
    raise SystemExit("the file does not match what was sampled")

POINTS = 10_000  # lines 1 Hz apart
numbers = samples["number"][0] + np.arange(POINTS)  # the numbers place each sample; gaps are interpolated
codes = samples["code"][:POINTS]
volts = VOLT * np.column_stack([np.interp(numbers, samples["number"][:POINTS], code) for code in codes.T])
window = np.hanning(POINTS)
level = 20 * np.log10(np.abs(np.fft.rfft(volts.T * window)) / (window.sum() / 2) + 1e-9)  # dB of 1 V
hz = np.fft.rfftfreq(POINTS, 1 / rate)
loudest = [hz[np.argmax(channel)] for channel in level]
print(f"the loudest line of channel 0 is at {loudest[0]:.0f} Hz, that of channel 1 at {loudest[1]:.0f} Hz")

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2)
    t = np.arange(POINTS) / rate * 1000
    for channel, (name, colour) in enumerate((("channel 0: bell", "#0072B2"), ("channel 1: machine", "#D55E00"))):
        upper.plot(t[:1000], volts[:1000, channel], color=colour, linewidth=0.8, label=name)
        lower.plot(hz, level[channel], color=colour, linewidth=0.8)
    upper.set_title(
        f"A bell and a rotating machine: {recorder.written:,} samples recorded at 10 kHz, {recorder.lost} lost"
    )
    upper.set_xlabel("time (ms)")
    upper.set_ylabel("voltage (V)")
    upper.legend(loc="upper right", ncols=2, frameon=False)
    blue, red = "#0072B2", "#D55E00"
    for f, colour in ((25, red), (50, blue), (175, red), (440, blue), (1187, blue)):
        peak = level[:, np.argmin(np.abs(hz - f))].max()
        lower.annotate(f"{f} Hz", (f, peak), (4, 3), textcoords="offset points", color=colour)
    lower.set_xscale("log")
    lower.set_xlim(10, 5000)
    lower.set_ylim(-90, 15)
    lower.set_xlabel("frequency (Hz)")
    lower.set_ylabel("level (dB of 1 V)")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(arguments.plot, dpi=100)

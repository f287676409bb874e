"""Simulate the cart-pole twice, check that both runs are identical, and find how late the controller may wake up."""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from cart_pole import Controller, Plant

duration = sys.argv[1] if len(sys.argv) > 1 else "1h"
plant = Plant("1kHz", name="plant")
controller = Controller("1kHz", plant=plant, name="controller")
late = np.random.default_rng(seed=1).exponential(30_000, 100_003).astype("int64")  # ns


def simulate(folder: str) -> bytes:
    """Return the saved statistics of both loops, including timestamps, as bytes."""
    stats = controller.simulate(duration, plant=plant, latency={controller: late}, execution={controller: "40us"})
    return (
        b"".join(s.save(Path(folder) / s.name).read_bytes() for s in (plant.stats, stats)) + repr(plant.worst).encode()
    )


with tempfile.TemporaryDirectory() as folder:
    begin = time.perf_counter()
    first, second = simulate(folder), simulate(folder)
    took = time.perf_counter() - begin
print(controller.stats)
print(f"\n{duration} of the cart-pole, twice, in {took:.1f} s; the pole leant by at most {plant.degrees:.1f} degrees")
if first != second:
    sys.exit("the second run differs from the first")
print(f"both runs are identical: {len(first):,} bytes of statistics, and the pole's angle to the last bit\n")

print("wake-up latency   cycles   missed   the pole")
for latency in ("0ms", "0.5ms", "4.5ms", "9.5ms", "19.5ms", "29.5ms", "39.5ms"):
    stats = controller.simulate("1min", plant=plant, latency={controller: latency})
    fell = (
        f"fell after {plant.stats.duration:.2f} s"
        if plant.stats.cycles < 60_000
        else f"at most {plant.degrees:.1f} degrees"
    )
    print(f"{latency:>15}{stats.cycles:>9,}{stats.missed:>9,}   {fell}")

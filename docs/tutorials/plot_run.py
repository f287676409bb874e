"""Plot the signals that record_run.py recorded, with the loop's wake-up latency below them."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

import rtloop

log = np.load("run.npy")
times = rtloop.Stats.load("run.npz").records

figure, (signals, latency) = plt.subplots(2, 1, sharex=True, figsize=(8, 5), layout="constrained")
signals.plot(log["t"], log["setpoint"], drawstyle="steps-post", label="setpoint")
signals.plot(log["t"], log["position"], label="position")
signals.set_ylabel("position (m)")
signals.legend()
latency.plot((times["release"] - times["release"][0]) / 1e9, (times["start"] - times["release"]) / 1e3, linewidth=0.8)
latency.set_yscale("log")
latency.yaxis.set_major_formatter("{x:g}")
latency.set_ylabel("wake-up latency (us)")
latency.set_xlabel("time (s)")
figure.savefig("run.png", dpi=120)

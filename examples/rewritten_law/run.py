"""Replace the law that balances a pole five times while it stands, in virtual time or, with --real, in real time."""

import argparse

import numpy as np
import rewritten_law
from rewritten_law import Plant

LAWS = ("Upright", "Slower", "Centred", "Integrating", "Smooth", "Walking")
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--real", action="store_true", help="run in real time")
parser.add_argument("--seconds", type=float, default=4.0, help="duration of each law")
parser.add_argument("--plot", metavar="FILE", help="draw the pole's angle, the cart's position and the force")
arguments = parser.parse_args()

each = round(1000 * arguments.seconds)
plant = Plant(len(LAWS) * each)
first, *others = (getattr(rewritten_law, name)("1kHz", plant=plant, name="pole", strict=False) for name in LAWS)
if arguments.real:
    import time

    with first:
        for law in others:
            time.sleep(arguments.seconds)
            first.swap(law)
        time.sleep(arguments.seconds)
    stats = first.stats
else:
    swaps = {each * (number + 1): law for number, law in enumerate(others)}
    stats = first.simulate(cycles=len(LAWS) * each, execution="20us", swaps=swaps)

angle, position, force, index = plant.samples.T
begins = np.searchsorted(index, [0, *(swap.cycle for swap in stats.swaps)])
print("law          since cycle   pole leans by   cart is off by   force jumps by")
for name, begin, end in zip(LAWS, begins, [*begins[1:], len(angle)], strict=False):
    lean, off = np.abs(np.degrees(angle[begin:end])).max(), 100 * np.abs(position[(begin + end) // 2 : end]).max()
    jump = f"{abs(force[begin] - force[begin - 1]):.2f} N" if begin else "-"
    print(f"{name:12} {index[begin]:11,.0f} {lean:11.1f} deg {off:13.1f} cm {jump:>16}")
print(f"\n{stats}")
if plant.has_fallen or len(stats.swaps) != len(others):
    raise SystemExit("the pole has fallen")

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    rows = figure.subplots(3, sharex=True, height_ratios=(3, 2, 2))
    t = index / 1000
    for axes, values, label in zip(
        rows, (np.degrees(angle), 100 * position, force), ("pole (degrees)", "cart (cm)", "force (N)"), strict=True
    ):
        axes.plot(t, values, color="#0072B2", linewidth=1)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
        for begin in begins[1:]:
            axes.axvline(t[begin], color="#D55E00", linewidth=1, linestyle="--")
    for name, begin in zip(LAWS, begins, strict=False):
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        rows[0].annotate(name, (t[begin], 1.0), (4, 4), color="#D55E00", **place)
    rows[0].set_title("A pole whose law is replaced five times while it stands\n", loc="left")
    rows[2].set_xlabel("time (s)")
    figure.savefig(arguments.plot, dpi=100)

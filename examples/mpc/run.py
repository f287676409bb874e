"""Control a crane by two solvers in real time; measure their times, and analyse the schedule with the worst."""

import argparse
import time
from pathlib import Path

import crane
import numpy as np

import rtloop

rtloop.guard.reexec()  # lets the guards count allocations as well

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=float, default=6, help="length of each run in real time")
parser.add_argument("--campaign", type=int, default=10, help="number of random goals in virtual time")
parser.add_argument("--plot", metavar="FILE", help="draw position, sway and the times to solve")
parser.add_argument("--save", metavar="FOLDER", help="save the statistics, for rtloop analyze")
arguments = parser.parse_args()

if not Path("generated").exists():
    crane.generate(Path("generated"))
mpc = rtloop.build("mpc.pyx")
random = np.random.default_rng(seed=1)
logs, tasks, failed = {}, [], []
for kind, goal, rope in ((mpc.Linear, 2.0, 1.0), (mpc.Nonlinear, 2.0, 1.8)):
    # Random goals in virtual time give many more problems than a run in real time.
    tried = kind(name="campaign", in_virtual_time=True)
    for _ in range(arguments.campaign):
        tried.parameters.update(goal=random.uniform(-3, 3), rope=1.0 if kind is mpc.Linear else random.uniform(0.8, 2))
        tried.simulate("1s")
    cycles = 1000 * arguments.campaign
    typical = np.median(tried.log.drain()["solving"]) / 1000
    print(f"{kind.__name__}, {cycles:,} problems in virtual time: {tried.unsolved} unsolved, "
          f"median {typical:.0f} us, worst {tried.worst / 1000:.0f} us")  # fmt: skip

    loop = kind(name=kind.__name__.lower(), guard="count", strict=False)
    with loop:
        time.sleep(0.1 * arguments.seconds)
        loop.parameters.update(goal=goal, rope=rope)
        time.sleep(0.9 * arguments.seconds)
    stats, log = loop.stats, loop.log.drain()
    print(stats)
    sway = np.abs(log["z"][:, 2]).max()
    print(f"the load swung by at most {sway:.4f} rad, with a limit of {crane.SWAY} rad; "
          f"{loop.unsolved} of {stats.cycles:,} problems unsolved; worst {loop.worst / 1000:.0f} us\n")  # fmt: skip
    if sway > crane.SWAY + 0.005 and not stats.missed:
        failed.append(f"{loop.name} let the load swing by {sway:.3f} rad")
    if stats.guard["system_calls"] or stats.guard["allocations"]:
        failed.append(f"{loop.name}: {stats.guard_sentence}")
    # The longest step contains the solver's worst time in the run, and other work. The campaign had harder problems.
    tasks.append(rtloop.Task.from_stats(stats, wcet=max(int(stats.execution.max), tried.worst), cpu=len(tasks)))
    logs[loop.name] = log
    if arguments.save:
        Path(arguments.save).mkdir(exist_ok=True)
        stats.save(Path(arguments.save) / f"{loop.name}.npz")

print("Each on a CPU of its own, with the worst times that were measured:")
print(rtloop.analyze(tasks))
if failed:
    raise SystemExit("; ".join(failed))

if arguments.plot:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    rows = figure.subplots(3, sharex=True)
    for (name, log), colour in zip(logs.items(), ("#0072B2", "#D55E00"), strict=True):
        rows[0].plot(log["t"], log["z"][:, 0], color=colour, label=f"{name}: position")
        rows[0].plot(log["t"], log["z"][:, 4], color=colour, ls=":", label=f"{name}: rope")
        rows[1].plot(log["t"], log["z"][:, 2], color=colour)
        rows[2].semilogy(log["t"], log["solving"] / 1000, ".", ms=1, color=colour)
    for limit in (crane.SWAY, -crane.SWAY):
        rows[1].axhline(limit, color="0.6", lw=0.8, ls="--")
    for axes, label in zip(rows, ("m", "sway (rad)", "time to solve (us)"), strict=True):
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    rows[0].legend(frameon=False, ncols=2)
    rows[2].set_xlabel("time (s)")
    figure.savefig(arguments.plot, dpi=100)

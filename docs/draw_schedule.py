"""Draw the schedule of two simulated loops, one of which overruns: docs/images/schedule-overrun.svg.

    python docs/draw_schedule.py

One step of the faster loop takes 3.5 ms instead of 0.2 ms. Each loop is simulated as if it had its own CPU. The
slower loop is drawn pale while the faster one would have preempted it.
"""

from __future__ import annotations

from pathlib import Path

import rtloop

IMAGE = Path(__file__).parent / "images" / "schedule-overrun.svg"


def simulated() -> rtloop.LoopGroup:
    """Return a group whose loops have been simulated."""
    fast = rtloop.RTLoop("1ms", name="fast", priority=79, cpu=1, warmup=0)
    slow = rtloop.RTLoop("5ms", name="slow", priority=75, cpu=1, warmup=0, phase="100us")
    fast.simulate("20ms", execution=["200us"] * 7 + ["3500us"] + ["200us"] * 30, latency="60us")
    slow.simulate("20ms", execution="1500us", latency="60us")
    return rtloop.LoopGroup([fast, slow], name="servo")


def main() -> None:
    """Write the picture."""
    import matplotlib

    # Make the file reproducible: no time, no program name, no random names.
    matplotlib.rcParams.update({"svg.hashsalt": "rtloop", "svg.fonttype": "none"})
    simulated().plot(at="worst").savefig(IMAGE, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main()

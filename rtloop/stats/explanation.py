"""Explanations of late cycles: the cause of each, in one sentence."""

from __future__ import annotations

from typing import Any, NamedTuple

from rtloop.units import format_duration

__all__ = ["KINDS", "Explanation", "Share", "from_dict", "untraced", "untraced_run"]


#: Kinds of culprits, with a description of each.
KINDS = {
    "interrupt": "a hard interrupt: of a device, a timer, or another CPU",
    "softirq": "a softirq: network, block devices, timers, RCU",
    "thread": "another thread of this machine",
    "worker": "a thread of the kernel's workqueues",
    "compaction": "memory compaction, or another move of pages",
    "signal": "a signal that has stopped the process, or a debugger",
    "steal": "the hypervisor that runs this virtual machine",
    "collector": "Python's garbage collector",
    "loop": "another loop of rtloop",
    "idle": "the idle state that the CPU had to leave",
    "throttling": "the kernel's limit on real-time threads, or a deadline server",
    "step": "the loop itself: its step, or the cycle before",
    "unknown": "not proven",
}


class Share(NamedTuple):
    """Part of a delay.

    Attributes
    ----------
    kind : str
        As `culprit` of an :class:`Explanation`.
    name : str
        Name of who it was: ``"irq/24-eth0 (fifo 50)"``.
    ns : int
        Time that it took of the delay.
    pieces : int
        Number of pieces that this time was made of.
    """

    kind: str
    name: str
    ns: int
    pieces: int = 1


class Explanation(NamedTuple):
    """Cause of a late start or of a long execution of a cycle; ``str()`` returns it as a sentence.

    Attributes
    ----------
    cycle : int
        Index of the cycle.
    what : str
        ``"start"`` if it began late, ``"execution"`` if it took long.
    release_ns : int
        Its release, on the loop's clock.
    delay_ns : int
        Wake-up latency, or the execution time beyond the median.
    culprit : str
        Kind of the culprit: ``"interrupt"``, ``"softirq"``, ``"thread"``, ``"worker"``, ``"compaction"``,
        ``"signal"``, ``"steal"``, ``"collector"``, ``"loop"``, ``"idle"``, ``"throttling"``, ``"step"``, or
        ``"unknown"`` if no one of them accounts for most of the delay.
    name : str
        Name of the culprit; empty if it is unknown.
    text : str
        What it did, or why it is unknown.
    cpu : int
        CPU on which the loop waited or ran; -1 if unknown.
    shares : tuple of Share
        Parts of the delay, the longest first. They need not add up to it.
    """

    cycle: int
    what: str
    release_ns: int
    delay_ns: int
    culprit: str
    name: str
    text: str
    cpu: int = -1
    shares: tuple[Share, ...] = ()

    @property
    def is_known(self) -> bool:
        """True if a culprit is named."""
        return self.culprit != "unknown"

    def to_dict(self) -> dict[str, Any]:
        """Return it as a dict that JSON can hold."""
        return self._asdict() | {"shares": [share._asdict() for share in self.shares], "sentence": str(self)}

    def __str__(self) -> str:
        delay = format_duration(float(f"{self.delay_ns:.2e}"))
        what = f"began {delay} late" if self.what == "start" else f"took {delay} longer than usual"
        return f"cycle {self.cycle:,} {what}: {self.text}"


def from_dict(values: dict[str, Any]) -> Explanation:
    """Return what :meth:`Explanation.to_dict` wrote, from a file that was validated."""
    fields = {name: values[name] for name in Explanation._fields}
    return Explanation(**fields | {"shares": tuple(Share(**share) for share in values["shares"])})


def untraced(cycle: int, release_ns: int, delay_ns: int, *, is_traced_run: bool) -> Explanation:
    """Return the explanation of a cycle that was not looked at, in a run with a trace or without."""
    why = "not among the late cycles that were looked at" if is_traced_run else "no trace for this cycle"
    return Explanation(cycle, "start", release_ns, delay_ns, "unknown", "", f"unknown: {why}")


def untraced_run(worst: Explanation) -> Explanation:
    """Return the explanation of the worst cycle of a run without a trace, for all of them."""
    how = "run the loop with explain=True, or rtloop run --explain, as root"
    return worst._replace(text=f"unknown, as of every cycle, because this run was not traced: {how}")

"""Page faults and context switches of a thread, as the kernel has counted them."""

from __future__ import annotations

from rtloop.system.fileio import parse_field

__all__ = ["thread_usage"]


def thread_usage(stat: str, status: str) -> tuple[int, int, int, int]:
    """Return the usage of a thread, as getrusage(RUSAGE_THREAD): minor, major, voluntary, involuntary.

    Parameters
    ----------
    stat, status : str
        Content of those two files of ``/proc/PID/task/TID``.
    """
    usage = stat.rpartition(")")[2].split()
    voluntary = parse_field(status, "voluntary_ctxt_switches")
    involuntary = parse_field(status, "nonvoluntary_ctxt_switches")
    if voluntary is None or involuntary is None:
        raise KeyError("this kernel does not count context switches")
    return int(usage[7]), int(usage[9]), int(voluntary), int(involuntary)

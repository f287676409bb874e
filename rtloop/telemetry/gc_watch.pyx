"""Watch on the garbage collector of this process: how often it ran, and for how long.

A collection holds the GIL, so that a step in Python waits for its end.

Python runs signal handlers in functions written in Python, and the collector drops the exceptions of its callbacks: one
in Python would lose a Ctrl-C that comes during a collection.
"""

import gc
import threading
import time
from collections import deque

_before = None
_begun_ns = 0
_count = 0
_longest_ns = 0
_longest_at_ns = 0
_last_at_ns = 0
# Begin and end on CLOCK_MONOTONIC, thread and generation of the last ones.
_recent = deque(maxlen=1024)


def watch_collector():
    """Watch the collector from now on. A further call repairs the watch if the program has cleared `gc.callbacks`."""
    global _before
    if _before is None:
        _before = _total()
    if _note not in gc.callbacks:
        gc.callbacks.append(_note)


def _total():
    """Return the number of collections since the process began, as the collector itself counts them."""
    return sum(generation["collections"] for generation in gc.get_stats())


def _note(phase, info):
    """Measure a collection; called by the collector before and after each, on the thread that it runs on."""
    global _before, _begun_ns, _count, _longest_ns, _longest_at_ns, _last_at_ns
    now = time.monotonic_ns()
    if phase == "start":
        _begun_ns = now
    elif _begun_ns:
        _count += 1
        _last_at_ns = _begun_ns
        _recent.append((_begun_ns, now, threading.get_native_id(), info.get("generation", -1)))
        if now - _begun_ns >= _longest_ns:
            _longest_ns, _longest_at_ns = now - _begun_ns, _begun_ns
        _begun_ns = 0
    elif _before is not None:
        _before += 1  # it had begun before the watch


def _missed():
    """Return the number of collections since the watch began that it did not see."""
    if _before is None:
        return 0
    return max(0, _total() - _before - _count - bool(_begun_ns))


def collector_facts():
    """Return the collections since the watch began: their number, the longest, and times on CLOCK_MONOTONIC, ns.

    `gc_missed` are those that were not measured, because the program had removed the watch from `gc.callbacks`.
    """
    return {
        "gc_collections": _count,
        "gc_missed": _missed(),
        "gc_longest_ns": _longest_ns,
        "gc_longest_at_ns": _longest_at_ns,
        "gc_last_at_ns": _last_at_ns,
    }


def recent_collections(since_ns):
    """Return the last collections that ended after a time: begin, end (CLOCK_MONOTONIC, ns), thread and generation."""
    return [one for one in list(_recent) if one[1] >= since_ns]

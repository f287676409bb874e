"""The order in which pytest-xdist begins the tests of a run, and what stays together."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from typing import Any

from xdist.scheduler import LoadFileScheduling

#: Folders whose tests use the machine as a whole: they run one after the other, beside all the rest.
ONE_AT_A_TIME = ("tests/rt/",)
#: Folders whose tests share nothing with others of their file.
APART = ("tests/native/",)
#: Folders whose files take long, because they mostly compile or drive a browser.
SLOW = ("tests/abi/", "tests/build/", "tests/downstream/", "tests/browser/")
#: Files that take longest, the longest first: if one started last, the run would wait for it.
LONG = (
    "tests/downstream/test_downstream.py",
    "tests/faults/test_matrix.py",
    "tests/faults/test_ends_storm.py",
    "tests/build/test_example_results.py",
    "tests/build/test_build.py",
    "tests/build/test_franka.py",
    "tests/build/test_hardware_how_tos.py",
    "tests/build/test_lint.py",
    "tests/build/test_run_command.py",
    "tests/build/test_build_paths.py",
    "tests/browser/test_scope_page.py",
    "tests/unit/test_zenoh_live.py",
    "tests/unit/test_ends.py",
    "tests/unit/test_latency_command.py",
    "tests/unit/test_interrupted_ends.py",
    "tests/unit/test_connect.py",
)


def unit_of(test: str) -> str:
    """Return what a test belongs to: the tests of a unit run one after the other, in one worker.

    Parameters
    ----------
    test : str
        The test's node id.
    """
    if test.startswith(ONE_AT_A_TIME):
        return "one at a time"
    return test if test.startswith(APART) else test.partition("::")[0]


def rank(unit: str) -> tuple[int, int]:
    """Return the place of a unit among those that wait for a worker.

    After the longest come those of slow folders, and then all others in a pseudo-random order, so that tests that keep
    a CPU busy run beside tests that wait.
    """
    if unit == "one at a time":
        return 0, 0
    if unit in LONG:
        return 1, LONG.index(unit)
    return (2, 0) if unit.startswith(SLOW) else (3, zlib.crc32(unit.encode()))


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """The scheduling of ``--dist loadfile``, with these units in this order."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        self.workqueue = OrderedDict(sorted(self.workqueue.items(), key=lambda item: rank(item[0])))
        super()._assign_work_unit(node)

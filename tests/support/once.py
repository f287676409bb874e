"""What several tests need and takes long to make, made once in a test run."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def run_folder(base: Path, *, is_shared: bool = False) -> Path:
    """Return the temporary folder of the whole test run; `base` is the one of this process, a worker or not.

    If `is_shared`, that of all parts of `make test`, which names it RTLOOP_TEST_SHARED.
    """
    if is_shared and os.environ.get("RTLOOP_TEST_SHARED"):
        return Path(os.environ["RTLOOP_TEST_SHARED"])
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return `folder`, filled by `make` for the first who asks; whoever asks meanwhile, in any process, waits for it.

    A `make` that fails, or is killed, leaves nothing behind: the next who asks tries again.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            begun = folder.with_name(folder.name + ".begun")
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir()
            make(begun)
            begun.rename(folder)
    return folder

"""Every system call and every allocation of what rtloop sets up fails in turn; prints one line of JSON for each.

Runs in a process of its own, into which tests/support/faults.c is preloaded. As a program it writes the table of
docs/explanation/reliability.md:

    python tests/faults/matrix.py --table

A row is the call, the errno and whether it failed once or for ever, with what became of it: `refused` (the exception
that is meant for it), `degraded` (it came about with less, and a grant or a warning says so) or `without loss`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parents[1] / "support"
sys.path.append(str(SUPPORT))
from account import account  # noqa: E402

#: Sets something up; returns whether less was granted than asked for, and how to give it back.
Operation = Callable[[], "tuple[bool, Callable[[], None]]"]

OUTCOMES = ("refused", "degraded", "without loss")

FAULTS = SUPPORT / "faults.c"

#: What each call can fail with where rtloop runs: by its manual page, by a full machine, and by a filter of seccomp.
ERRNOS = {
    "mmap": "ENOMEM EAGAIN EPERM",
    "mprotect": "ENOMEM EACCES",
    "madvise": "EINVAL EAGAIN ENOMEM",
    "mlock": "ENOMEM EAGAIN EPERM",
    "mlockall": "ENOMEM EAGAIN EPERM",
    "mincore": "EAGAIN ENOMEM",
    "calloc": "ENOMEM",
    "memfd_create": "EMFILE ENFILE ENOMEM ENOSYS EACCES",
    "ftruncate": "EIO EPERM ENOSPC",
    "fcntl": "EPERM EBUSY EINVAL",
    "open": "EMFILE ENFILE EACCES EPERM ENOENT",
    "pread": "EIO EINVAL",
    "write": "EIO EINVAL",
    "setrlimit": "EPERM EINVAL",
    "prctl": "EINVAL EPERM",
    "capget": "EPERM",
    "sigaltstack": "EPERM ENOMEM",
    "pthread_create": "EAGAIN EPERM EINVAL",
    "pthread_attr_setstack": "EINVAL",
    "sched_setattr": "EPERM EBUSY EINVAL ENOSYS",
    "sched_getattr": "EINVAL EPERM ENOSYS",
    "sched_setaffinity": "EINVAL EPERM",
    "sched_getaffinity": "EINVAL EPERM",
}
#: A system that fails so often has no end to a sweep: a limit against a fault in the sweep itself.
MOST = 400
#: Timeout of a stop: on a busy machine an ordinary thread may not run for seconds, which is not the fault in question.
PATIENCE = "60s"


def operations() -> dict[str, Operation]:
    """Return what is tried: each gives whether less was granted than asked for, and how to give it back."""
    import rtloop

    plain = {"policy": "other", "lock_memory": "off", "dma_latency": None}
    full = {"cpu": min(os.sched_getaffinity(0)), "core_dumps": False}

    def loop(**settings: Any) -> Operation:
        made = rtloop.RTLoop("1ms", record=64, stack_size="64K", name="matrix", **settings)

        def start() -> tuple[bool, Callable[[], None]]:
            try:
                made.start()
            except BaseException:
                assert made.state in ("new", "stopped"), made.state
                raise
            is_less = not all(grant.ok for grant in made.grants)
            return is_less, lambda: made.stop(PATIENCE)

        return start

    def watched(**settings: Any) -> Operation:
        made = rtloop.RTLoop("1ms", record=64, stack_size="64K", name="matrix", **settings)
        group = rtloop.LoopGroup([made], watchdog=1000)

        def start() -> tuple[bool, Callable[[], None]]:
            try:
                group.start()
            except BaseException:
                assert group.state in ("new", "stopped"), group.state
                raise
            is_less = not all(grant.ok for grants in group.grants.values() for grant in grants)
            return is_less, lambda: group.stop(PATIENCE)

        return start

    def exchange() -> tuple[bool, Callable[[], None]]:
        held = [rtloop.Ring("f8", 64), rtloop.Latest("f8"), rtloop.Pool(64, 16)]
        return any(not grant.ok for one in held for grant in getattr(one, "grants", ())), held.clear

    def buffer() -> tuple[bool, Callable[[], None]]:
        held = [rtloop.HugeBuffer(1 << 16, backing="pages")]
        return not all(grant.ok for grant in held[0].grants), held.clear

    def simulation() -> tuple[bool, Callable[[], None]]:
        rtloop.RTLoop("1ms", record=64, **plain).simulate(cycles=3)
        return False, lambda: None

    return {
        "loop": loop(**full),
        "loop, lock_memory=own": loop(lock_memory="own", **full),
        "loop, strict=False": loop(strict=False, lock_memory="own", **full),
        "loop of an ordinary thread": loop(**plain),
        "watchdog of a group": watched(**plain),
        "watchdog, lock_memory=own": watched(strict=False, lock_memory="own"),
        "ring, latest, pool": exchange,
        "buffer": buffer,
        "simulation": simulation,
    }


def sweep(
    library: Any, name: str, operation: Callable[[], tuple[bool, Callable[[], None]]]
) -> Iterator[dict[str, Any]]:
    """Let the operation's first call fail, then its second, and so on, each with every errno; yield what came of it."""
    import rtloop

    def attempt() -> dict[str, Any]:
        """Do it once; what was given is given back."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                is_less, undo = operation()
            except Exception as error:
                kinds = (rtloop.RtloopError, OSError, MemoryError)
                return {"outcome": "refused", "error": type(error).__name__, "meant": isinstance(error, kinds)}
            finally:
                call = library.faults_disarm().decode().removesuffix("64")
                library.faults_code(0)
            undo()
        del undo
        outcome = "degraded" if is_less or caught else "without loss"
        return {"outcome": outcome, "error": "", "meant": True, "call": call}

    def armed(number: int, for_ever: bool, code: int) -> dict[str, Any]:
        library.faults_code(code)
        library.faults_arm(number, for_ever)
        found: dict[str, Any] = {"call": ""}
        found |= attempt()
        return found

    for _ in range(2):  # what Python and the C library do only once is done before
        attempt()
    before = account()
    for for_ever in (False, True):
        seen: set[str] = set()
        for number in range(MOST):
            library.faults_code(0)
            library.faults_arm(number, for_ever)
            call = probe(library, operation)
            if not call:
                break
            if for_ever and call in seen:  # that every call of the name fails has been tried from the first one on
                continue
            seen.add(call)
            for code in ERRNOS[call].split():
                found = armed(number, for_ever, getattr(errno, code))
                after = account()
                retry = attempt()
                found |= {"operation": name, "call": call, "number": number, "errno": code, "for_ever": for_ever}
                found["left"] = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
                found["retry"] = retry["outcome"]
                yield found
        else:
            raise AssertionError(f"{name}: more than {MOST} calls")


def probe(library: Any, operation: Operation) -> str:
    """Return the name of the call that the armed number is; "" where there are not so many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _, undo = operation()
        except Exception:
            return str(library.faults_disarm().decode().removesuffix("64"))
        call = str(library.faults_disarm().decode().removesuffix("64"))  # giving back is not what fails here
        undo()
        return call


def build(folder: Path) -> Path:
    """Compile the library that makes calls fail."""
    library = folder / "faults.so"
    options = ["-std=gnu11", "-O1", "-Wall", "-shared", "-fPIC", str(FAULTS), "-o", str(library), "-ldl"]
    subprocess.run([*os.environ.get("CC", "cc").split(), *options], check=True)
    return library


def run(library: Path, only: str = "") -> list[dict[str, Any]]:
    """Run the sweep in a process of its own, and return its rows."""
    environment = os.environ | {"LD_PRELOAD": str(library), "ONLY": only}
    done = subprocess.run(
        [sys.executable, "-P", __file__, "--inside"],
        env=environment, capture_output=True, text=True, check=False, timeout=400,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the sweep ended with {done.returncode}: {done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """Sum the rows up: a line for each call and errno, with what became of it in all operations."""
    lines = [
        "| call | errno | failures | refused | degraded | without loss | left behind |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        seen.setdefault((row["call"], row["errno"]), []).append(row)
    for (call, code), found in sorted(seen.items()):
        counts = [
            sum(row["outcome"] == outcome for row in found) for outcome in ("refused", "degraded", "without loss")
        ]
        errors = sorted({row["error"] for row in found if row["error"]})
        said = f"{counts[0]}" + (f" ({', '.join(errors)})" if errors else "")
        left = sum(bool(row["left"]) for row in found)
        lines.append(f"| `{call}` | {code} | {len(found)} | {said} | {counts[1]} | {counts[2]} | {left} |")
    return "\n".join(lines)


def main() -> None:
    if "--inside" in sys.argv:
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        library.faults_disarm.restype = ctypes.c_char_p
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # so that core_dumps=False has something to do
        for name, operation in operations().items():
            if os.environ.get("ONLY", "") in ("", name):
                for row in sweep(library, name, operation):
                    print(json.dumps(row), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = run(build(Path(folder)))
    print(table(rows) if "--table" in sys.argv else json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

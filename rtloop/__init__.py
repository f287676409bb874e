"""Hard real-time periodic loops on Linux, from Python.

Subclass :class:`RTLoop` in Cython, write ``step``, and run it on a real-time thread of its own::

    from rtloop cimport RTLoop, Cycle, RT_CONTINUE

    cdef class Controller(RTLoop):
        cdef int step(self, const Cycle *cycle) noexcept nogil:
            ...
            return RT_CONTINUE
"""

import os as _os
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _sys.platform != "linux":
    raise ImportError(
        f"rtloop runs on Linux only, and this is {_sys.platform!r}: it is built on SCHED_FIFO, mlockall and "
        "clock_nanosleep, which no other system has. In a container or a virtual machine with Linux it works"
    )

from rtloop.errors import (
    AttachError,
    AttachPrivilegeError,
    BridgeError,
    BuildError,
    CallbackError,
    ClockStepError,
    ConfigError,
    GuardError,
    LintError,
    MemoryLockError,
    MemoryLockPrivilegeError,
    OverrunError,
    PayloadError,
    PoolError,
    PoolExhaustedError,
    PrivilegeError,
    ProcessDiedError,
    RecorderError,
    RtloopError,
    RTSetupWarning,
    SetupError,
    StateError,
    StopTimeoutError,
    SwapError,
    WatchdogError,
)
from rtloop.loop.cycle import RT_CONTINUE, RT_STOP, Cycle
from rtloop.process import crash_report as _  # noqa: F401  compiled, so that a subinterpreter is refused at once
from rtloop.system.grant import Grant
from rtloop.system.grant_errors import import_errors as _import_errors

if _TYPE_CHECKING:
    from rtloop import guard, memory
    from rtloop.analysis.schedulability import analyze, partition
    from rtloop.analysis.task import Task
    from rtloop.child.process_loop import ProcessLoop
    from rtloop.compiler.build import build
    from rtloop.compiler.packages import find_package
    from rtloop.data.buffer import HugeBuffer
    from rtloop.data.latest import Latest
    from rtloop.data.pool import Pool
    from rtloop.data.recorder import Recorder
    from rtloop.data.ring import Ring
    from rtloop.data.signals import SignalLog
    from rtloop.functions.function_loop import FunctionLoop
    from rtloop.functions.python_loop import PyLoop
    from rtloop.group.chain import Chain
    from rtloop.group.loop_group import LoopGroup
    from rtloop.guard.thread_pools import limit_thread_pools
    from rtloop.linter.lint import lint
    from rtloop.live.connect import connect
    from rtloop.live.signals import SignalReader, Signals
    from rtloop.loop.cycle import cycle_dtype
    from rtloop.loop.loop import RTLoop
    from rtloop.process.ending_signals import stop_on_signals
    from rtloop.settings import Settings
    from rtloop.simulation.rehearsal import rehearse
    from rtloop.simulation.simulation import simulate
    from rtloop.stats.explanation import Explanation
    from rtloop.stats.histogram import Histogram
    from rtloop.stats.stats import Stats
    from rtloop.system.session.rtkit import use_rtkit
    from rtloop.telemetry.attach import attach, running
    from rtloop.telemetry.loop_reader import LoopReader

__version__ = "0.1.0"

__all__ = [
    "RT_CONTINUE",
    "RT_STOP",
    "AttachError",
    "AttachPrivilegeError",
    "BridgeError",
    "BuildError",
    "CallbackError",
    "Chain",
    "ClockStepError",
    "ConfigError",
    "Cycle",
    "Explanation",
    "FunctionLoop",
    "Grant",
    "GuardError",
    "Histogram",
    "HugeBuffer",
    "Latest",
    "LintError",
    "LoopGroup",
    "LoopReader",
    "MemoryLockError",
    "MemoryLockPrivilegeError",
    "OverrunError",
    "PayloadError",
    "Pool",
    "PoolError",
    "PoolExhaustedError",
    "PrivilegeError",
    "ProcessDiedError",
    "ProcessLoop",
    "PyLoop",
    "RTLoop",
    "RTSetupWarning",
    "Recorder",
    "RecorderError",
    "Ring",
    "RtloopError",
    "Settings",
    "SetupError",
    "SignalLog",
    "SignalReader",
    "Signals",
    "StateError",
    "Stats",
    "StopTimeoutError",
    "SwapError",
    "Task",
    "WatchdogError",
    "analyze",
    "attach",
    "build",
    "connect",
    "cycle_dtype",
    "find_package",
    "get_include",
    "guard",
    "limit_thread_pools",
    "lint",
    "memory",
    "partition",
    "rehearse",
    "running",
    "simulate",
    "stop_on_signals",
    "use_rtkit",
]


def get_include() -> str:
    """Return the directory that Cython and a C compiler need (``-I``) to build against rtloop.

    Cython finds ``rtloop/*.pxd`` there, also where rtloop is installed in editable mode; C code includes
    ``rtloop/include/rtloop/....h`` from there.
    """
    return _os.path.dirname(_os.path.dirname(_os.path.realpath(__file__)))


#: Names that are imported when first used, so that `import rtloop` is quick, and where they are.
_LATE = {
    "Chain": "group.chain",
    "Explanation": "stats.explanation",
    "FunctionLoop": "functions.function_loop",
    "Histogram": "stats.histogram",
    "HugeBuffer": "data.buffer",
    "Latest": "data.latest",
    "LoopGroup": "group.loop_group",
    "LoopReader": "telemetry.loop_reader",
    "Pool": "data.pool",
    "ProcessLoop": "child.process_loop",
    "Recorder": "data.recorder",
    "Ring": "data.ring",
    "PyLoop": "functions.python_loop",
    "RTLoop": "loop.loop",
    "Settings": "settings",
    "SignalLog": "data.signals",
    "SignalReader": "live.signals",
    "Signals": "live.signals",
    "Stats": "stats.stats",
    "Task": "analysis.task",
    "analyze": "analysis.schedulability",
    "attach": "telemetry.attach",
    "connect": "live.connect",
    "cycle_dtype": "loop.cycle",
    "build": "compiler.build",
    "find_package": "compiler.packages",
    "load_ipython_extension": "notebook.magic",
    "guard": "guard",
    "limit_thread_pools": "guard.thread_pools",
    "lint": "linter.lint",
    "memory": "memory",
    "partition": "analysis.schedulability",
    "rehearse": "simulation.rehearsal",
    "running": "telemetry.attach",
    "simulate": "simulation.simulation",
    "stop_on_signals": "process.ending_signals",
    "use_rtkit": "system.session.rtkit",
}


def __getattr__(name: str) -> object:
    """Import what was used for the first time.

    Raises
    ------
    SetupError
        If no file descriptor is free for the import.
    """
    if name not in _LATE:
        raise AttributeError(f"module 'rtloop' has no attribute {name!r}")
    import importlib

    with _import_errors(f"rtloop.{name}"):
        module = importlib.import_module(f"rtloop.{_LATE[name]}")
    globals()[name] = module if name in ("guard", "memory") else getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Compare the cost of a FunctionLoop's cycle with that of an equivalent Cython subclass.

    python benchmarks/function_loop.py [--pairs 9] [--cycles 2000000] [--json FILE]

The step is empty, which leaves the loop's own work and the call. Each figure is the real time of a simulated cycle, in
the best of three runs: a simulation has no sleep and no clock that would hide nanoseconds. The C function is
pthread_equal(3), which compares its two arguments. The function of Numba, called through `numba.cfunc` and through
ctypes, consists of two: its entry calls another one, which returns the code in memory. The last row compares the
subclass with itself, so its deviation is noise.

The target for the C function is 5 %, and that for Numba's 15 %, which is 2 ns. Needs Numba (pip install
'rtloop[numba]').
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

from common import alternate, claim, exit_code, need_module, parser, positive, print_claims, run_script, write_json

import rtloop

C_TARGET, NUMBA_TARGET = 1.05, 1.15
RUNS = 3


def cost(loop: rtloop.RTLoop, cycles: int) -> Callable[[], float]:
    """Return a function that measures a simulated cycle of a loop, in ns."""

    def measure() -> float:
        took = []
        for _ in range(RUNS):
            begin = time.perf_counter_ns()
            loop.simulate(cycles=cycles)
            took.append(time.perf_counter_ns() - begin)
        return min(took) / cycles

    return measure


def main() -> int:
    options = parser(__doc__ or "", pairs=9)
    options.add_argument("--cycles", type=positive, default=2_000_000, metavar="N", help="cycles of a run (2000000)")
    arguments = options.parse_args()
    numba = need_module("numba", "'rtloop[numba]'")
    import rtloop.numba as types

    def nothing(cycle: Any, data: Any) -> int:
        return 0

    compiled = numba.cfunc(types.signature)(nothing)
    pointer = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(compiled.address)
    c_function = ctypes.cast(ctypes.CDLL(None).pthread_equal, ctypes.c_void_p).value
    settings: dict[str, Any] = {"record": 1024}
    sides = {
        "subclass": rtloop.RTLoop("1ms", **settings),  # itself a Cython class with an empty step
        "the same subclass": rtloop.RTLoop("1ms", **settings),
        "a C function": rtloop.FunctionLoop(c_function, "1ms", **settings),
        "numba.cfunc": rtloop.FunctionLoop(compiled, "1ms", **settings),
        "numba.cfunc, by ctypes": rtloop.FunctionLoop(pointer, "1ms", data=bytearray(64), **settings),
    }
    for loop in sides.values():
        loop.simulate(cycles=1000)
    results = alternate({name: cost(loop, arguments.cycles) for name, loop in sides.items()}, arguments.pairs)
    targets = {"a C function": C_TARGET, "numba.cfunc": NUMBA_TARGET, "numba.cfunc, by ctypes": NUMBA_TARGET}
    claims = [
        claim(f"a cycle of {name}", "ns", results[name], "Cython subclass", results["subclass"], target)
        for name, target in targets.items()
    ]
    claims += [claim("the same subclass", "ns", results["the same subclass"], "Cython subclass", results["subclass"])]
    print_claims("Cost of a cycle with an empty step", claims)
    write_json(arguments.json, claims=claims, cycles=arguments.cycles, ns=results)
    return exit_code(claims)


if __name__ == "__main__":
    run_script(main)

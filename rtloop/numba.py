"""Types for a step that Numba compiles.

::

    from numba import carray, cfunc
    import numpy as np, rtloop, rtloop.numba

    @cfunc(rtloop.numba.signature)
    def step(cycle, data):
        state = carray(data, (2,), dtype=np.float64)
        state[0] += state[1] * carray(cycle, 1)[0].dt
        return rtloop.RT_CONTINUE

    loop = rtloop.FunctionLoop(step, "1kHz", data=np.zeros(2))

`Cycle` is the Numba type of the struct whose address the step receives, `signature` that of the step.
`enter_signature` and `leave_signature` are those of the functions ``enter=`` and ``leave=``, which get the data alone.
No other module of the package imports Numba.
"""

from __future__ import annotations

try:
    import numba as _numba
except ModuleNotFoundError as error:
    if error.name != "numba":
        raise
    raise ModuleNotFoundError("rtloop.numba needs Numba: pip install 'rtloop[numba]'", name="numba") from error

from rtloop.loop.cycle import cycle_dtype

__all__ = ["Cycle", "enter_signature", "leave_signature", "signature"]

Cycle = _numba.from_dtype(cycle_dtype)
signature = _numba.types.int32(_numba.types.CPointer(Cycle), _numba.types.voidptr)
enter_signature = _numba.types.int32(_numba.types.voidptr)
leave_signature = _numba.types.void(_numba.types.voidptr)

"""Cycle for Python callables, and the translation of their results into codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

__all__ = ["RT_CONTINUE", "RT_STOP", "Cycle", "cycle_dtype", "verdict"]

#: Results of a callback: continue, and a normal end.
RT_CONTINUE = 0
RT_STOP = 1

#: The NumPy form of the C struct ``Cycle``, in the order and layout of the fields.
cycle_dtype: np.dtype[Any]

_FIELDS = [
    ("index", "<u8"),
    ("release", "<i8"),
    ("start", "<i8"),
    ("period", "<i8"),
    ("missed", "<i8"),
    ("t", "<f8"),
    ("dt", "<f8"),
]


class Cycle(NamedTuple):
    """Cycle as a Python callable gets it: the values of the C struct of the same name.

    Attributes
    ----------
    index : int
        Number of cycles before this one.
    release, start : int
        Planned and actual start, ns on the loop's clock.
    period : int
        Nominal period, ns.
    missed : int
        Number of releases dropped just before this one.
    t : float
        Planned time since the first release, s.
    dt : float
        Time since the release of the previous cycle, s; the period in the first cycle.
    """

    index: int  # type: ignore[assignment]  # this field replaces tuple's method
    release: int
    start: int
    period: int
    missed: int
    t: float
    dt: float


def verdict(value: object, what: str) -> int:
    """Turn what a Python callable returned into the code of a C callback.

    Raises
    ------
    TypeError
        If it is neither None, nor a bool, nor an int of 32 bits.
    """
    if value is None or value is False:
        return RT_CONTINUE
    if value is True:
        return RT_STOP
    from rtloop.units import as_index, show  # here, so that `import rtloop` does not import it

    code = as_index(value)
    if code is None or not -(2**31) <= code < 2**31:
        raise TypeError(
            f"{what} returned {show(value)}: return None or RT_CONTINUE to continue, True or RT_STOP for a normal end, "
            "or a negative int to fail the loop"
        )
    return code


def __getattr__(name: str) -> object:
    """Create `cycle_dtype` at its first use, so that `import rtloop` does not import NumPy, which takes 0.1 s."""
    if name != "cycle_dtype":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import numpy as np

    return globals().setdefault(name, np.dtype(_FIELDS))

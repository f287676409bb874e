"""Parameters and signals that are fields of a structured array: those of loops without a class of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.errors import ConfigError
from rtloop.units import show

if TYPE_CHECKING:
    from rtloop.live.declared_parameters import Declaration, Number
    from rtloop.live.live import Live
    from rtloop.live.signal_set import SignalSet

__all__ = ["Fields", "Tuning", "declare_fields", "fields_of"]

#: The keyword ``parameters``: names of fields, or a dict from the names to limits and a unit.
Tuning = Iterable[str] | Mapping[str, "tuple[Number | None, Number | None] | tuple[Number | None, Number | None, str]"]

#: Type of the keyword ``signals``: names of fields, or a dict from names to units, or to limits and a unit.
Fields = (
    Iterable[str] | Mapping[str, "str | tuple[float | None, float | None] | tuple[float | None, float | None, str]"]
)


def fields_of(data: Any, names: Iterable[str], keyword: str) -> Iterator[tuple[str, int, np.dtype[Any], Any]]:
    """Yield the fields with these names of a structured array: name, address, type and present value.

    Raises
    ------
    ConfigError
        If it is not an array of one struct, or has no such field.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{keyword}={show(names)} must be names of fields of data, such as ('kp', 'ki')")
    fields = data.dtype.fields if isinstance(data, np.ndarray) else None
    if fields is None or data.size != 1 or not (data.flags.c_contiguous and data.flags.writeable):
        raise ConfigError(
            f"{keyword}={show(names)} names fields of data, which must be one struct in a writable NumPy array: "
            "data=np.zeros((), [('kp', 'f8'), ('angle', 'f8')])"
        )
    item = data.reshape(())
    for name in names:
        if name not in fields:
            raise ConfigError(f"{keyword}: data has no field {name!r}; its fields are {', '.join(fields)}")
        yield name, data.ctypes.data + fields[name][1], fields[name][0], item[name].tolist()


def declare_fields(live: Live, data: Any, tuning: Tuning, names: Fields) -> None:
    """Declare fields of a struct as parameters and as signals of a loop.

    Raises
    ------
    ConfigError
        If one of them cannot be that.
    """
    if tuning:
        _declare_parameters(live.parameters.declare, data, tuning)
    if names:
        _declare_signals(live.signals, data, names)


def _declare_parameters(declare: Callable[..., Declaration], data: Any, tuning: Tuning) -> None:
    """Declare fields of a struct as parameters, with their present values.

    Raises
    ------
    ConfigError
        If one of them cannot be a parameter.
    """
    limits = tuning if isinstance(tuning, Mapping) else {}
    for name, address, kind, value in fields_of(data, tuning, "parameters"):
        made = declare(name, address, value, kind)
        if name in limits:
            given = limits[name]
            if not isinstance(given, tuple) or len(given) not in (2, 3):
                raise ConfigError(
                    f"parameters: {name}={show(given)} must be (low, high) or (low, high, unit): (0, 50, 'V/rad')"
                )
            made.limits(given[0], given[1]).unit(given[2] if len(given) == 3 else "")


def _declare_signals(to: SignalSet, data: Any, names: Fields) -> None:
    """Declare fields of a struct as signals, and hold the struct as long as the loop may read it.

    Raises
    ------
    ConfigError
        If one of them cannot be a signal.
    """
    found = list(fields_of(data, names, "signals"))
    begin = data.ctypes.data
    own = (begin, begin + data.nbytes) if data.flags.owndata else None  # a view may be of a device's registers
    for name, address, kind, _ in found:
        made = to.declare(name, address, kind, own)
        if isinstance(names, Mapping):
            given = names[name]
            if isinstance(given, tuple) and len(given) in (2, 3):
                made.limits(given[0], given[1])
                given = given[2] if len(given) == 3 else ""
            made.unit(given)  # type: ignore[arg-type]
    to.held.append(data)

"""Address and signature of a compiled function, in the forms that other tools provide."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from datetime import timedelta
from fractions import Fraction
from typing import Any, NamedTuple

from rtloop.errors import ConfigError, warn_of_setup
from rtloop.loop.cycle import cycle_dtype
from rtloop.units import as_index, show

__all__ = ["ENTER", "LEAVE", "STEP", "Function", "Role", "find_function", "is_executable", "uses_data"]

_FORMS = (
    "a numba.cfunc, a cffi or ctypes pointer to a compiled function, a scipy.LowLevelCallable, a PyCapsule, or the "
    "address of a function as an int"
)
_INTS = ("int", "int32_t", "signed int", "int32")
_CTYPES_PYTHON_API = 4  # FUNCFLAG_PYTHONAPI: it takes the GIL for the call


class Role(NamedTuple):
    """Use of a function by a loop.

    Attributes
    ----------
    keyword, shown : str
        Keyword of FunctionLoop, and the name of the function in messages.
    signature : str
        Its C type.
    arguments : tuple of str
        Its arguments in ctypes.
    returns_nothing : bool
        True if it may also return nothing.
    numba : str
        The name of the signature in ``rtloop.numba``.
    """

    keyword: str
    shown: str
    signature: str
    arguments: tuple[str, ...]
    returns_nothing: bool
    numba: str


_POINTER = "c_void_p"
STEP = Role(
    "callback", "the callback", "int (const rt_cycle_t *cycle, void *data)", (_POINTER, _POINTER), False, "signature"
)
ENTER = Role("enter", "enter=", "int (void *data)", (_POINTER,), False, "enter_signature")
LEAVE = Role("leave", "leave=", "void (void *data)", (_POINTER,), True, "leave_signature")


class Function(NamedTuple):
    """Compiled function of a loop.

    Attributes
    ----------
    address : int
        Its address.
    data : int or None
        Address of the data that came with it.
    name : str
        Its name.
    """

    address: int
    data: int | None
    name: str


def _wrong(role: Role, found: str, why: str, how: str = "") -> TypeError:
    advice = f"; {how}" if how else ""
    needed = f"A step is '{role.signature}'" if role is STEP else f"It must be '{role.signature}'"
    return TypeError(f"{role.shown} is {found}: {why}. {needed}{advice}")


def _wrong_count(role: Role, found: str, count: str, how: str = "") -> TypeError:
    return _wrong(role, found, f"it takes {count} argument{'s' * (count != '1')}, not {len(role.arguments)}", how)


def _python_code(role: Role, found: str) -> TypeError:
    wait = "in every cycle" if role is STEP else f"in {role.keyword}, and no thread can take it once Python has ended"
    keyword = "" if role is STEP else f", which has {role.keyword}= as well" if role is LEAVE else ""
    return TypeError(
        f"{role.shown} is {found}, which is Python code: it would wait for the GIL {wait}. Compile it, for "
        f"example with numba.cfunc(rtloop.numba.{role.numba}), or give the Python function to rtloop.PyLoop{keyword}"
    )


def find_function(callback: Any, role: Role = STEP) -> Function:
    """Find the address of a compiled function, and check its signature if the object has one.

    Raises
    ------
    TypeError
        If it is not a compiled function, wraps Python code, or has another signature.
    ConfigError
        If there is no code at its address.
    """
    module = type(callback).__module__
    root = module.partition(".")[0]
    number = as_index(callback)
    if number is not None:
        found = Function(number, None, f"{number:#x}")
    elif root == "numba" and hasattr(callback, "address"):
        found = _from_numba(callback, role)
    elif module == "_cffi_backend":
        found = _from_cffi(callback, role)
    elif root == "scipy" and isinstance(callback, tuple) and hasattr(callback, "function"):
        found = _from_scipy(callback, role)
    elif type(callback).__name__ == "PyCapsule":
        found = _from_capsule(callback, role)
    elif "_ctypes" in sys.modules and isinstance(callback, sys.modules["_ctypes"].CFuncPtr):
        found = _from_ctypes(callback, role)
    elif root == "numba" and callable(callback):
        raise _wrong(role, f"{show(callback)}, of numba.jit", "it takes Python objects", "compile it with numba.cfunc")
    elif type(callback).__name__ == "builtin_function_or_method" and "CompiledLib" in type(callback.__self__).__name__:
        raise _wrong(role, show(callback), "it takes Python objects", "give ffi.addressof(lib, 'name')")
    elif callable(callback):
        raise _python_code(role, show(callback))
    else:
        is_period = role is STEP and isinstance(callback, (str, timedelta, Fraction))
        first = "; the function comes before the period" if is_period else ""
        raise TypeError(f"{role.keyword}={show(callback)} is not a compiled function: give {_FORMS}{first}")
    if not is_executable(found.address):
        raise ConfigError(
            f"{role.keyword}={show(callback)}: there is no code at {found.address:#x} in this process; give {_FORMS}"
        )
    return found


def is_executable(address: int) -> bool:
    """Return True if there is code at an address, according to ``/proc/self/maps``, or if that cannot be read."""
    if address <= 0:
        return False
    try:
        with open(
            "/proc/self/maps", errors="replace", newline="\n"
        ) as file:  # names of mapped files may hold any bytes
            for line in file:
                span, permissions = line.split(None, 2)[:2]
                low, high = (int(part, 16) for part in span.split("-"))
                if low <= address < high:
                    return "x" in permissions
    except OSError:
        return True
    return False


def _from_numba(callback: Any, role: Role) -> Function:
    name = getattr(callback, "__name__", "cfunc")
    signature = getattr(callback, "_sig", None)
    if signature is not None:
        how = f"compile it with numba.cfunc(rtloop.numba.{role.numba})"
        found = f"{name} of {signature}"
        if str(signature.return_type) not in (("int32", "none") if role.returns_nothing else ("int32",)):
            wanted = "void" if role.returns_nothing else "int32"
            raise _wrong(role, found, f"it returns {signature.return_type}, not {wanted}", how)
        if len(signature.args) != len(role.arguments):
            raise _wrong_count(role, found, str(len(signature.args)), how)
        for argument in signature.args:
            if type(argument).__name__ != "CPointer" and str(argument) != "void*":
                raise _wrong(role, found, f"{argument} is not a pointer", how)
        _check_records(role, [getattr(argument, "dtype", None) for argument in signature.args], found, how)
    _warn_of_frozen_arrays(getattr(callback, "_pyfunc", None), name)
    return Function(int(callback.address), None, name)


def _check_records(role: Role, pointed: list[Any], found: str, how: str) -> None:
    """Refuse arguments of a Numba function that point to other records than those of its role."""
    first, last = pointed[0], pointed[-1]
    if role is not STEP:
        if _is_cycle(first):
            raise _wrong(role, found, "it gets the data, not a cycle", how)
        return
    if _is_cycle(first) is False:
        how = "use rtloop.numba.Cycle"
        raise _wrong(role, found, "its first argument is a record of another kind than a cycle", how)
    if _is_cycle(last) and not _is_cycle(first):
        raise _wrong(role, found, "the cycle must be the first argument, and the data the second", how)
    if first is not None and _is_cycle(first) is None:
        _check_first(role, str(first), found, how)


def _warn_of_frozen_arrays(function: Any, name: str) -> None:
    """Warn of arrays that a function reaches other than by its arguments: Numba compiles their content as constants."""
    import inspect  # takes long, and only Numba's functions need it

    if not inspect.isfunction(function):
        return
    arrays = sorted(_frozen_arrays(function, {function}))
    if arrays:
        warn_of_setup(
            f"{name} uses {', '.join(arrays)}: Numba copied the content at compile time, so later changes "
            "are not seen, and with cache=True not even after a restart; pass it as data="
        )


def uses_data(callback: Any) -> bool | None:
    """Return whether a compiled function uses its last argument, the data; None if its code is not known.

    It is known of a function of Numba, which has the Python function that it was compiled from.
    """
    import dis

    code = getattr(getattr(callback, "_pyfunc", None), "__code__", None)
    if code is None or not code.co_argcount:
        return None
    last = code.co_varnames[code.co_argcount - 1]
    for instruction in dis.get_instructions(code):
        names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        is_load = "LOAD_FAST" in instruction.opname or instruction.opname in ("LOAD_DEREF", "LOAD_CLOSURE")
        if is_load and last in names:  # not LOAD_ATTR: an attribute may have the same name
            return True
    return False


def _frozen_arrays(function: Any, seen: set[Any]) -> set[str]:
    """Return the arrays that a function reaches by globals, closure, modules, tuples and functions that it calls."""
    import dis
    from types import CodeType, ModuleType

    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    known: dict[str, Any] = {}
    for name, cell in cells:
        with suppress(ValueError):  # an empty cell
            known[name] = cell.cell_contents
    found: set[str] = set()
    codes = [function.__code__]
    for code in codes:
        codes += [one for one in code.co_consts if isinstance(one, CodeType)]
        value, label = None, ""
        for instruction in dis.get_instructions(code):
            name = instruction.argval
            if instruction.opname == "LOAD_GLOBAL":
                value, label = function.__globals__.get(name), name
            elif instruction.opname == "LOAD_DEREF":
                value, label = known.get(name), name
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and isinstance(value, ModuleType):
                value, label = getattr(value, name, None), f"{label}.{name}"
            else:
                value = None
            if _has_array(value):
                found.add(label)
            called = getattr(value, "py_func", None)  # of a function that Numba compiles as well
            if hasattr(called, "__code__") and called not in seen:
                seen.add(called)
                found |= {f"{one} (in {label})" for one in _frozen_arrays(called, seen)}
    return found


def _has_array(value: object) -> bool:
    return any(map(_has_array, value)) if isinstance(value, tuple | list) else _is_array(value)


def _is_array(value: object) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ in ("ndarray", "recarray")


def _is_cycle(record: Any) -> bool | None:
    """Return True if a Numba record has the fields of a cycle, or its first ones; None if it is not a record."""
    if type(record).__name__ != "Record":
        return None
    fields = [(field, record.offset(field), str(record.typeof(field))) for field in record.fields]
    kinds: Any = cycle_dtype.fields
    ours = [(field, kinds[field][1], kinds[field][0].name) for field in cycle_dtype.names or ()]
    return fields == ours[: len(fields)]


def _check_first(role: Role, pointed: str, found: str, how: str = "") -> None:
    """Refuse a first argument of a step that cannot point to a cycle. A pointer to bytes or integers is accepted."""
    wrong = ("float", "double", "long double", "longdouble", "complex", "LP_")
    if role is STEP and (pointed.startswith(wrong) or "*" in pointed):
        raise _wrong(role, found, f"its first argument points to {pointed}, not to a cycle", how)


def _check_result(role: Role, result: str, found: str) -> None:
    if result not in (*_INTS, *("void",) * role.returns_nothing):
        raise _wrong(role, found, f"it returns {result}, not {'void' if role.returns_nothing else 'int'}")


def _from_ctypes(callback: Any, role: Role) -> Function:
    import ctypes

    name = getattr(callback, "__name__", "function")
    kept = callback._objects or {}
    if any(type(item).__name__ == "CThunkObject" for item in kept.values()) or (callback._flags_ & _CTYPES_PYTHON_API):
        raise _python_code(role, "a ctypes callback")
    result = getattr(callback.restype, "__name__", callback.restype)
    returns = "None" if role.returns_nothing else "c_int"
    how = f"set argtypes = [{', '.join(role.arguments)}] and restype = {returns}, if the function has that signature"
    is_nothing = callback.restype is None and not role.returns_nothing
    if is_nothing or (isinstance(callback.restype, type) and callback.restype is not ctypes.c_int):
        raise _wrong(role, f"{result} {name}, of ctypes", f"it returns {result}, not {returns}", how)
    if callback.argtypes is not None:
        arguments = [kind.__name__ for kind in callback.argtypes]
        found = f"{result} ({', '.join(arguments)}), of ctypes"
        if len(arguments) != len(role.arguments):
            raise _wrong_count(role, found, str(len(arguments)), how)
        for kind in callback.argtypes:
            # A pointer type has the code P, or is made by POINTER().
            if not (issubclass(kind, ctypes._Pointer) or getattr(kind, "_type_", None) in ("P", "z", "Z")):
                raise _wrong(role, found, f"{kind.__name__} is not a pointer", how)
        pointed = getattr(callback.argtypes[0], "_type_", None)
        if isinstance(pointed, type) and not issubclass(pointed, (ctypes.Structure, ctypes.Union)):
            _check_first(role, pointed.__name__.removeprefix("c_"), found, how)
    return Function(ctypes.cast(callback, ctypes.c_void_p).value or 0, None, name)


def _from_cffi(callback: Any, role: Role) -> Function:
    import _cffi_backend

    if not isinstance(callback, _cffi_backend._CDataBase):
        raise TypeError(f"{role.keyword}={show(callback)} is not a compiled function: give {_FORMS}")
    ffi = _cffi_backend.FFI()
    kind = ffi.typeof(callback)
    if " calling " in repr(callback):
        raise _python_code(role, show(callback))
    if kind.kind == "function":
        found = f"{kind.cname}, of cffi"
        _check_result(role, kind.result.cname, found)
        if len(kind.args) != len(role.arguments) or kind.ellipsis:
            raise _wrong_count(role, found, f"{len(kind.args)}{' or more' * kind.ellipsis}")
        for argument in kind.args:
            if argument.kind != "pointer":
                raise _wrong(role, found, f"{argument.cname} is not a pointer")
        _check_first(role, kind.args[0].item.cname, found)
    elif kind.cname != "void *":
        raise _wrong(role, f"{kind.cname}, of cffi", "it is not a pointer to a function")
    return Function(int(ffi.cast("uintptr_t", callback)), None, "function")


def _from_scipy(callback: Any, role: Role) -> Function:
    inner = callback.function
    if type(inner).__name__ != "PyCapsule" and not isinstance(inner, tuple):
        find_function(inner, role)  # refuses wrapped Python code
    return _from_capsule(tuple.__getitem__(callback, 0), role)


def _from_capsule(capsule: Any, role: Role) -> Function:
    from rtloop.functions.capsule import open_capsule

    address, context, text = open_capsule(capsule)
    match = re.fullmatch(r"\s*([\w ]+?)\s*\((.*)\)\s*", text)
    if match is not None:
        arguments = [part.strip() for part in match[2].split(",")]
        _check_result(role, match[1], f"'{text}'")
        if len(arguments) != len(role.arguments):
            raise _wrong_count(role, f"'{text}'", str(len(arguments)))
        for argument in arguments:
            if "*" not in argument:
                raise _wrong(role, f"'{text}'", f"{argument} is not a pointer")
        _check_first(role, arguments[0].rpartition("*")[0].replace("const", "").strip(), f"'{text}'")
    return Function(address, context or None, text or "capsule")

"""Target of ``rtloop run``: a class or a function, found in a file or a module, and made into a loop."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import re
import sys
import textwrap
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rtloop.errors import ConfigError, RtloopError
from rtloop.loop.loop import RTLoop
from rtloop.revision.leaf_classes import leaf_classes
from rtloop.revision.tracebacks import user_frames
from rtloop.settings import Duration, make_settings
from rtloop.units import format_rate, parse_period

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

    from rtloop.compiler.build import Built

__all__ = ["Target", "TargetError", "find_target", "has_no_step", "make_loop", "parse_value"]

_WORDS = {"true": True, "false": False, "none": None}
#: A call, or an attribute, as the value of -p: the first name, and the rest.
_EXPRESSION = re.compile(r"((?!\d)\w+)([.(].*)", re.DOTALL)
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
_TWICE = re.compile(r"multiple values for keyword argument '(\w+)'")


class TargetError(RtloopError):
    """The target of the command line does not exist or cannot be run: exit code 2."""


class Target(NamedTuple):
    """Class or function to run.

    Attributes
    ----------
    thing : object
        A class or a function.
    name : str
        Its name.
    module : module
        Its module.
    source : pathlib.Path or None
        The file on the command line.
    built : Built or None
        Result of building a .pyx.
    """

    thing: Any
    name: str
    module: ModuleType
    source: Path | None
    built: Built | None


class Name(str):
    """Text of ``-p`` without quotes that could be the name of an object in the target's file."""

    __slots__ = ()


def parse_value(text: str) -> Any:
    """Read a value from the command line: a Python literal, true, false, none, inf, a `Name`, or else text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for read in (ast.literal_eval, float):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return Name(text) if text.isidentifier() else text


def find_target(text: str, **build: Any) -> Target:
    """Find the target of ``FILE.pyx:CLASS``, ``FILE.py:NAME`` or ``MODULE:NAME``; a .pyx is compiled.

    Parameters
    ----------
    text : str
        The target.
    **build
        Keywords of :func:`rtloop.build` for a .pyx.

    Raises
    ------
    TargetError
        If it does not exist, or is ambiguous without a name.
    BuildError
        If it does not compile.
    """
    where, colon, name = (text, "", "") if Path(text).exists() else text.rpartition(":")
    if not colon:
        where, name = text, ""
    path = Path(where)
    built = None
    if path.suffix in (".pyx", ".py"):
        if not path.is_file():
            fault = f"{where} is a folder" if path.is_dir() else f"there is no file {where}{_near_file(path)}"
            raise TargetError(fault)
        folder = str(path.resolve().parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)  # as python does for a script
        if path.suffix == ".pyx":
            from rtloop.compiler.build import build_module

            built = build_module(path, **build)
            module = built.module
        else:
            module = _load(path)
    else:
        if not all(part.isidentifier() for part in where.split(".")):
            raise TargetError(f"{where!r} is not a .pyx, a .py or a module's name: give FILE.pyx:CLASS, for example")
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise
            raise TargetError(f"there is no file and no module {where}{_near_file(path)}") from None
    source = path if path.suffix in (".pyx", ".py") else None
    shown = where
    if not name:
        name = _only_one(module, shown)
    thing = getattr(module, name, None)
    if thing is None:
        near = get_close_matches(name, _candidates(module, every=True), 1)
        hint = f"did you mean {near[0]}?" if near else _listing(module)
        raise TargetError(f"{shown} has no {name}; {hint}")
    return Target(thing, name, module, source, built)


def _load(path: Path) -> ModuleType:
    """Import a Python file under its own name, if that is free."""
    name = path.stem if path.stem not in sys.modules else f"_rtloop_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _near_file(path: Path) -> str:
    folder = path.parent
    files = [file for file in folder.iterdir() if file.suffix in (".pyx", ".py")] if folder.is_dir() else []
    near = get_close_matches(path.stem, [file.stem for file in files], 1)
    return f"; did you mean {next(file for file in files if file.stem == near[0])}?" if near else ""


def _is_loop_class(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, RTLoop)


def _is_compiled(thing: object) -> bool:
    """Return whether it is a compiled function in one of the forms that FunctionLoop takes."""
    root, kind = type(thing).__module__.partition(".")[0], type(thing).__name__
    if root in ("numba", "scipy"):
        return hasattr(thing, "address") or hasattr(thing, "function")
    return root == "_cffi_backend" or "_FuncPtr" in kind or kind in ("PyCapsule", "CFunctionType")


def _candidates(module: ModuleType, *, every: bool = False) -> list[str]:
    """Return the names that can be run: loop classes, else compiled functions, Python functions, callable classes.

    A class from which another one of the module is derived counts only among `every` name.
    """
    own = {name: thing for name, thing in vars(module).items() if not name.startswith("_")}
    all_classes = [n for n, x in own.items() if _is_loop_class(x) and x.__module__ == module.__name__]
    classes = all_classes if every else list(leaf_classes(module, _is_loop_class))
    compiled = [n for n, x in own.items() if _is_compiled(x) and not isinstance(x, type)]
    python = [n for n, x in own.items() if inspect.isfunction(x) and x.__module__ == module.__name__]
    callables = list(leaf_classes(module, lambda one: not _is_loop_class(one) and _has_call(one)))
    return classes + compiled + python + callables if every else classes or compiled or python or callables


def _listing(module: ModuleType) -> str:
    names = _candidates(module, every=True)
    if names:
        return f"there {'is' if len(names) == 1 else 'are'} {', '.join(names)}"
    return "there is nothing in it that can be run: no subclass of RTLoop, no function, and no callable class"


def _only_one(module: ModuleType, where: str) -> str:
    names = _candidates(module)
    names = [name for name in names if name not in ("enter", "leave")] or names  # functions beside a step
    if len(names) == 1:
        return names[0]
    if not names:
        raise TargetError(
            f"{where} has nothing that can be run: no subclass of RTLoop, no function, and no class with __call__"
        )
    raise TargetError(
        f"{where} has several that can be run: {', '.join(names)}; say which one, {where}:{names[0]} for example"
    )


def make_loop(
    target: Target, period: Duration, settings: Mapping[str, Any], defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> RTLoop:
    """Make the loop.

    Parameters
    ----------
    target : Target
        Class or function to run.
    period : duration
        The period.
    settings : mapping
        Keywords of RTLoop, asked for by name.
    defaults : mapping
        Further keywords, which a class may refuse, or set itself.
    given : mapping
        Values of ``-p``: keywords of the class, or attributes of the loop.

    Raises
    ------
    TargetError
        If it cannot be run, or does not take what was given.
    """
    thing = target.thing
    given = {name: _resolve(target, name, value) for name, value in given.items()}
    if isinstance(thing, RTLoop):
        raise TargetError(f"{target.name} is a loop object: name its class, or the function that it runs")
    if _is_loop_class(thing):
        return _make_class(target, period, settings, defaults, given)
    known = make_settings.__kwdefaults__ or {}
    keywords = {**defaults, "name": target.name, **settings, **{k: v for k, v in given.items() if k in known}}
    rest = {name: value for name, value in given.items() if name not in known}
    if _is_python(thing):
        from rtloop.functions.python_loop import PyLoop

        step = _bind(target, rest)
        leave = getattr(step, "leave", None) if isinstance(thing, type) else None
        return PyLoop(step, period, **{"leave": leave, **keywords})
    from rtloop.functions.function_loop import FunctionLoop

    own: dict[str, Any] = {name: rest.pop(name) for name in ("data", "enter", "leave") if name in rest}
    if rest:
        raise TargetError(
            f"{target.name} is a compiled function, which does not take {next(iter(rest))!r}: pass data, -p data=NAME, "
            "with the name of an array in the same file"
        )
    for name, value in own.items():
        if isinstance(value, str):
            if not hasattr(target.module, value):
                raise TargetError(f"{name}={value}: {target.module.__name__.removeprefix('_rtloop_')} has no {value}")
            own[name] = getattr(target.module, value)
    try:
        _check_data(target, own)
        return FunctionLoop(thing, period, **own, **keywords)
    except TypeError as error:
        raise TargetError(f"{target.name} cannot be run: {error}") from None


def _check_data(target: Target, own: Mapping[str, Any]) -> None:
    """Refuse a compiled function that would get address 0 for data that it uses, or may use."""
    from rtloop.functions.function_pointer import find_function, uses_data

    has_own = uses_data(target.thing) is None and find_function(target.thing).data is not None
    if has_own or own.get("data") is not None:
        return
    arrays = [name for name, one in vars(target.module).items() if type(one).__name__ == "ndarray"]
    how = f"pass an array of the file, -p data={arrays[0] if len(arrays) == 1 else 'NAME'}"
    functions = {target.name: target.thing, "enter": own.get("enter"), "leave": own.get("leave")}
    given = "-p data=none gives it no array" if "data" in own else "-p data= is not given"
    for name, function in functions.items():
        is_used = False if function is None else uses_data(function)
        if is_used:
            raise TargetError(f"{name} uses its argument data, and {given}: it would use address 0 and crash; {how}")
        if is_used is None and "data" not in own:
            raise TargetError(
                f"{name} may use its argument data (rtloop cannot read compiled code), and -p data= is not given: if "
                f"it does, it would use address 0 and crash; {how}, or give -p data=none if no function uses data"
            )


def _resolve(target: Target, name: str, value: Any) -> Any:
    """Return the object of the target's file that a value names, a class instantiated; any other value as it is."""
    code = _EXPRESSION.fullmatch(value) if isinstance(value, str) else None
    if code is not None and hasattr(target.module, code[1]):
        is_class = isinstance(getattr(target.module, code[1]), type) and code[2] == "()"
        made = f"{code[1]}, and the class is created without arguments" if is_class else "NAME"
        raise TargetError(
            f"{name}={value}: -p does not run code. Give the name of a class or an object of the file, -p {name}={made}"
        )
    if not isinstance(value, Name):
        return value
    is_ours = name not in (make_settings.__kwdefaults__ or {}) and not value.startswith("_")
    found = vars(target.module).get(value) if is_ours else None
    if not isinstance(found, type):
        return str(value) if found is None else found
    try:
        return found()
    except TypeError as error:
        raise TargetError(f"{name}={value}: {value}() cannot be created: {error}") from None


def _is_python(thing: object) -> bool:
    """Return whether it is Python code, which PyLoop runs; FunctionLoop explains any other callable's fault."""
    if isinstance(thing, type):
        return True
    if inspect.isfunction(thing) or inspect.ismethod(thing) or isinstance(thing, functools.partial):
        return True
    return _has_call(type(thing)) and type(thing).__module__.partition(".")[0] not in ("numba", "scipy")


def _has_call(kind: type) -> bool:
    """Return whether its objects have a __call__ written in Python."""
    return any(inspect.isfunction(vars(base).get("__call__")) for base in kind.__mro__)


def _bind(target: Target, given: dict[str, Any]) -> Any:
    """Bind keywords to a Python function, or to the constructor of a callable class."""
    thing = target.thing
    if isinstance(thing, type) and not _has_call(thing):
        raise TargetError(
            f"{target.name} is a class that is neither a subclass of RTLoop nor callable with a cycle: "
            "derive it from RTLoop in a .pyx, or give it a method __call__(self, cycle)"
        )
    takes = inspect.signature(thing)
    try:
        takes.bind(*(() if isinstance(thing, type) else (None,)), **given)
    except TypeError as error:
        raise TargetError(f"{target.name}: {error}; it is {target.name}{takes}") from None
    if isinstance(thing, type):
        return thing(**given)
    if not given:
        return thing
    return functools.update_wrapper(functools.partial(thing, **given), thing)


def _make_class(
    target: Target, period: Duration, settings: Mapping[str, Any], defaults: Mapping[str, Any], given: Mapping[str, Any]
) -> RTLoop:
    """Call the class; set as attributes, or as parameters, what its constructor does not take."""
    first = re.search(r"(\w+)\s*(?::[^=]*)?(=|$)", _constructor(target).partition(",")[0])
    if first and first[2] and first[1] not in ("period", "rate"):  # else 1 ms would become a gain of a million
        raise TargetError(
            f"{target.name} cannot be created: the first argument of its __init__ is {first[1]}, but must be the "
            f"period: write 'def __init__(self, period, *, {first[1]}=..., **settings)' and "
            "'super().__init__(period, **settings)'"
        )
    keywords = {**defaults, **settings, **given}
    others: dict[str, Any] = {}
    while True:
        try:
            loop: RTLoop = target.thing(period, **keywords)
            break
        except ConfigError:
            raise
        except TypeError as error:
            twice = _TWICE.search(str(error))
            if twice and twice[1] in keywords and twice[1] in defaults.keys() - settings.keys() - given.keys():
                del keywords[twice[1]]  # the class sets it itself
                continue
            match = _UNEXPECTED.search(str(error))
            name = match[1] if match else ""
            if name not in keywords:
                raise _unmade(target, error) from None
            value = keywords.pop(name)
            if name in defaults:
                continue
            if name not in given:
                raise TargetError(
                    f"{target.name} does not take {name}={value!r}, because its __init__ does not pass it on: write "
                    "'def __init__(self, period, *, ..., **settings)' and 'super().__init__(period, **settings)'"
                ) from None
            others[name] = value
    exact = parse_period(period)
    if loop.settings.period != exact:
        raise TargetError(
            f"{target.name} runs at {format_rate(loop.settings.period_ns)}, not at the {format_rate(exact)} "
            "that it was given: its __init__ must pass the period on, 'super().__init__(period, **settings)'"
        )
    for name, value in others.items():
        _set(target, loop, name, value)
    return loop


def _set(target: Target, loop: RTLoop, name: str, value: Any) -> None:
    """Set a parameter that the loop has declared, or an attribute."""
    if name in loop.parameters:
        loop.parameters[name] = value
        return
    if name not in _attributes(target.thing):
        near = get_close_matches(name, [*_names(target), *loop.parameters], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TargetError(f"{target.name} does not take {name!r}{hint}{_takes(target, loop)}")
    try:
        setattr(loop, name, value)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        why = "it is read-only" if "not writable" in str(error) else str(error)
        raise TargetError(f"{target.name}.{name} cannot be {value!r}: {why}") from None


def _unmade(target: Target, error: TypeError) -> Exception:
    """Return the exception for a failed constructor: the error itself, if the user's code raised it."""
    frames, text = user_frames(error), str(error)
    # Cython reports wrong arguments in the line of the def.
    if frames and not text.startswith("__init__()") and not (frames[-1].line or "").lstrip().startswith("def __init__"):
        return error
    if "positional argument" in text:
        return TargetError(
            f"{target.name} cannot be created: its __init__ must take the period first, "
            "'def __init__(self, period, *, ..., **settings)', and pass it on to super().__init__"
        )
    # RTLoop's own error about a class does not concern its arguments.
    takes = "" if "Python method" in text else _takes(target)
    return TargetError(f"{target.name} cannot be created: {text}{takes}")


def _attributes(kind: type) -> list[str]:
    """Return the public attributes that a class has beyond those of RTLoop."""
    own = [vars(base) for base in kind.__mro__ if base not in RTLoop.__mro__]
    return [
        name
        for names in own
        for name, value in names.items()
        if not name.startswith("_") and hasattr(type(value), "__set__") and not inspect.isfunction(value)
    ]


def _constructor(target: Target) -> str:
    """Return the constructor's parameters as the source has them; empty if it has none or is unknown."""
    kinds = [kind for kind in target.thing.__mro__ if kind not in RTLoop.__mro__ and "__init__" in vars(kind)]
    init = vars(kinds[0])["__init__"] if kinds else None
    if inspect.isfunction(init):
        takes = inspect.signature(init)
        return str(takes.replace(parameters=list(takes.parameters.values())[1:]))[1:-1]
    if init is None or target.source is None:
        return ""
    found = re.search(r"def __init__\(\s*self\s*,?\s*(.*?)\)\s*:", _code(target, kinds[0]), re.DOTALL)
    return " ".join(found[1].split()).rstrip(", ") if found else ""


def _code(target: Target, kind: type) -> str:
    """Return the source of a class of the target's file; empty if it is not known."""
    text = target.source.read_text(encoding="utf-8", errors="replace") if target.source else ""
    head = rf"^(?:cdef )?class {kind.__name__}\b"
    match = re.search(rf"{head}.*?(?=^[^\s#)]|\Z)", text, re.MULTILINE | re.DOTALL)
    return match[0] if match else ""


def has_no_step(target: Target) -> bool:
    """Return whether a class of a .pyx, derived from RTLoop by classes of the same file, has a step nowhere."""
    if target.built is None or not _is_loop_class(target.thing):
        return False
    codes = [_code(target, kind) for kind in target.thing.__mro__ if kind not in RTLoop.__mro__]
    step = re.compile(r"^\s+cdef\s[^#\n]*\bstep\s*\(", re.MULTILINE)
    return all(codes) and not any(map(step.search, codes))


def _names(target: Target) -> Sequence[str]:
    of_constructor = re.findall(r"(\w+)\s*(?:[:=,]|$)", _constructor(target))
    return [*of_constructor, *_attributes(target.thing), *(make_settings.__kwdefaults__ or ())]


def _takes(target: Target, loop: RTLoop | None = None) -> str:
    """Return the keywords and attributes of a class, and the parameters of a loop of it, a line for each kind."""
    lines = []
    if constructor := _constructor(target):
        lines.append(f"  constructor  {target.name}({constructor})")
    if attributes := _attributes(target.thing):
        lines.append(f"  attributes   {', '.join(attributes)}")
    if loop is not None and loop.parameters:
        lines.append(f"  parameters   {', '.join(loop.parameters)}")
    lines.append(f"  settings     {', '.join(make_settings.__kwdefaults__ or ())}")
    return "\n" + "\n".join(textwrap.fill(line, 100, subsequent_indent=" " * 15) for line in lines)

"""Read the structure of the package from its source: its rooms, and which module imports which."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rtloop"

#: The rooms from the ground up. A module imports from lower rooms and from its own; "" is the front door.
ROOMS = (
    "_os", "_python", "headers", "errors", "units", "layouts", "process", "system", "memory", "sharing", "settings",
    "data", "stats", "guard", "telemetry", "culprit", "live", "loop", "functions", "child", "analysis", "simulation",
    "group", "", "numba", "pytest", "zenoh", "compiler", "linter", "revision", "notebook", "demo", "machine", "tools",
    "__main__",
)  # fmt: skip

#: The imports that go up all the same: (importing module, imported module) -> the reason.
EXCEPTIONS = {
    ("loop.loop", "simulation.simulation"): "RTLoop.simulate is a method of the loop; it imports when it is called",
    ("", "compiler.build"): "rtloop.build is loaded when it is first used; this import is for type checkers",
    ("", "compiler.packages"): "rtloop.find_package is loaded when it is first used; this import is for type checkers",
    ("", "linter.lint"): "rtloop.lint is loaded when it is first used; this import is for type checkers",
}

#: Where C is declared for Cython: the C library, CPython, and the headers of rtloop. Declarations stand nowhere else.
DECLARATIONS = ("_os", "_python", "headers")

#: A comment or a string, whichever begins first: neither a quote in a comment nor a # in a string misleads.
COMMENTS_AND_STRINGS = re.compile(
    r"""\#.*
    | (\"{3}|'{3}) [\s\S]*? \1
    | "(?:\\.|[^"\\\n])*"
    | '(?:\\.|[^'\\\n])*'
    """,
    re.VERBOSE,
)
FROM = re.compile(r"(?:^|[;:])[ \t]*from[ \t]+(\S+)[ \t]+(c?)import[ \t]*(\([^)]*\)|[^\n;]*)", re.MULTILINE)
IMPORT = re.compile(r"(?:^|[;:])[ \t]*(c?)import[ \t]+([^\n;]+)", re.MULTILINE)
#: An import by a name that is a string, as importlib and Python's own function take it.
BY_NAME = re.compile(r"""\b(?:import_module|__import__)\(\s*f?["'](rtloop[\w.]*)""")


class Import(NamedTuple):
    """One name that a file imports: its dotted path, and whether it is a cimport."""

    target: str
    is_cimport: bool


def imported(text: str, module: str = "") -> Iterator[Import]:
    """Yield what a file imports or cimports; ``from package import name`` gives ``package.name``.

    Imports inside functions and below ``if TYPE_CHECKING`` count, and those by a string that names a module. `module`
    is the file's dotted name, for relative imports.
    """
    for target in BY_NAME.findall(text):
        yield Import(target.rstrip("."), is_cimport=False)
    text = COMMENTS_AND_STRINGS.sub(lambda match: "" if match[0].startswith("#") else '""', text)
    text = text.replace("\\\n", " ")
    for origin, kind, names in FROM.findall(text):
        dots = len(origin) - len(origin.lstrip("."))
        base = ".".join([*module.split(".")[:-dots], origin[dots:]]).strip(".") if dots else origin
        for name in names.strip("()").split(","):
            if name.strip():
                yield Import(f"{base}.{name.split()[0]}", kind == "c")
    for kind, names in IMPORT.findall(text):
        for name in names.split(","):
            yield Import(name.split()[0], kind == "c")


def sources(package: Path) -> Iterator[tuple[str, Path]]:
    """Yield every module of the package with each of its files."""
    for path in sorted(package.rglob("*")):
        if path.suffix in {".py", ".pyx", ".pxd", ".pyi"}:
            yield ".".join(path.relative_to(package.parent).with_suffix("").parts), path


def resolve(name: str, package: Path) -> str | None:
    """Return the module of the package that a dotted name means, without the package's name: "" for the front door."""
    parts = name.split(".")
    if parts[0] != "rtloop":
        return None
    for end in range(len(parts), 1, -1):
        path = package.joinpath(*parts[1:end])
        if path.is_dir() or any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyx", ".pxd")):
            return ".".join(parts[1:end])
    return ""


def short(name: str) -> str:
    return name.removeprefix("rtloop").removeprefix(".").removesuffix("__init__").removesuffix(".")


def edges(package: Path) -> set[tuple[str, str]]:
    """Return (importing module, imported module) for the whole package."""
    found = set()
    for name, path in sources(package):
        for target, _ in imported(path.read_text(), name):
            to = resolve(target, package)
            if to is not None and to != short(name):
                found.add((short(name), to))
    return found


def room(module: str) -> str:
    """Return the room of a module: the first part of its name, "" for the front door."""
    return module.partition(".")[0]

"""The rules of the house that a reader relies on: who may import whom, how long a module is, what comes with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rtloop"
MAX_LINES = 450

#: From the ground up. "" is the front doors, which hand on what is below them; a folder's modules share its floor.
FLOORS = {
    "errors": 0, "units": 0, "_os": 0,
    "system": 1, "data": 1,
    "loop": 2,
    "": 3, "guard": 3, "memory": 3, "numba": 3, "pytest": 3, "zenoh": 3,
    "tools": 4, "demo": 4, "__main__": 4,
}  # fmt: skip
#: Imports between neighbours on one floor: (importing room, imported module or room).
#: The front door hands on the tools that a program calls, too; they are loaded when first used.
ALLOWED = {
    ("units", "errors"), ("", "guard"), ("", "memory"), ("", "tools.build"), ("", "tools.lint"), ("data", "system"),
    ("tools", "demo"), ("__main__", "tools"),
}  # fmt: skip

STRINGS = re.compile(r'("""|\'\'\').*?\1', re.DOTALL)
COMMENTS = re.compile(r"#.*")
FROM = re.compile(r"^[ \t]*from[ \t]+(\S+)[ \t]+c?import[ \t]+(\([^)]*\)|.*)", re.MULTILINE)
IMPORT = re.compile(r"^[ \t]*c?import[ \t]+(.+)", re.MULTILINE)


def imported(text: str, module: str = "") -> Iterator[str]:
    """Yield what a module imports or cimports, as dotted names, ``package.name`` for ``from package import name``.

    Parameters
    ----------
    text : str
        Its source, Python or Cython.
    module : str
        Its dotted name, for relative imports.
    """
    text = COMMENTS.sub("", STRINGS.sub('""', text)).replace("\\\n", " ")
    for origin, names in FROM.findall(text):
        dots = len(origin) - len(origin.lstrip("."))
        base = ".".join([*module.split(".")[:-dots], origin[dots:]]).strip(".") if dots else origin
        for name in names.strip("()").split(","):
            if name.strip():
                yield f"{base}.{name.split()[0]}"
    for names in IMPORT.findall(text):
        for name in names.split(","):
            yield name.split()[0]


def sources(package: Path) -> Iterator[tuple[str, Path]]:
    """Yield every source file of the package with its dotted name; a package's own name ends in ``.__init__``."""
    for path in sorted(package.rglob("*")):
        if path.suffix in {".py", ".pyx", ".pxd", ".pyi"}:
            yield ".".join(path.relative_to(package.parent).with_suffix("").parts), path


def inside(name: str, package: Path) -> str | None:
    """Return the module of the package that a dotted name means, without the package's name: "" for the front doors."""
    parts = name.split(".")
    if parts[0] != "rtloop":
        return None
    for end in range(len(parts), 1, -1):
        path = package.joinpath(*parts[1:end])
        if path.is_dir() or any(path.with_suffix(suffix).exists() for suffix in (".py", ".pyx", ".pxd")):
            return ".".join(parts[1:end])
    return ""


def edges(package: Path) -> Iterator[tuple[str, str]]:
    """Yield (importing module, imported module), without the package's name."""
    for name, path in sources(package):
        importer = name.removeprefix("rtloop.").removesuffix("__init__").removesuffix(".")
        for target in imported(path.read_text(), name):
            to = inside(target, package)
            if to is not None and to != importer:
                yield importer, to


def is_allowed(importer: str, to: str) -> bool:
    room, other = importer.partition(".")[0], to.partition(".")[0]
    if room == other or FLOORS[room] > FLOORS[other]:
        return True
    return any(room == a and (to == b or to.startswith(b + ".")) for a, b in ALLOWED)


def upward(package: Path) -> list[str]:
    return sorted({f"{a or 'rtloop'} -> {b or 'rtloop'}" for a, b in edges(package) if not is_allowed(a, b)})


def deeper(folder: Path) -> list[str]:
    """Return the imports of a folder's programs that go past rtloop's front doors."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".py", ".pyx", ".pxd"}:
            text = path.read_text()
            for door in ("rtloop.memory", "rtloop.numba", "rtloop.pytest", "rtloop.zenoh", "rtloop"):
                text = re.sub(rf"\b{door}(?=\s+c?import\b|\s*$|\s+as\b)", "door", text, flags=re.MULTILINE)
            names = {name for name in imported(text) if name.startswith("rtloop.")}
            past = (name for name in names if name.count(".") > 1 or re.search(rf"import\s+{name}\b", text))
            found += [f"{path.name}: {name}" for name in sorted(past)]
    return found


def test_every_room_has_a_floor():
    rooms = {name.split(".")[1] for name, _ in sources(PACKAGE)} - {"__init__"}
    assert rooms <= set(FLOORS), "add the new module or folder to FLOORS, and to the drawing in CONTRIBUTING.md"


def test_no_import_goes_upward():
    found = set(edges(PACKAGE))
    assert len(found) > 20, "the scanner reads nothing"
    assert upward(PACKAGE) == []


@pytest.mark.parametrize("folder", ["examples", "tests/downstream"])
def test_nobody_outside_goes_past_the_front_doors(folder):
    assert deeper(ROOT / folder) == []


def test_no_module_is_too_long():
    lengths = {path: len(path.read_text().splitlines()) for _, path in sources(PACKAGE)}
    lengths |= {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.h")}
    assert {path.name: lines for path, lines in lengths.items() if lines >= MAX_LINES} == {}


def test_every_compiled_module_is_a_triple():
    compiled = list(PACKAGE.rglob("*.pyx"))
    assert compiled
    alone = [
        path.relative_to(ROOT).with_suffix(suffix).as_posix()
        for path in compiled
        for suffix in (".pxd", ".pyi")
        if not path.with_suffix(suffix).exists()
    ]
    assert alone == []


# The scanner itself: planted faults that it must find, and innocents that it must pass.

PLANTED = {
    "python": ("data/ring.py", "from rtloop.loop.loop import RTLoop", "data.ring -> loop.loop"),
    "cimport": ("system/memory.pyx", "from rtloop.loop.loop cimport RTLoop", "system.memory -> loop.loop"),
    "pxd": ("system/memory.pxd", "from rtloop.loop cimport loop", "system.memory -> loop.loop"),
    "front door": ("loop/loop.pyx", "from rtloop cimport Cycle", "loop.loop -> rtloop"),
    "late": ("loop/loop.pyx", "def f():\n    import numpy, rtloop.tools.cli as cli", "loop.loop -> tools.cli"),
    "many lines": ("loop/loop.py", "from rtloop.tools import (  # noqa\n    cli,\n)", "loop.loop -> tools.cli"),
    "relative": ("data/ring.py", "from ..loop import loop", "data.ring -> loop.loop"),
    "neighbour": ("system/memory.py", "from rtloop.data import ring", "system.memory -> data.ring"),
    "ground": ("errors.py", "import rtloop.units", "errors -> units"),
    "top": ("demo/plant.py", "from rtloop.tools import cli", "demo.plant -> tools.cli"),
    "init": ("__init__.py", "from rtloop.tools.cli import main", "rtloop -> tools.cli"),
}


@pytest.fixture
def package(tmp_path):
    """A package with a module in each room, and nothing wrong with it."""
    files = ["loop/loop.pyx", "tools/cli.py", "system/cpu.py", "system/memory.py", "data/ring.py", "demo/plant.py"]
    files += ["units.py", "errors.py", "__init__.py", "__init__.pxd", "loop/__init__.py", "data/__init__.py"]
    for name in files:
        path = tmp_path / "rtloop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path / "rtloop"


@pytest.mark.parametrize(("name", "text", "edge"), PLANTED.values(), ids=PLANTED)
def test_planted_upward_edge_is_found(package, name, text, edge):
    (package / name).write_text(text + "\n")
    assert upward(package) == [edge]


def test_downward_edges_and_mentions_pass(package):
    (package / "tools/cli.py").write_text("import rtloop\nfrom rtloop.demo import plant\nfrom rtloop import loop\n")
    (package / "loop/loop.pyx").write_text('"""\nimport rtloop\n"""\nfrom rtloop.data cimport ring  # import rtloop\n')
    (package / "data/ring.py").write_text("from rtloop.system.memory import lock\nimport numpy as np\n")
    (package / "units.py").write_text("from rtloop.errors import ConfigError\n")
    assert len(set(edges(package))) == 6
    assert upward(package) == []


@pytest.mark.parametrize(
    "text", ["from rtloop.loop.loop cimport RTLoop", "import rtloop.system.memory", "import rtloop.data.ring as ring"]
)
def test_planted_deep_import_is_found(tmp_path, text):
    doors = (
        "import rtloop\nimport rtloop.memory\nfrom rtloop.memory import lock_all\nfrom rtloop cimport RTLoop, Cycle\n"
    )
    (tmp_path / "run.pyx").write_text(f"{doors}from rtloop import memory\nfrom rtloop.memory cimport lock\n{text}\n")
    assert len(deeper(tmp_path)) == 1

"""Rules of the house: imports go down, no circles, small folders, compiled modules in triples."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import rtloop

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "rtloop"


def load(path: Path) -> ModuleType:
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


house = load(ROOT / "tests" / "support" / "house.py")
ROOMS, EXCEPTIONS, DECLARATIONS = house.ROOMS, house.EXCEPTIONS, house.DECLARATIONS
edges, imported, resolve, room, short, sources = (
    house.edges, house.imported, house.resolve, house.room, house.short, house.sources,
)  # fmt: skip

#: A folder holds at most this many modules, not counting its __init__.
MAX_MODULES = 14
#: No line of the package is longer, in Python, Cython, stubs and C alike.
MAX_COLUMNS = 120


def upward(package: Path, exceptions: dict[tuple[str, str], str] = EXCEPTIONS) -> list[str]:
    """Return the imports that go up, other than the exceptions."""
    height = {name: i for i, name in enumerate(ROOMS)}
    return sorted(
        f"{a or 'rtloop'} -> {b or 'rtloop'}"
        for a, b in edges(package)
        if room(a) != room(b) and height[room(a)] < height[room(b)] and (a, b) not in exceptions
    )


def circles(package: Path, exceptions: dict[tuple[str, str], str] = EXCEPTIONS) -> list[list[str]]:
    """Return the sets of modules that import each other in a circle.

    A ``.pxd`` is a node of its own, as a header is in C: declarations may be cimported by what implements them.
    """
    graph: dict[str, set[str]] = {}
    for name, path in sources(package):
        here = short(name) or "rtloop"
        node = f"{here}.pxd" if path.suffix == ".pxd" else here
        graph.setdefault(node, set())
        if path.suffix == ".pyx":
            graph[node].add(f"{here}.pxd")
        for target, is_cimport in imported(path.read_text(), name):
            to = resolve(target, package)
            if to is None or (short(name), to) in exceptions:
                continue
            has_pxd = package.joinpath(*to.split(".")).with_suffix(".pxd").exists() or not to
            other = f"{to or 'rtloop'}.pxd" if is_cimport and has_pxd else to or "rtloop"
            if other != node:
                graph[node].add(other)
    reach = {node: _reachable(graph, node) for node in graph}
    found = {tuple(sorted(m for m in reach[node] if node in reach.get(m, ()))) for node in graph if node in reach[node]}
    return [list(circle) for circle in sorted(found)]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph[start])
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += graph.get(node, ())
    return seen


def crowded(package: Path) -> dict[str, int]:
    """Return the folders that hold too many modules, with how many."""
    modules: dict[Path, set[str]] = {}
    for _, path in sources(package):
        if path.stem != "__init__":
            modules.setdefault(path.parent, set()).add(path.stem)
    return {
        folder.relative_to(package).as_posix(): len(names)
        for folder, names in modules.items()
        if len(names) > MAX_MODULES
    }


def too_wide(package: Path) -> list[str]:
    """Return the lines that are too long, of whatever kind of file, as file:line."""
    return [
        f"{path.relative_to(package)}:{number}"
        for path in sorted(package.rglob("*"))
        if path.suffix in {".py", ".pyx", ".pxd", ".pyi", ".c", ".h"}
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > MAX_COLUMNS
    ]


def declared_twice(package: Path) -> dict[str, list[str]]:
    """Return the C functions with more than one extern declaration, each of which can go wrong by itself."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.p[xy][dx]")):
        text = re.sub(r'(?ms)^    """.*?"""$', "", path.read_text())  # verbatim C
        for block in re.findall(r"^cdef extern from.*\n((?:[ \t]+.*\n|\n)*)", text, flags=re.MULTILINE):
            for name in re.findall(r"^    (?!ctypedef\b|enum\b)\w[\w *]*?[ *](\w+)\s*\(", block, flags=re.MULTILINE):
                found.setdefault(name, []).append(path.relative_to(package).as_posix())
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def misplaced_externs(package: Path) -> list[str]:
    """Return the files that declare C outside of the rooms for it, and those of these rooms that hold anything else."""
    found = []
    for name, path in sources(package):
        text = re.sub(r'(""")(?:.|\n)*?"""', '""', path.read_text())
        has_externs = re.search(r"^cdef extern\b", text, re.MULTILINE) is not None
        if room(short(name)) not in DECLARATIONS:
            found += [path.relative_to(package).as_posix()] * has_externs
        elif re.search(r"^(?!cdef extern\b|from\b|cimport\b|\"\"|#|\s|$)", text, re.MULTILINE):
            found.append(path.relative_to(package).as_posix())
    return found


def deeper(folder: Path) -> list[str]:
    """Return the imports of a folder's programs that go past rtloop's front doors."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".py", ".pyx", ".pxd"}:
            text = path.read_text()
            for door in ("rtloop.memory", "rtloop.guard", "rtloop.numba", "rtloop.pytest", "rtloop.zenoh", "rtloop"):
                text = re.sub(rf"\b{door}(?=\s+c?import\b|\s*$|\s+as\b)", "door", text, flags=re.MULTILINE)
            names = {name.target for name in imported(text) if name.target.startswith("rtloop.")}
            past = (name for name in names if name.count(".") > 1 or re.search(rf"import\s+{name}\b", text))
            found += [f"{path.name}: {name}" for name in sorted(past)]
    return found


def test_every_room_has_its_place_in_the_order():
    rooms = {name.split(".")[1] for name, _ in sources(PACKAGE)} - {"__init__"}
    assert rooms == set(ROOMS) - {""}, "a new module or folder gets its place in ROOMS"


def test_imports_go_down_only():
    assert len(edges(PACKAGE)) > 300, "the scanner reads nothing"
    assert upward(PACKAGE) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circles(PACKAGE) == []


def test_every_exception_is_still_needed():
    assert set(EXCEPTIONS) <= edges(PACKAGE)


def test_the_drawing_in_contributing_is_that_of_the_code():
    drawing = load(ROOT / "docs" / "draw_house.py")
    how = "the house has changed: python docs/draw_house.py"
    assert drawing.as_text() in (ROOT / "CONTRIBUTING.md").read_text(), how
    assert drawing.as_svg() == drawing.IMAGE.read_text(), how


def test_no_folder_is_crowded():
    assert crowded(PACKAGE) == {}


def test_no_thread_sleeps_by_a_call_that_a_filter_may_forbid():
    """time.sleep calls clock_nanosleep; only the plain loop of the demo, which is measured, uses it."""
    calls = re.compile(r"\btime\.sleep\(|\bfrom time import .*\bsleep\b")
    found = [
        f"{path.relative_to(PACKAGE)}:{number}"
        for _, path in house.sources(PACKAGE)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if calls.search(line)
    ]
    assert [place.rpartition(":")[0] for place in found] == ["demo/plain.py"] + 2 * ["machine/latency/load.py"], found


def test_no_line_is_too_long():
    assert too_wide(PACKAGE) == []


def test_every_public_name_is_where_the_front_door_says():
    assert [name for name in rtloop.__all__ if not hasattr(rtloop, name)] == []


def test_no_c_function_is_declared_twice():
    assert declared_twice(PACKAGE) == {}


def test_c_is_declared_in_its_own_rooms_only():
    assert misplaced_externs(PACKAGE) == []


@pytest.mark.parametrize("folder", ["examples", "tests/downstream"])
def test_nobody_outside_goes_past_the_front_doors(folder):
    assert deeper(ROOT / folder) == []


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
    "cimport": ("memory/kernel.pyx", "from rtloop.loop.loop cimport RTLoop", "memory.kernel -> loop.loop"),
    "pxd": ("memory/kernel.pxd", "from rtloop.loop cimport loop", "memory.kernel -> loop.loop"),
    "front door": ("loop/loop.pyx", "from rtloop cimport Cycle", "loop.loop -> rtloop"),
    "late": ("loop/loop.pyx", "def f():\n    import numpy, rtloop.tools.cli as cli", "loop.loop -> tools.cli"),
    "many lines": ("loop/loop.py", "from rtloop.tools import (  # noqa\n    cli,\n)", "loop.loop -> tools.cli"),
    "relative": ("data/ring.py", "from ..loop import loop", "data.ring -> loop.loop"),
    "neighbour": ("memory/kernel.py", "from rtloop.data import ring", "memory.kernel -> data.ring"),
    "ground": ("errors.py", "import rtloop.units", "errors -> units"),
    "top": ("demo/plant.py", "from rtloop.tools import cli", "demo.plant -> tools.cli"),
    "init": ("__init__.py", "from rtloop.tools.cli import main", "rtloop -> tools.cli"),
    "for type checkers": ("data/ring.py", "if TYPE_CHECKING:\n    import rtloop.tools.cli", "data.ring -> tools.cli"),
}


@pytest.fixture
def package(tmp_path):
    """A package with a module in some rooms, and nothing wrong with it."""
    files = ["loop/loop.pyx", "tools/cli.py", "system/cpu.py", "memory/kernel.py", "data/ring.py", "demo/plant.py"]
    files += ["units.py", "errors.py", "__init__.py", "__init__.pxd", "loop/__init__.py", "data/__init__.py"]
    for name in files:
        path = tmp_path / "rtloop" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path / "rtloop"


def plant(package: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text + "\n")


@pytest.mark.parametrize(("name", "text", "edge"), PLANTED.values(), ids=PLANTED)
def test_a_planted_upward_import_is_found(package, name, text, edge):
    plant(package, {name: text})
    assert upward(package) == [edge]


def test_downward_imports_and_mentions_pass(package):
    (package / "tools/cli.py").write_text("import rtloop\nfrom rtloop.demo import plant\nfrom rtloop import loop\n")
    (package / "loop/loop.pyx").write_text('"""\nimport rtloop\n"""\nfrom rtloop.data cimport ring  # import rtloop\n')
    (package / "data/ring.py").write_text("from rtloop.memory.kernel import lock\nimport numpy as np\n")
    (package / "units.py").write_text("from rtloop.errors import ConfigError\n")
    assert len(edges(package)) == 6
    assert upward(package) == []
    assert circles(package) == []


CIRCLES = {
    "of two": {
        "loop/a.py": "from rtloop.loop import b",
        "loop/b.py": "def f():\n    from rtloop.loop.a import x",
    },
    "with a cimport": {
        "loop/a.pyx": "from rtloop.loop.b cimport B",
        "loop/a.pxd": "from rtloop.loop.b cimport B",
        "loop/b.pxd": "from rtloop.loop.a cimport A",
    },
    "as the one that was": {
        "loop/lifecycle.pyx": "from rtloop.guard import setup",
        "guard/setup.py": "def acquire():\n    from rtloop.loop.guarded_body import body_address",
        "loop/guarded_body.pyx": "from rtloop.loop.loop cimport _RTLoop_1",
        "loop/guarded_body.pxd": "",
        "loop/loop.pxd": "from rtloop.loop.lifecycle cimport Control",
        "loop/lifecycle.pxd": "from rtloop.loop import lifecycle",
    },
}


@pytest.mark.parametrize("files", CIRCLES.values(), ids=CIRCLES)
def test_a_planted_circle_is_found(package, files):
    plant(package, files)
    assert len(circles(package)) == 1


def test_declarations_that_their_implementation_cimports_are_no_circle(package):
    files = {"loop/loop.pyx": "from rtloop.loop.callbacks cimport call_step", "loop/loop.pxd": ""}
    plant(package, {**files, "loop/callbacks.pxd": "from rtloop.loop.loop cimport Cycle"})
    assert circles(package) == []


def test_a_function_that_is_declared_twice_is_found(package):
    (package / "one.pyx").write_text('cdef extern from "a.h" nogil:\n    int load(const int *p)\n')
    assert declared_twice(package) == {}
    (package / "two.pxd").write_text('cdef extern from *:\n    """\n    int x;\n    """\n    int load(int *p) nogil\n')
    assert declared_twice(package) == {"load": ["one.pyx", "two.pxd"]}


BLOCK = 'cdef extern from "ring.h" nogil:\n    """\n    #define RT_X\n    """\n    int rt_ring_pop(void *ring)\n'
MISPLACED = {
    "a block in a module": {"data/ring.pyx": BLOCK},
    "a block beside a class": {"data/ring.pxd": f"cdef class Ring:\n    pass\n\n\n{BLOCK}"},
    "a class among declarations": {"headers/ring.pxd": f"{BLOCK}\n\ncdef class Ring:\n    pass"},
    "a function among declarations": {"_os.pxd": f"{BLOCK}\n\ncdef inline int f():\n    return x"},
}


@pytest.mark.parametrize("files", MISPLACED.values(), ids=MISPLACED)
def test_a_misplaced_extern_is_found(package, files):
    plant(package, {"headers/pool.pxd": f'"""Pool."""\n\nfrom libc.stdint cimport int64_t\n\n\n{BLOCK}  # pop'})
    assert misplaced_externs(package) == []
    plant(package, files)
    assert misplaced_externs(package) == list(files)


def test_a_crowded_folder_and_a_long_line_are_found(package):
    plant(package, {f"data/m{i}.py": "" for i in range(MAX_MODULES)})
    assert crowded(package) == {"data": MAX_MODULES + 1}
    plant(package, {"data/ring.pyx": "x = 1" + " " * 120 + "# far"})
    assert too_wide(package) == ["data/ring.pyx:1"]


@pytest.mark.parametrize(
    "text", ["from rtloop.loop.loop cimport RTLoop", "import rtloop.memory.kernel", "import rtloop.data.ring as ring"]
)
def test_a_planted_deep_import_is_found(tmp_path, text):
    doors = (
        "import rtloop\nimport rtloop.memory\nfrom rtloop.memory import lock_all\nfrom rtloop cimport RTLoop, Cycle\n"
    )
    (tmp_path / "run.pyx").write_text(f"{doors}from rtloop import memory\nfrom rtloop.memory cimport lock\n{text}\n")
    assert len(deeper(tmp_path)) == 1

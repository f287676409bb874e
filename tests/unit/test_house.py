"""Rules of the house: imports go down, no circles, small folders, compiled modules in triples, each listed once."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections import Counter
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
#: No line of the package is longer, in whatever language.
MAX_COLUMNS = 120
TRIPLE = (".pyx", ".pxd", ".pyi")
WRITTEN = {".py", ".pyx", ".pxd", ".pyi", ".c", ".h", ".js", ".css", ".html", ".build"}
#: Files that meson.build does not list to install: itself, and those that it compiles.
NOT_LISTED = {"meson.build", "guard/guard_malloc.c"}


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

    A ``.pxd`` is a node of its own, as a header is in C: declarations may be cimported by what implements them. But a
    compiled module that cimports, itself or through declarations, imports the modules of their types when it begins.
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
            place = package.joinpath(*to.split("."))
            has_pxd = place.with_suffix(".pxd").exists() or (place / "__init__.pxd").exists()
            other = f"{to or 'rtloop'}.pxd" if is_cimport and has_pxd else to or "rtloop"
            if other != node:
                graph[node].add(other)
    compiled = {short(name) for name, path in sources(package) if path.suffix == ".pyx"}
    for node in compiled:
        graph[node] |= _started(graph, node, compiled)
    reach = {node: _reachable(graph, node) for node in graph}
    found = {tuple(sorted(m for m in reach[node] if node in reach.get(m, ()))) for node in graph if node in reach[node]}
    return [list(circle) for circle in sorted(found)]


def _started(graph: dict[str, set[str]], module: str, compiled: set[str]) -> set[str]:
    """Return the compiled modules whose declarations a module sees; those without a module are looked through."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        for node in graph.get(todo.pop(), set()) - seen:
            if node.endswith(".pxd"):
                seen.add(node)
                if node == f"{module}.pxd" or node.removesuffix(".pxd") not in compiled:
                    todo.append(node)
    return {node.removesuffix(".pxd") for node in seen} & compiled - {module}


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
        if path.suffix in WRITTEN
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > MAX_COLUMNS
    ]


def without_reason(exceptions: dict[tuple[str, str], str]) -> list[str]:
    """Return the exceptions that do not say why: in a sentence, not in a word."""
    return [f"{a or 'rtloop'} -> {b or 'rtloop'}" for (a, b), reason in exceptions.items() if len(reason.split()) < 5]


def passed_on(package: Path) -> list[str]:
    """Return the names that are imported from a module which has them from another one; front doors may pass on."""
    texts: dict[str, list[str]] = {}
    for name, path in sources(package):
        if path.suffix != ".pyi":
            texts.setdefault(short(name), []).append(path.read_text())
    found = set()
    for name, path in sources(package):
        for target, _ in imported(path.read_text(), name):
            to = resolve(target, package)
            word = target.removeprefix(f"rtloop.{to}.")
            if to and to != short(name) and word != target and not (package / to.replace(".", "/")).is_dir():
                made = rf"^(?:(?:async |cp?)?def|class|cdef class|ctypedef|cdef struct)\b.*\b{word}\b|^{word}\b *[:=]"
                if not any(re.search(made, text, re.MULTILINE) for text in texts[to]) and any(
                    one.target.endswith(f".{word}") for text in texts[to] for one in imported(text)
                ):
                    found.add(f"{short(name)}: {word} through {to}")
    return sorted(found)


def listed_otherwise(package: Path) -> list[str]:
    """Return the files that meson.build lists twice, that it lists and are not there, and that it does not list."""
    text = re.sub(r"#.*", "", (package / "meson.build").read_text())
    extensions, others = (
        ast.literal_eval(re.search(rf"^{name} = (\{{.*?^\}})", text, re.DOTALL | re.MULTILINE)[1])  # type: ignore[index]
        for name in ("extensions", "sources")
    )
    listed = Counter(
        [f"{folder}/{name}{suffix}" for folder, names in extensions.items() for name in names for suffix in TRIPLE]
        + [f"{folder}/{name}".lstrip("/") for folder, names in others.items() for name in names]
    )
    there = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    there = {name for name in there if "__pycache__" not in name} - NOT_LISTED
    return sorted(
        [f"{name}: listed {times} times" for name, times in listed.items() if times > 1]
        + [f"{name}: listed, and not there" for name in listed.keys() - there]
        + [f"{name}: not listed" for name in there - listed.keys()]
    )


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
        has_externs = (
            re.search(r"^[ \t]*c(?:type)?def[ \t]+extern\b|^[ \t]*include[ \t]+[\"']", text, re.MULTILINE) is not None
        )
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


def test_every_exception_is_still_needed_and_says_why():
    assert set(EXCEPTIONS) <= edges(PACKAGE)
    assert without_reason(EXCEPTIONS) == []


def test_a_name_is_imported_from_where_it_is_made():
    assert passed_on(PACKAGE) == []


def test_every_file_is_listed_once_to_be_installed():
    assert listed_otherwise(PACKAGE) == []


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


def test_no_c_function_is_pasted_into_modules_that_may_not_call_it():
    """Each module that cimports from a .pxd gets its C, and clang warns of a static function that is unused there."""
    texts = {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in PACKAGE.rglob("*.pxd")}
    assert len(texts) > 50
    assert [name for name, text in texts.items() if re.search(r"^\s*static\b", text, re.MULTILINE)] == []


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
    "in one line": ("data/ring.pyx", "if is_late: from rtloop.tools import cli", "data.ring -> tools.cli"),
    "after another": ("data/ring.pyx", "import os; import rtloop.tools.cli", "data.ring -> tools.cli"),
    "by a string": ("data/ring.py", 'x = import_module("rtloop.tools.cli")', "data.ring -> tools.cli"),
    "between quotes in comments": ("data/ring.py", '# """\nimport rtloop.tools.cli\n# """', "data.ring -> tools.cli"),
    "after a # in a string": ("data/ring.py", 'x = "#"; import rtloop.tools.cli', "data.ring -> tools.cli"),
    "continued": ("data/ring.py", "from rtloop.tools \\\n    import cli", "data.ring -> tools.cli"),
    "stub": ("data/ring.pyi", "from rtloop.tools.cli import main", "data.ring -> tools.cli"),
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
    "for type checkers": {
        "loop/a.py": "if TYPE_CHECKING:\n    from rtloop.loop.b import B",
        "loop/b.py": "from rtloop.loop import a",
    },
    "of types that are needed at the start": {
        "loop/a.pyx": "from rtloop.loop.b cimport B",
        "loop/b.pyx": "from rtloop.loop.a cimport A",
        "loop/a.pxd": "",
        "loop/b.pxd": "",
    },
    "of a type among the declarations": {
        "loop/a.pyx": "",
        "loop/a.pxd": "from rtloop.loop.c cimport C",
        "loop/c.pxd": "from rtloop.loop.b cimport B",
        "loop/b.pxd": "",
        "loop/b.pyx": "from rtloop.loop import a",
    },
    "through a front door for Cython": {
        "loop/__init__.pxd": "from rtloop.loop.a cimport f",
        "loop/a.pxd": "from rtloop.loop cimport f",
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
    (circle,) = circles(package)
    assert {name.removesuffix(".pxd") for name in circle} & {"loop.a", "loop.lifecycle"}


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
    "a block in a condition": {"data/ring.pyx": "if True:\n    cdef  extern int rt_ring_pop(void *ring)"},
    "a text from elsewhere": {"data/ring.pyx": 'include "ring_externs.pxi"'},
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


def test_an_exception_without_a_reason_is_found():
    rows = {
        ("loop.a", "tools.b"): "",
        ("", "tools.c"): "needed",
        ("data.d", "loop.e"): "a method that imports when called",
    }
    assert without_reason(rows) == ["loop.a -> tools.b", "rtloop -> tools.c"]


def test_a_name_that_is_passed_on_is_found(package):
    plant(
        package,
        {"units.py": "LIMIT: int = 3\n\n\ndef parse():\n    pass", "system/cpu.py": "from rtloop.units import parse"},
    )
    plant(package, {"data/ring.pyx": "from rtloop.units import LIMIT, parse\nfrom rtloop.loop import loop"})
    assert passed_on(package) == []
    plant(package, {"data/ring.pyx": "from rtloop.system.cpu import parse\nfrom rtloop.units import LIMIT"})
    assert passed_on(package) == ["data.ring: parse through system.cpu"]


MESON = """# What's compiled.
extensions = {{
  'data': ['ring'],  # a triple
  {extension}
}}

sources = {{
  '': [
    '__init__.py',
  ],
  'data': [{source}],
}}
"""


def test_a_file_that_is_listed_twice_or_not_at_all_is_found(tmp_path):
    plant(tmp_path, {"__init__.py": "", "data/x.py": "", "guard/guard_malloc.c": "", "loop/a.pyx": ""})
    plant(tmp_path, {f"{folder}{suffix}": "" for folder in ("data/ring", "loop/a") for suffix in TRIPLE})
    right, once = "'loop': ['a'],", "'x.py'"
    for extension, source, wrong in (
        (right, once, []),
        (right, f"{once}, {once}", ["data/x.py: listed 2 times"]),
        (right, f"{once}, 'ring.pyi'", ["data/ring.pyi: listed 2 times"]),
        ("'loop': ['a', 'a'],", once, [f"loop/a{suffix}: listed 2 times" for suffix in sorted(TRIPLE)]),
        (right, f"{once}, 'y.py'", ["data/y.py: listed, and not there"]),
        ("", once, [f"loop/a{suffix}: not listed" for suffix in sorted(TRIPLE)]),
    ):
        (tmp_path / "meson.build").write_text(MESON.format(extension=extension, source=source))
        assert listed_otherwise(tmp_path) == wrong


@pytest.mark.parametrize(
    "text", ["from rtloop.loop.loop cimport RTLoop", "import rtloop.memory.kernel", "import rtloop.data.ring as ring"]
)
def test_a_planted_deep_import_is_found(tmp_path, text):
    doors = (
        "import rtloop\nimport rtloop.memory\nfrom rtloop.memory import lock_all\nfrom rtloop cimport RTLoop, Cycle\n"
    )
    (tmp_path / "run.pyx").write_text(f"{doors}from rtloop import memory\nfrom rtloop.memory cimport lock\n{text}\n")
    assert len(deeper(tmp_path)) == 1

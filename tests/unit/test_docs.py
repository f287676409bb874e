"""The documentation names every command, public name and exception, and its links have targets."""

from __future__ import annotations

import builtins
import importlib.util
import re
from pathlib import Path, PurePath
from types import ModuleType

import pytest

import rtloop
from rtloop.system.fixes import device_fix, limit_fix
from rtloop.system.grant import Grant, describe_refused
from rtloop.tools.cli import COMMANDS
from rtloop.tools.new.command import FILES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PACKAGE = Path(rtloop.__file__).parent
REFERENCE = "".join(path.read_text() for path in sorted((DOCS / "reference").glob("*.md")))
PAGES = [
    *(path for path in sorted(DOCS.rglob("*.md")) if path.parent != DOCS / "examples"),  # those are made of the READMEs
    *sorted((ROOT / "examples").glob("*/README.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
]
METHOD = re.compile(r"^    cdef [^#\n]*?\b([a-z]\w*)\(self\b", re.MULTILINE)  # without those that are reserved
LINK = re.compile(r"\]\(([^)\s]+)\)")


def load(path: Path) -> ModuleType:
    """Import a script of the docs."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_into_the_repository_lead_to_files(page: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(page.read_text())]
    inner = [target for target in targets if target and "://" not in target]
    # The examples have a page each, which is made when the pages are built.
    missing = [t for t in inner if not (page.parent / t).exists() and "examples" not in Path(t).parts[:1]]
    assert not missing


def test_every_page_of_the_docs_is_in_a_table_of_contents() -> None:
    listed = {DOCS / "index.md"}
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {page.parent / f"{name}.md" for name in names}
    pages = {page for page in DOCS.rglob("*.md") if page.parent != DOCS / "examples"}
    assert not {page.relative_to(DOCS).as_posix() for page in pages - listed}, "name it in the index.md of its folder"


def test_the_reference_has_every_command() -> None:
    page = (DOCS / "reference" / "command-line.md").read_text()
    assert sorted(re.findall(r"^```\{command-help\} (\S+)$", page, re.MULTILINE)) == sorted(COMMANDS)


def test_the_reference_has_every_public_name() -> None:
    described = set(re.findall(r"^\.\. (?:auto\w+|py:\w+):: (\S+)$", REFERENCE, re.MULTILINE))
    described = {name.removeprefix("rtloop.") for name in described}
    assert set(rtloop.__all__) <= described


def test_the_cython_reference_shows_and_describes_every_method() -> None:
    page = (DOCS / "reference" / "cython.md").read_text()
    blocks = re.findall(r"literalinclude\} (\S+\.pxd)\n:language: cython\n:start-at: (.+)\n:end-before: (.+)\n", page)
    assert len(blocks) == 6
    for file, first, last in blocks:
        source = (PACKAGE / file.removeprefix("../../rtloop/")).read_text()
        shown = source[source.index(first.strip('"')) :].partition(last)[0]
        public = METHOD.findall(re.split(r"_reserved_\w+\(self", source)[0])
        assert METHOD.findall(shown) == public, f"the page has to show the methods of {file}"
        described = set(re.findall(r"`(\w+)\(", page))
        assert set(METHOD.findall(source)) <= described


def test_the_cython_reference_has_the_functions_of_memory_by_their_public_names() -> None:
    page = (DOCS / "reference" / "cython.md").read_text()
    kernel = (PACKAGE / "memory" / "kernel.pxd").read_text()
    declared = dict(re.findall(r"^cdef int (\w+)(\(.*\)) noexcept nogil$", kernel, re.MULTILINE))
    exported = re.findall(r"cimport (\w+) as (\w+)", (PACKAGE / "memory" / "__init__.pxd").read_text())
    assert {inner for inner, _ in exported} == set(declared)
    assert all(f"\nint {name}{declared[inner]}\n" in page for inner, name in exported)


def test_the_table_of_exceptions_is_right() -> None:
    page = (DOCS / "reference" / "exceptions.md").read_text()
    rows = re.findall(r"^\| \{class\}`~rtloop\.(\w+)` \| `(\w+)` \|", page, re.MULTILINE)
    for name, builtin in rows:
        assert issubclass(getattr(rtloop, name), getattr(builtins, builtin)), name
    raised = {name for name in rtloop.__all__ if name.endswith("Error")}
    assert {name for name, _ in rows} == raised - {"RtloopError"}


def test_the_guide_to_ci_lints_as_the_workflow_of_a_new_project_does() -> None:
    template = PACKAGE / "tools" / "new" / "template" / "workflow.yml.in"
    lints = [
        [line.strip() for line in path.read_text().splitlines() if line.strip().startswith("- run: rtloop lint")]
        for path in (DOCS / "how-to" / "test-in-ci.md", template)
    ]
    assert len(lints[0]) == 1 and lints[0] == lints[1]
    pattern = lints[0][0].split()[-1]
    sources = [file.replace("@NAME@", "arm") for file in FILES.values() if file.endswith(".pyx")]
    assert sources and all(PurePath(file).match(pattern) for file in sources)


def test_the_advice_in_the_outputs_of_the_lessons_is_what_the_program_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures differ from run to run, but its texts do not."""
    monkeypatch.setattr("getpass.getuser", lambda: "newcomer")
    fixes = {
        "memory_lock": limit_fix("RLIMIT_MEMLOCK"),
        "dma_latency": device_fix("/dev/cpu_dma_latency"),
        "policy": limit_fix("RLIMIT_RTPRIO", 95),
    }
    grants = [Grant(name, "", "", ok=False, fix=fix) for name, fix in fixes.items()]
    _, first, advice = describe_refused(*grants).partition("How to fix")
    shown = (DOCS / "outputs" / "first-loop-plain.txt").read_text()
    lines = shown[shown.index(first) : shown.index("More about this machine")].splitlines()
    assert [line for line in lines if not line.startswith("  or ")] == (first + advice).splitlines()


def test_the_memory_in_the_outputs_of_the_lessons_is_what_a_loop_takes() -> None:
    loop = rtloop.PyLoop(lambda _: None, "1kHz", policy="other", lock_memory="off", dma_latency=None)
    loop.run(cycles=3)
    granted = {grant.name: str(grant.granted).partition(",")[0] for grant in loop.grants}
    shown = "".join(path.read_text() for path in (DOCS / "outputs").glob("*.txt"))
    assert set(re.findall(r"telemetry ([\d.]+ \wiB)", shown)) == {granted["telemetry"]}


def test_a_link_without_an_answer_is_neither_right_nor_wrong() -> None:
    judge = load(DOCS / "linkcheck.py").judge
    line = {"filename": "a.md", "lineno": 7}
    works, wrong, unknown = judge(
        [
            {**line, "uri": "https://a", "status": "working", "info": ""},
            {**line, "uri": "https://b", "status": "broken", "info": "404 Client Error: Not Found for url: https://b"},
            {**line, "uri": "https://c#d", "status": "broken", "info": "Anchor 'd' not found"},
            {**line, "uri": "https://e", "status": "broken", "info": "NameResolutionError: no address"},
            {**line, "uri": "https://f", "status": "timeout", "info": "Read timed out"},
            {**line, "uri": "https://g", "status": "broken", "info": "403 Client Error: Forbidden for url: https://g"},
            {**line, "uri": "x.md", "status": "local", "info": ""},
        ]
    )
    assert [len(works), len(wrong), len(unknown)] == [1, 2, 3]
    assert all("a.md:7" in where for where in works + wrong + unknown)


def test_the_drawings_of_overruns_are_what_the_policies_do() -> None:
    script = load(DOCS / "draw_overruns.py")
    lines = {policy: script.time_line(policy) for policy in script.POLICIES}
    assert lines["skip"].release[:4] == [0, 10, 20, 50]
    assert lines["skip"].missed == [30, 40]
    assert lines["catch-up"].release[:6] == [0, 10, 20, 30, 40, 50]
    assert lines["catch-up"].start[3:6] == [47, 51, 55]
    assert lines["shift"].release[2:5] == [20, 47, 57]
    assert lines["stop"].end == [4, 14, 47]
    assert lines["stop"].error == "OverrunError"
    assert {path.stem for path in (DOCS / "images").glob("overrun-*.svg")} == {f"overrun-{policy}" for policy in lines}


def test_the_drawing_of_a_schedule_has_an_overrun_and_what_it_made_miss() -> None:
    stats = load(DOCS / "draw_schedule.py").simulated().stats
    assert (stats["fast"].overruns, stats["fast"].missed) == (1, 3), "as its caption says"
    assert (stats["slow"].overruns, stats["slow"].missed) == (0, 0)
    assert (DOCS / "images" / "schedule-overrun.svg").exists()

"""Saved files, however an editor saves them; and casts of a former build's objects, allowed while its structs agree."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("click", reason="the command line needs rtloop[cli]")

from rtloop.layouts import find_disagreement, find_take_overs, read_layouts, select_casts
from rtloop.tools.run import saved_files
from rtloop.tools.run.saved_files import SavedFiles


@pytest.fixture
def law(tmp_path: Path) -> Path:
    path = tmp_path / "law.pyx"
    path.write_text("one")
    return path


def polled(files: SavedFiles) -> float | None:
    """Poll twice: a change counts once it has settled."""
    return files.poll() or files.poll()


def test_a_save_counts_once_it_has_settled(law: Path) -> None:
    files = SavedFiles(law)
    assert polled(files) is None
    began = time.time()
    law.write_text("half of it, ")
    assert files.poll() is None
    law.write_text("half of it, and all of it")
    assert files.poll() is None, "it has changed since the last poll"
    assert files.interval_s < SavedFiles(law).interval_s
    saved = files.poll()
    assert saved is not None and began - 1 < saved <= time.time()
    assert polled(files) is None


def test_the_same_content_is_no_save(law: Path) -> None:
    files = SavedFiles(law)
    law.write_text("one")
    os.utime(law, ns=(1, 1))
    assert polled(files) is None
    files.forget()
    law.touch()
    assert polled(files) is not None, "after a failure the next save tries again"


def test_a_file_that_replaces_the_former_is_a_save(law: Path, tmp_path: Path) -> None:
    files = SavedFiles(law)
    other = tmp_path / ".law.pyx.swp"
    other.write_text("two")
    os.utime(other, ns=(law.stat().st_mtime_ns,) * 2)
    other.replace(law)
    assert polled(files) is not None


def test_a_file_that_disappears_is_told_once_and_may_come_back(law: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SavedFiles(law)
    law.unlink()
    assert polled(files) is None and not files.is_newly_gone(), "an editor may be about to write it"
    monkeypatch.setattr(saved_files, "_GONE_S", 0.0)
    assert polled(files) is None and files.is_newly_gone() and not files.is_newly_gone()
    law.write_text("")
    assert polled(files) is None and not files.is_newly_gone(), "and so it does"
    law.write_text("two")
    assert polled(files) is not None
    law.unlink()
    assert polled(files) is None and files.is_newly_gone()
    law.write_text("two")
    assert polled(files) is None, "it is what it was"


def test_what_is_saved_meanwhile_supersedes(law: Path) -> None:
    files = SavedFiles(law)
    law.write_text("two")
    assert polled(files) is not None and not files.is_superseded()
    law.touch()
    assert not files.is_superseded(), "with the same content"
    law.write_text("three")
    assert files.is_superseded()
    law.write_text("two")
    assert polled(files) is not None, "what was made of it has been thrown away"


def test_declarations_beside_it_and_what_it_was_built_from_count_as_well(law: Path, tmp_path: Path) -> None:
    files = SavedFiles(law)
    (tmp_path / "plant.pxd").write_text("cdef int one")
    assert polled(files) is not None
    (tmp_path / "notes.txt").write_text("no part of it")
    assert polled(files) is None
    header = tmp_path / "below" / "gain.h"
    header.parent.mkdir()
    header.write_text("#define GAIN 1")
    files.follow([str(header)])
    assert polled(files) is None
    header.write_text("#define GAIN 2")
    assert polled(files) is not None


C = """
struct __pyx_obj_3law_State {
  struct __pyx_obj_6rtloop_4loop_RTLoop __pyx_base;
  double integral;
  struct __pyx_t_3law_Filter filter;
};
/* "law.pyx":12
 * cdef class Law(State):
 */
struct __pyx_obj_3law_Law {
  struct __pyx_obj_3law_State __pyx_base;
  double gain;
};
struct __pyx_t_3law_Filter {
  double x;
};
struct __pyx_vtabstruct_3law_Law {
  int (*step)(int);
};
"""
LAW = """
cdef class Law(State):
    cdef int take_over(self, RTLoop {name}, const Cycle *cycle) noexcept nogil:
        self.integral = {read}
        return RT_CONTINUE
"""


@pytest.mark.parametrize(
    ("read", "changed", "reason"),
    [
        ("(<Law>old).integral", None, ""),
        ("(<Law>old).integral", ("double gain;", "double gain, more;"), "the fields of Law have changed"),
        ("(<State>old).integral", ("double gain;", "double gain, more;"), ""),
        ("(<State>old).integral", ("double x;", "float x;"), "the fields of State have changed"),
        ("( < law.Law > old).integral", ("double x;", "float x;"), "the fields of Law have changed"),
        ("0", ("double gain;", "double gain, more;"), ""),
        ("(<Other>old).integral", None, "reads the former step as a Other, but it is a Law"),
        ("(<Law>other).integral", ("double gain;", "double gain, more;"), ""),
    ],
)
def test_a_cast_of_the_former_step_is_refused_if_its_structs_differ(
    read: str, changed: tuple[str, str] | None, reason: str
) -> None:
    source = LAW.format(name="old", read=read)
    after = C.replace(*changed) if changed else C
    casts = select_casts(find_take_overs(source), ["Law"])
    line, found = find_disagreement(casts, ["Law", "State", "RTLoop"], read_layouts(C), read_layouts(after))
    assert reason in found and bool(found) == bool(reason)
    assert line == (4 if reason else 0)


def test_methods_may_be_added_at_the_end_unless_one_of_the_former_is_called() -> None:
    before = C.replace("  double gain;", "  struct __pyx_vtabstruct_3law_Law *__pyx_vtab;")
    later = before.replace("int (*step)(int);", "int (*step)(int);\n  int (*more)(int);")
    sooner = before.replace("int (*step)(int);", "int (*more)(int);\n  int (*step)(int);")
    read, call = (LAW.format(name="former", read=f"(<Law>former).{what}") for what in ("sum", "f()"))

    def reason(source: str, after: str) -> str:
        casts = select_casts(find_take_overs(source), ["Law"])
        return find_disagreement(casts, ["Law"], read_layouts(before), read_layouts(after))[1]

    assert reason(read, later) == reason(call, before) == ""
    assert "the methods of Law have changed" in reason(call, later)
    assert "the methods of Law have changed" in reason(read, sooner)

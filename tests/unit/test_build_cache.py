"""The cache of compiled modules: what is found again, and robustness against full disks, kills and other processes."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rtloop.compiler.build import build, build_module
from rtloop.compiler.cache import Cache, Entry, cache_folder
from rtloop.compiler.diagnostics import Diagnostic


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "servo.pyx"
    path.write_text("first")
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def compiled(tmp_path: Path, source: Path, text: str = "machine code") -> Entry:
    module = tmp_path / "servo.so"
    module.write_text(text)
    return Entry(module, (str(source),), (Diagnostic(str(source), 1, 1, "a hint"),))


def test_what_was_kept_is_found_with_its_hints(tmp_path: Path, cache: Cache, source: Path) -> None:
    assert cache.find("key") is None
    kept = cache.keep("key", compiled(tmp_path, source))
    assert kept.module.read_text() == "machine code"
    found = cache.find("key")
    assert found == kept
    assert found is not None and found.hints[0].text == "a hint"
    assert cache.find("other key") is None


def test_another_content_is_another_module_and_the_first_is_found_again(
    tmp_path: Path, cache: Cache, source: Path
) -> None:
    first = cache.keep("key", compiled(tmp_path, source, "one"))
    source.write_text("second")
    assert cache.find("key") is None
    second = cache.keep("key", compiled(tmp_path, source, "two"))
    assert first.module != second.module
    source.write_text("first")
    assert cache.find("key") == first


def test_an_input_that_is_gone_is_no_match(tmp_path: Path, cache: Cache, source: Path) -> None:
    cache.keep("key", compiled(tmp_path, source))
    source.unlink()
    assert cache.find("key") is None


@pytest.mark.parametrize("damage", ["", "machine", "machine codf"])
def test_a_damaged_module_is_not_loaded_and_is_replaced(
    tmp_path: Path, cache: Cache, source: Path, damage: str
) -> None:
    kept = cache.keep("key", compiled(tmp_path, source))
    kept.module.write_text(damage)
    assert cache.find("key") is None
    assert cache.keep("key", compiled(tmp_path, source)).module.read_text() == "machine code"
    assert cache.find("key") == kept


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"module": 3}', "\x00"])
def test_damaged_notes_are_no_match(tmp_path: Path, cache: Cache, source: Path, text: str) -> None:
    kept = cache.keep("key", compiled(tmp_path, source))
    for name in (kept.module.parent / "about.json", kept.module.parents[1] / "inputs.json"):
        whole = name.read_text()
        name.write_text(text)
        assert cache.find("key") is None
        name.write_text(whole)
    assert cache.find("key") == kept


def test_who_comes_second_leaves_what_the_first_has_put_there(tmp_path: Path, cache: Cache, source: Path) -> None:
    first = cache.keep("key", compiled(tmp_path, source, "one"))
    inode = first.module.stat().st_ino
    second = cache.keep("key", compiled(tmp_path, source, "two"))
    assert second.module.stat().st_ino == inode, "it may be about to be loaded"
    assert second.module.read_text() == "one"


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, cache: Cache, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        Path(target).write_text("mach")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy", full)
        with pytest.raises(OSError, match="No space"):
            cache.keep("key", compiled(tmp_path, source))
    assert cache.find("key") is None
    assert not list(tmp_path.glob("cache/build/tmp-*"))
    assert not list(tmp_path.glob("cache/**/*.so"))


def test_what_was_changed_while_it_was_compiled_is_not_found_again(tmp_path: Path, cache: Cache, source: Path) -> None:
    kept = cache.keep("key", compiled(tmp_path, source), is_found_again=False)
    assert kept.module.exists()
    assert cache.find("key") is None


def test_rests_of_killed_builds_and_what_nobody_uses_are_removed(tmp_path: Path, cache: Cache, source: Path) -> None:
    old = cache.keep("old", compiled(tmp_path, source))
    used = cache.keep("used", compiled(tmp_path, source))
    rest, young = tmp_path / "cache/build/tmp-killed", tmp_path / "cache/build/tmp-running"
    for folder in (rest, young):
        folder.mkdir()
        (folder / "servo.so").write_text("mach")
    long_ago = time.time() - 100 * 86400
    for path in (old.module.parent, used.module.parent, rest):
        os.utime(path, (long_ago, long_ago))
    assert cache.find("used") == used, "which is a use"
    cache.keep("new", compiled(tmp_path, source))
    assert not rest.exists() and young.exists()
    assert cache.find("old") is None
    assert cache.find("used") == used


def test_what_is_not_found_again_is_removed_after_a_week(tmp_path: Path, cache: Cache, source: Path) -> None:
    old, last, found_again = (
        cache.keep("key", compiled(tmp_path, source), is_found_again=is_found_again)
        for is_found_again in (False, False, True)
    )
    for kept, days in ((old, 8), (last, 6), (found_again, 8)):
        then = time.time() - days * 86400
        os.utime(kept.module.parent, (then, then))
    cache.keep("new", compiled(tmp_path, source))
    assert [kept.module.exists() for kept in (old, last, found_again)] == [False, True, True]


def test_a_folder_that_others_write_to_is_not_trusted(tmp_path: Path, cache: Cache, source: Path) -> None:
    cache.keep("key", compiled(tmp_path, source))
    (tmp_path / "cache/build").chmod(0o777)
    assert cache.find("key") is None
    with pytest.raises(PermissionError, match=r"every user may write to .*/cache/build$"):
        cache.keep("key", compiled(tmp_path, source))


@pytest.mark.parametrize(
    ("folder", "mode"), [("", 0o777), ("cache", 0o777), ("cache/build", 0o777), ("cache/build", 0o1777)]
)
def test_a_folder_in_which_others_could_put_another_is_not_trusted(
    tmp_path: Path, source: Path, folder: str, mode: int
) -> None:
    place = tmp_path / "place"
    cache = Cache(place / "cache")
    cache.keep("key", compiled(tmp_path, source))
    (place / folder).chmod(mode)
    assert cache.find("key") is None
    with pytest.raises(PermissionError, match=f"every user may write to {place / folder}$"):
        cache.keep("key", compiled(tmp_path, source))


@pytest.mark.parametrize("folder", ["", "cache"])
def test_in_a_sticky_folder_nobody_can_replace_ours(tmp_path: Path, source: Path, folder: str) -> None:
    place = tmp_path / "place"
    cache = Cache(place / "cache")
    (place / folder).mkdir(parents=True)
    (place / folder).chmod(0o1777)
    cache.keep("key", compiled(tmp_path, source))
    assert cache.find("key") is not None


def test_nothing_is_made_in_a_folder_that_others_write_to(tmp_path: Path, source: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for cache in (Cache(tmp_path / "open"), Cache(tmp_path / "open/new")):
        with pytest.raises(PermissionError, match=f"every user may write to {tmp_path / 'open'}$"):
            cache.keep("key", compiled(tmp_path, source))
    assert list((tmp_path / "open").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize("folder", ["cache", "cache/build"])
def test_the_reason_names_the_folder_that_belongs_to_another_user(
    tmp_path: Path, cache: Cache, source: Path, folder: str
) -> None:
    cache.keep("key", compiled(tmp_path, source))
    os.chown(tmp_path / folder, 65534, 65534)
    assert cache.why_distrusted() == f"{tmp_path / folder} belongs to user 65534"
    assert cache.find("key") is None


def test_a_link_to_a_folder_that_others_write_to_is_not_trusted(tmp_path: Path, cache: Cache, source: Path) -> None:
    cache.keep("key", compiled(tmp_path, source))
    (tmp_path / "link").symlink_to("cache")
    linked = Cache(tmp_path / "link")
    assert linked.find("key") is not None
    (tmp_path / "cache").chmod(0o777)
    assert linked.find("key") is None


def test_a_new_folder_is_its_owner_s_alone(tmp_path: Path, cache: Cache, source: Path) -> None:
    cache.keep("key", compiled(tmp_path, source))
    assert (tmp_path / "cache/build").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [
        ("/a", {"RTLOOP_CACHE_DIR": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        (None, {"RTLOOP_CACHE_DIR": "/b", "XDG_CACHE_HOME": "/c"}, "/b"),
        (None, {"XDG_CACHE_HOME": "/c"}, "/c/rtloop"),
        (None, {"XDG_CACHE_HOME": "relative", "HOME": "/d"}, "/d/.cache/rtloop"),
        (None, {"HOME": "/d"}, "/d/.cache/rtloop"),
        ("~/a", {"HOME": "/d"}, "/d/a"),
        ("~no-such-user/a", {"HOME": "/d"}, f"{Path.cwd()}/~no-such-user/a"),
    ],
)
def test_where_the_cache_is(
    asked: str | None, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RTLOOP_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder(asked) == Path(expected)


def test_what_it_notes_is_text_that_anybody_can_read(tmp_path: Path, cache: Cache, source: Path) -> None:
    kept = cache.keep("key", compiled(tmp_path, source))
    assert json.loads((kept.module.parents[1] / "inputs.json").read_text()) == [str(source)]


def test_import_of_rtloop_brings_nothing_of_the_build(script: Callable[..., Any]) -> None:
    done = script(
        "import sys, rtloop\n"
        "assert not any(name.startswith('rtloop.tools') for name in sys.modules)\n"
        "assert callable(rtloop.build) and 'rtloop.compiler.build' in sys.modules\n"
        "assert 'Cython' not in sys.modules and 'setuptools' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_the_internal_build_takes_the_arguments_of_the_public_one_and_two_hooks() -> None:
    internal = dict(inspect.signature(build_module).parameters)
    assert {name: internal.pop(name).default for name in ("examine", "check")} == {"examine": None, "check": None}
    assert internal == inspect.signature(build).parameters

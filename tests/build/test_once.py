"""What tests share is made once, by threads and by processes, and a failure leaves nothing in the way."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SUPPORT))
    import once

    return once


def test_whoever_asks_meanwhile_waits_in_any_thread_or_process(tmp_path: Path) -> None:
    code = f"""
    import sys, threading, time
    from pathlib import Path
    sys.path.insert(0, {str(SUPPORT)!r})
    from once import make_once
    def make(folder):
        with open({str(tmp_path / "made")!r}, "a") as made:
            made.write("x")
        time.sleep(0.2)
        (folder / "whole").touch()
    def ask():
        said.append((make_once(Path({str(tmp_path / "folder")!r}), make) / "whole").exists())
    said = []
    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers: asker.start()
    for asker in askers: asker.join()
    print(*said)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with ThreadPoolExecutor() as pool:
        said = pool.map(lambda _: subprocess.run(command, capture_output=True, text=True, check=True).stdout, range(3))
    assert "".join(said).split() == ["True"] * 9
    assert (tmp_path / "made").read_text() == "x"


def test_what_was_begun_is_begun_anew(once: ModuleType, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("no compiler")

    for _ in range(2):
        with pytest.raises(ValueError, match="no compiler"):
            once.make_once(tmp_path / "folder", fail)
    folder = once.make_once(tmp_path / "folder", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_workers_of_a_run_have_one_folder(once: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    assert once.run_folder(tmp_path / "popen-gw1") == tmp_path
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    monkeypatch.delenv("RTLOOP_TEST_SHARED", raising=False)
    assert once.run_folder(tmp_path) == once.run_folder(tmp_path, is_shared=True) == tmp_path
    monkeypatch.setenv("RTLOOP_TEST_SHARED", str(tmp_path / "parts"))
    assert once.run_folder(tmp_path) == tmp_path
    assert once.run_folder(tmp_path, is_shared=True) == tmp_path / "parts"

"""From addresses to symbols: how a guard names the place of a violation."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rtloop.guard import symbols
from rtloop.guard.symbols import describe_memory, is_return_address, place_of
from rtloop.system import syscalls


def address_of(name: str) -> int:
    return ctypes.cast(getattr(ctypes.CDLL(None), name), ctypes.c_void_p).value or 0


def test_an_exported_function_has_its_name() -> None:
    place = place_of(address_of("qsort") + 1)
    assert place.symbol == "qsort" and "libc" in os.path.basename(place.module)


def test_what_lies_between_functions_has_no_name_but_its_place() -> None:
    buffer = ctypes.create_string_buffer(100)
    place = place_of(ctypes.addressof(buffer))
    assert place.symbol is None
    assert place_of(1).symbol is None and describe_memory(1) == "no mapping"


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        ("__pyx_f_5servo_5Servo_step", "servo.Servo.step"),
        ("__pyx_f_6rtloop_4demo_8cartpole_8CartPole_step", "rtloop.demo.cartpole.CartPole.step"),
        ("__pyx_f_5servo_help", "servo.help"),
        ("__pyx_f_5servo_5Servo_step.constprop.0", "servo.Servo.step"),
        ("__pyx_f_99x_step", "x_step"),
        ("write@@GLIBC_2.2.5", "write"),
        ("memcpy", "memcpy"),
    ],
)
def test_names_of_Cython_are_written_as_in_the_source(mangled: str, name: str) -> None:
    assert symbols._readable(mangled) == name


@pytest.mark.skipif(not ctypes.util.find_library("stdc++"), reason="this machine has no libstdc++")
def test_names_of_Cpp_are_written_as_in_the_source_once_its_library_is_loaded() -> None:
    code = "from rtloop.guard.symbols import _readable; print(_readable('_ZN7planner4Path4stepEdi'))"
    for loading, name in (
        ("", "_ZN7planner4Path4stepEdi"),
        ("import ctypes; ctypes.CDLL('libstdc++.so.6'); ", "planner::Path::step(double, int)"),
    ):
        done = subprocess.run([sys.executable, "-P", "-c", loading + code], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == name, done.stderr


def test_only_what_follows_a_call_is_a_return_address() -> None:
    calls = {
        "x86_64": [b"\0\0\0\xe8\x01\x02\x03\x04", b"\0\0\0\0\0\0\xff\xd0", b"\0\0\xff\x15\x01\x02\x03\x04"],
        "aarch64": [b"\0\0\0\0\x01\0\0\x94", b"\0\0\0\0\0\0\x3f\xd6"],
    }
    for machine, codes in calls.items():
        for code in codes:
            assert symbols._ends_in_call(code, machine), (machine, code)
        assert not symbols._ends_in_call(bytes(8), machine)
    assert not is_return_address(8), "where nothing is mapped there is no code"


@pytest.mark.parametrize("pad", [b"", bytes.fromhex("5f2403d5")], ids=["plain", "with a landing pad"])
@pytest.mark.parametrize("pages", [0, 3, -2])
def test_a_call_through_a_linker_stub_of_arm64_is_one_of_the_function(
    monkeypatch: pytest.MonkeyPatch, pad: bytes, pages: int
) -> None:
    """The code is read, not run, so any machine will do: a call, a stub, and the slot that it loads from."""
    monkeypatch.setattr(symbols.os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    buffer = mmap.mmap(-1, 8 * 4096)
    memory = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    start = ctypes.addressof(memory)
    call, stub, slot = 3 * 4096 + 0x100, 3 * 4096 + 0x800, (3 + pages) * 4096 + 0x218
    bits = pages & 0x1FFFFF
    words = [0x90000010 | (bits & 3) << 29 | bits >> 2 << 5, 0xF9400211 | (0x218 // 8) << 10, 0x91086210, 0xD61F0220]
    code = pad + b"".join(word.to_bytes(4, "little") for word in words)
    buffer[call : call + 4] = (0x94000000 | (stub - call) // 4).to_bytes(4, "little")
    buffer[stub : stub + len(code)] = code
    buffer[slot : slot + 8] = address_of("qsort").to_bytes(8, "little")
    assert symbols.called_at(start + call + 4) == address_of("qsort")
    buffer[stub + len(pad) : stub + len(pad) + 4] = bytes.fromhex("fd7bbfa9")  # stp x29, x30, [sp, -16]!
    assert symbols.called_at(start + call + 4) == start + stub, "a function is not a stub"
    buffer[call : call + 4] = bytes.fromhex("00003fd6")  # blr x0
    assert symbols.called_at(start + call + 4) is None
    del memory
    buffer.close()


def test_a_file_that_is_none_gives_an_empty_table(tmp_path: pytest.TempPathFactory) -> None:
    for content in (b"", b"\x7fELF\x02\x01", b"\x7fELF\x02\x01" + b"\xff" * 200, b"#!/bin/sh\n"):
        path = tmp_path / "file"  # type: ignore[operator]
        path.write_bytes(content)
        assert symbols._table.__wrapped__(str(path), (0, len(content))).starts == []


def test_the_line_of_the_pyx_is_that_of_the_comment_before(tmp_path: pytest.TempPathFactory) -> None:
    path = tmp_path / "servo.c"  # type: ignore[operator]
    path.write_text('int a;\n  /* "pkg/servo.pyx":12\n * code\n */\n  call();\n')
    assert symbols._cython_line(str(path), 5) == ("pkg/servo.pyx", 12)
    assert symbols._cython_line(str(path), 1) is None
    assert symbols._cython_line("/nowhere/servo.c", 5) is None and symbols._cython_line("a.rs", 5) is None


@pytest.mark.parametrize("folder", ["line\nfeed", "two\n\n0x10\n: 7", "back\\012slash"])
def test_a_place_below_a_path_with_line_feeds_has_its_file_and_line(
    folder: str, tmp_path: Path, compiler: list[str]
) -> None:
    if shutil.which("addr2line") is None:
        pytest.skip("addr2line (binutils) is not installed")
    source = tmp_path / folder / "spot.c"
    source.parent.mkdir()
    source.write_text("int spot(int a) { return a + 1; }\n\nint other(int a) { return a + 2; }\n")
    library = source.with_name("libspot.so")
    subprocess.run([*compiler, "-g", "-O0", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    loaded = ctypes.CDLL(str(library))
    addresses = [ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value or 0 for name in ("spot", "other")]
    places = [place_of(address) for address in addresses]
    assert [(place.module, place.symbol) for place in places] == [(str(library), "spot"), (str(library), "other")]
    assert symbols.lines_of(places) == {addresses[0]: (str(source), 1), addresses[1]: (str(source), 3)}


def test_system_calls_have_names_both_ways() -> None:
    number = {"x86_64": 110, "aarch64": 173}.get(os.uname().machine)
    if number is None:
        pytest.skip("there is no table for this architecture")
    assert syscalls.name_of(number) == "getppid" and syscalls.number_of("getppid") == number
    assert syscalls.name_of(99_999) == "syscall 99999" and syscalls.number_of("no_such_call") is None


def test_a_file_that_was_replaced_gives_no_names_to_what_is_still_mapped(tmp_path: Path) -> None:
    """A library that is built again while its loop runs: the new file tells nothing of the old code."""
    libc = place_of(address_of("qsort")).module
    path = tmp_path / "libold.so"
    shutil.copy(libc, path)
    with path.open("rb") as file:
        old = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        try:
            address = ctypes.addressof(ctypes.c_char.from_buffer(old))
            offset = place_of(address_of("qsort")).offset
            assert place_of(address + offset).module == str(path)
            assert place_of(address + offset).symbol is not None
            (tmp_path / "new").write_bytes(path.read_bytes())
            os.replace(tmp_path / "new", path)
            place = place_of(address + offset)
            assert place.symbol is None and "libold.so (deleted)" in str(place)
            assert symbols.lines_of([place]) == {}
        finally:
            gc.collect()
            old.close()

"""Translation of addresses of this process into symbols, files and lines.

Reads the maps of the process, the symbol tables of ELF files and, with addr2line(1), their debug information. Do not
call it on a loop's thread.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import os
import re
import struct
from typing import NamedTuple

from rtloop.system.fileio import read_text
from rtloop.system.host import uname

__all__ = ["Place", "called_at", "code_maps", "describe_memory", "is_return_address", "lines_of", "place_of"]

_ADDR2LINE_TIMEOUT_S = 5
#: More than the symbol table of any library that a loop calls.
_MAX_TABLE = 64 << 20


class _Map(NamedTuple):
    low: int
    high: int
    permissions: str
    offset: int
    path: str


class Place(NamedTuple):
    """Location of an address.

    Attributes
    ----------
    address : int
        The address.
    module : str
        Path of the file that is mapped there, ``"[heap]"`` and the like, or ``""`` for anonymous memory.
    offset : int
        The address in the file's symbol table.
    symbol : str or None
        The function, as ``"module.Class.method"`` if it is Cython's; None if the file's tables do not name it.
    """

    address: int
    module: str
    offset: int
    symbol: str | None

    def __str__(self) -> str:
        name = os.path.basename(self.module) or "code without a file"
        return self.symbol or f"{name}+{self.offset:#x}"


def _maps(process: int | str = "self") -> list[_Map]:
    try:
        with open(f"/proc/{process}/maps", "rb") as file:
            content = os.fsdecode(file.read())  # paths hold any bytes
    except OSError:
        return []
    found = []
    for line in content.split("\n")[:-1]:
        fields = line.split(None, 5)
        low, high = (int(text, 16) for text in fields[0].split("-"))
        path = _unescaped(fields[5]) if len(fields) > 5 else ""  # ends in " (deleted)" if removed
        found.append(_Map(low, high, fields[1], int(fields[2], 16), path))
    return found


def _unescaped(path: str) -> str:
    r"""Return the path that is meant: the kernel writes a line feed as ``\012``, and a backslash as it is."""
    return path if "\\012" not in path or os.path.exists(path) else path.replace("\\012", "\n")


def _map_of(maps: list[_Map], address: int) -> _Map | None:
    at = bisect.bisect_right(maps, address, key=lambda m: m.low) - 1
    return maps[at] if at >= 0 and address < maps[at].high else None


def code_maps() -> list[tuple[int, int, str]]:
    """Return the mappings of code in this process, in order: (low, high, path). Empty if ``/proc`` cannot be read."""
    return [(m.low, m.high, m.path) for m in _maps() if "x" in m.permissions]


def describe_memory(address: int) -> str:
    """Describe the memory that an address is in."""
    found = _map_of(_maps(), address)
    if found is None:
        return "no mapping"
    return os.path.basename(found.path) or "anonymous memory"


def is_return_address(address: int) -> bool:
    """Return True if the instruction before an address is a call."""
    before = _peek(address - 8, 8)
    return before is not None and _ends_in_call(before, uname().machine)


def called_at(address: int) -> int | None:
    """Return the address of the function called just before a return address, through a linker stub if needed.

    None if the machine code does not contain it, as with a call through a register.
    """
    before, machine = _peek(address - 8, 8), uname().machine
    if before is None:
        return None
    if machine == "aarch64":
        word = int.from_bytes(before[-4:], "little")
        if word >> 26 != 0x25:  # bl
            return None
        target = address - 4 + 4 * _signed(word & 0x3FFFFFF, 26)
        slot = _slot_of_stub(target)
        return target if slot is None else _pointer(slot)
    if machine != "x86_64":
        return None
    distance = int.from_bytes(before[-4:], "little", signed=True)
    if before[-6:-4] == b"\xff\x15":
        return _pointer(address + distance)
    if before[-5] != 0xE8:
        return None
    target = address + distance
    stub = _peek(target, 16) or b""
    skipped = 4 if stub.startswith(b"\xf3\x0f\x1e\xfa") else 0  # endbr64
    skipped += stub[skipped : skipped + 1] == b"\xf2"  # bnd
    if stub[skipped : skipped + 2] != b"\xff\x25":  # jmp *slot
        return target
    slot = int.from_bytes(stub[skipped + 2 : skipped + 6], "little", signed=True)
    return _pointer(target + skipped + 6 + slot)


def _slot_of_stub(address: int) -> int | None:
    """Return where a linker stub of arm64 loads its target from; None if this is not such a stub.

    A stub is "adrp x16, page; ldr x17, [x16, offset]", with a landing pad ("bti c") before it or not (ELF for the Arm
    64-bit Architecture, "Procedure Linkage Table").
    """
    code = _peek(address, 12) or bytes(12)
    words = [int.from_bytes(code[i : i + 4], "little") for i in (0, 4, 8)]
    skipped = words[0] == 0xD503245F
    adrp, ldr = words[skipped], words[skipped + 1]
    if adrp & 0x9F00001F != 0x90000010 or ldr & 0xFFC003FF != 0xF9400211:
        return None
    pages = _signed((adrp >> 5 & 0x7FFFF) << 2 | adrp >> 29 & 3, 21)
    return (address + 4 * skipped & ~0xFFF) + (pages << 12) + (ldr >> 10 & 0xFFF) * 8


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _pointer(address: int) -> int | None:
    content = _peek(address, 8)
    return None if content is None else int.from_bytes(content, "little")


def _peek(address: int, size: int) -> bytes | None:
    """Read memory of this process; None if it is not mapped: a word of the stack need not be an address."""
    try:
        fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        content = os.pread(fd, size, address)
    except (OSError, OverflowError):
        return None
    finally:
        os.close(fd)
    return content if len(content) == size else None


def _ends_in_call(code: bytes, machine: str) -> bool:
    if machine == "x86_64":  # call rel32, or call through a register or memory, which takes 2 to 7 bytes
        return code[-5] == 0xE8 or any(code[-n] == 0xFF and code[-n + 1] >> 3 & 7 == 2 for n in (2, 3, 4, 6, 7))
    if machine == "aarch64":  # bl, blr and blraa
        word = int.from_bytes(code[-4:], "little")
        return word >> 26 == 0x25 or word & 0xFFFFFC1F == 0xD63F0000 or word & 0xFEFFF800 == 0xD63F0800
    return True


class _Table(NamedTuple):
    """Functions of a file, by address, and its loaded segments as (offset, bytes, address)."""

    starts: list[int]
    ends: list[int]
    names: list[str]
    segments: list[tuple[int, int, int]]


@functools.lru_cache(maxsize=64)
def _table(path: str, identity: tuple[int, int]) -> _Table:
    """Read the symbol table of a 64-bit little-endian ELF file; an empty one for any other file."""
    del identity  # only part of the cache's key: a replaced file is read again
    try:
        with open(path, "rb") as file:
            return _parse(file.read(_MAX_TABLE))
    except (OSError, struct.error, ValueError, IndexError, OverflowError):
        return _Table([], [], [], [])


def _parse(data: bytes) -> _Table:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    programs, sections = struct.unpack_from("<QQ", data, 32)
    program_size, program_count, section_size, section_count = struct.unpack_from("<4H", data, 54)
    segments = []
    for i in range(program_count):
        kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", data, programs + i * program_size)
        if kind == 1:  # PT_LOAD
            segments.append((offset, size, address))
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, sections + i * section_size) for i in range(section_count)]
    found: dict[int, tuple[int, str]] = {}
    # .dynsym first, then .symtab, which overrides it: if it was not stripped, its names are as good or better.
    for wanted in (11, 2):
        for _, kind, _, _, offset, size, link, _, _, entry in headers:
            if kind != wanted or not entry:
                continue
            texts = headers[link][4]
            for name, info, _, section, value, length in struct.iter_unpack("<IBBHQQ", data[offset : offset + size]):
                if info & 15 in (2, 10) and section and length:  # functions that are defined here
                    end = data.index(b"\0", texts + name)
                    label = data[texts + name : end].decode(errors="replace")
                    if value not in found or found[value][1].startswith("_") or wanted == 2:
                        found[value] = (value + length, label)
    starts = sorted(found)
    return _Table(starts, [found[s][0] for s in starts], [found[s][1] for s in starts], segments)


def place_of(address: int, *, is_return: bool = False, process: int | str = "self") -> Place:
    """Return the location of an address, in this process or another one; for a return address, that of the call."""
    at = address - 1 if is_return else address
    found = _map_of(_maps(process), at)
    if found is None or not found.path.startswith("/"):
        path = found.path if found else ""
        return Place(address, path, at - (found.low if found else 0), None)
    try:
        status = os.stat(found.path)
    except OSError:
        return Place(address, found.path, at - found.low + found.offset, None)
    table = _table(found.path, (status.st_ino, status.st_mtime_ns))
    in_file = at - found.low + found.offset
    offset = next((a + in_file - o for o, size, a in table.segments if o <= in_file < o + size), in_file)
    i = bisect.bisect_right(table.starts, offset) - 1
    symbol = _readable(table.names[i]) if i >= 0 and offset < table.ends[i] else None
    return Place(address, found.path, offset, symbol)


_LINE = re.compile(r"(.*):(\d+)(?: \(discriminator \d+\))?", re.DOTALL)
_CYTHON = re.compile(r"__pyx_(?:f|pf|pw|fuse_\d+f)_")


def _readable(name: str) -> str:
    """Write ``__pyx_f_3pkg_6module_4Loop_step`` as ``pkg.module.Loop.step``, and a name of C++ as its source does."""
    name = re.sub(r"\.(cold|part|isra|constprop|lto_priv)(\.\d+)*", "", name.partition("@")[0])
    if name.startswith("_Z"):
        return _demangled(name)
    match = _CYTHON.match(name)
    if not match:
        return name
    rest, parts = name[match.end() :], []
    while length := re.match(r"(\d+)", rest):
        start = length.end()
        if start + int(length[1]) > len(rest):
            break
        parts.append(rest[start : start + int(length[1])])
        rest = rest[start + int(length[1]) :].removeprefix("_")
    return ".".join([*parts, re.sub(r"^\d+", "", rest)])


#: Libraries of C++ with the function that reads its names: those of GCC and of LLVM.
_CPP_LIBRARIES = ("libstdc++.so.6", "libc++abi.so.1", "libc++.so.1")


def _demangled(name: str) -> str:
    """Write a name of C++ as its source does, if this process has loaded a library of C++ (Itanium C++ ABI, 3.4)."""
    for library in _CPP_LIBRARIES:
        try:
            demangle = ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_NOW).__cxa_demangle
        except (OSError, AttributeError):
            continue
        demangle.restype, status = ctypes.c_void_p, ctypes.c_int()
        text = demangle(name.encode(), None, None, ctypes.byref(status))
        if text:
            try:
                return ctypes.string_at(text).decode(errors="replace")
            finally:
                ctypes.CDLL(None).free(ctypes.c_void_p(text))
    return name


def lines_of(places: list[Place]) -> dict[int, tuple[str, int]]:
    """Return file and line by address, for those with debug information.

    Runs addr2line(1) once for each file. A line of Cython's generated C becomes that of the ``.pyx``, if the generated
    file still exists.
    """
    import shutil
    import subprocess

    program = shutil.which("addr2line")
    if program is None:
        return {}
    found: dict[int, tuple[str, int]] = {}
    for module in {place.module for place in places if place.module.startswith("/")}:
        of_module = [place for place in places if place.module == module]
        try:
            done = subprocess.run(
                [program, "-a", "-e", module, *(hex(place.offset) for place in of_module)],
                capture_output=True, timeout=_ADDR2LINE_TIMEOUT_S, check=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError, RuntimeError):
            continue
        # A path in it may hold any bytes; blanks, parentheses and line feeds in it are its own.
        for place, line in zip(of_module, _answers(done.stdout, of_module), strict=False):
            match = _LINE.fullmatch(os.fsdecode(line))
            if match and int(match[2]) and match[1] != "??":
                found[place.address] = _cython_line(match[1], int(match[2])) or (match[1], int(match[2]))
    return found


def _answers(output: bytes, places: list[Place]) -> list[bytes]:
    """Split the output of ``addr2line -a``: a line with each address in turn, and then its answer."""
    found: list[re.Match[bytes]] = []
    for place in places:
        match = re.compile(rb"^0x0*%x\n" % place.offset, re.MULTILINE).search(output, found[-1].end() if found else 0)
        if match is None:
            break
        found.append(match)
    ends = [match.start() for match in found[1:]] + [len(output)]
    return [output[match.end() : end - 1] for match, end in zip(found, ends, strict=True)] if found else []


def _cython_line(file: str, number: int) -> tuple[str, int] | None:
    """Return the line of the .pyx that a line of generated C comes from, by the comment before it."""
    if not file.endswith((".c", ".cpp")):
        return None
    try:
        lines = read_text(file).splitlines()[:number]
    except (OSError, UnicodeDecodeError):
        return None
    for line in reversed(lines):
        match = re.match(r'\s*/\* "([^"]+\.p(?:yx|xd|xi))":(\d+)', line)
        if match:
            return match[1], int(match[2])
    return None

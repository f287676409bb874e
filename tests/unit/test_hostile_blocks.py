"""Telemetry blocks that are damaged, of another version or malicious are refused with a message."""

from __future__ import annotations

import fcntl
import json
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import rtloop
from rtloop.sharing import block_files
from rtloop.telemetry import description, loop_reader
from rtloop.telemetry.denied import describe_skipped
from rtloop.telemetry.scan import Scan, scan
from rtloop.tools.top.sampler import Sampler
from rtloop.tools.top.view import notes

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
#: Where the fields of the header are, and how they are packed.
FIELDS = {
    "magic": (0, "<Q"), "version": (8, "<I"), "header_bytes": (12, "<I"), "total_bytes": (16, "<Q"),
    "record_capacity": (24, "<Q"), "record_keep": (32, "<Q"), "text_capacity": (40, "<Q"), "text_bytes": (48, "<Q"),
    "pid": (56, "<q"), "tid": (64, "<q"), "period": (72, "<q"), "phase": (80, "<q"), "clock": (88, "<i"),
    "name": (104, "<64s"), "sequence": (192, "<I"), "ended": (200, "<I"), "written": (224, "<Q"),
}  # fmt: skip
HEADER = 1024


def put(content: bytearray, field: str, value: object) -> None:
    offset, form = FIELDS[field]
    struct.pack_into(form, content, offset, value)


def get(content: bytes, field: str) -> Any:
    offset, form = FIELDS[field]
    return struct.unpack_from(form, content, offset)[0]


@pytest.fixture(scope="module")
def genuine() -> Iterator[bytes]:
    """The content of a block while its loop, which hardly ever writes, runs in this process."""
    with rtloop.RTLoop("20s", name="genuine", policy="other", lock_memory="off", dma_latency=None, record=8) as loop:
        while loop.stats.cycles < 1:
            time.sleep(0.01)
        (file,) = (f for f in block_files.block_files(os.getpid()) if "genuine" in os.readlink(f.path))
        yield Path(file.path).read_bytes()


@contextmanager
def planted(content: bytes, *, name: str = "rtloop:planted", seals: int = SEALS) -> Iterator[Scan]:
    """Hold a file as a loop does, and look for loops in this process."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        if seals:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        found = scan(os.getpid())
        yield Scan(
            [loop for loop in found.loops if "planted" in os.readlink(loop.file.path)],
            found.denied,
            {file: text for file, text in found.faulty.items() if "planted" in os.readlink(file.path)},
        )
    finally:
        os.close(fd)


def fault_of(content: bytes, **options: Any) -> str:
    with planted(content, **options) as found:
        assert found.loops == []
        (fault,) = found.faulty.values()
    return fault


def test_the_copy_of_a_genuine_block_is_read(genuine: bytes) -> None:
    assert get(genuine, "magic") == int.from_bytes(b"RTLTEL01", "little")
    assert get(genuine, "name").startswith(b"genuine\0") and get(genuine, "sequence") % 2 == 0
    with planted(genuine) as found:
        assert [loop.stats.cycles for loop in found.loops] == [1]


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW])
def test_a_block_that_could_be_shrunk_is_refused(genuine: bytes, seals: int) -> None:
    assert "not sealed" in fault_of(genuine, seals=seals)


def test_a_running_loops_block_cannot_be_truncated(genuine: bytes) -> None:
    (file,) = (f for f in block_files.block_files(os.getpid()) if "genuine" in os.readlink(f.path))
    for size in (0, len(genuine) - 1, len(genuine) + 1):
        with pytest.raises(PermissionError):
            os.truncate(file.path, size)


DAMAGE = {
    "magic": ({"magic": 0}, "does not begin"),
    "older version": ({"version": 1}, "version 1, and this rtloop reads version 8"),
    "newer version": ({"version": 77}, "version 77"),
    "header": ({"header_bytes": 64}, "header"),
    "total": ({"total_bytes": 1 << 60}, "add up"),
    "capacity not a power of two": ({"record_capacity": 3}, "ring of records"),
    "capacity that wraps around": ({"record_capacity": 1 << 61}, "ring of records"),
    "capacity beyond the file": ({"record_capacity": 1 << 20}, "add up"),
    "keeps more than it has": ({"record_keep": 1 << 40}, "ring of records"),
    "text beyond the file": ({"text_capacity": 1 << 19}, "add up"),
    "text without end": ({"text_capacity": 1 << 63}, "text has an impossible size"),
    "text longer than its room": ({"text_bytes": 1 << 62}, "text does not end"),
    "period": ({"period": 0}, "period"),
    "negative period": ({"period": -(2**63)}, "period"),
    "clock": ({"clock": 99}, "clock"),
}


@pytest.mark.parametrize(("changes", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_header_is_an_error(genuine: bytes, changes: dict[str, int], message: str) -> None:
    content = bytearray(genuine)
    for field, value in changes.items():
        put(content, field, value)
    assert message in fault_of(bytes(content))


@pytest.mark.parametrize("size", [0, 1, 11, 12, 100, 4096, -1])
def test_a_file_of_another_size_is_an_error(genuine: bytes, size: int) -> None:
    assert "bytes" in fault_of(genuine[:size])
    if size == -1:
        assert "bytes" in fault_of(genuine + b"\0")


def test_an_enormous_file_is_not_mapped(genuine: bytes) -> None:
    fd = os.memfd_create("rtloop:planted", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, genuine)
        os.ftruncate(fd, 1 << 42)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        faults = [text for file, text in scan(os.getpid()).faulty.items() if "planted" in os.readlink(file.path)]
        assert faults == [f"it has {1 << 42} bytes, which is not the size of a telemetry block"]
    finally:
        os.close(fd)


def test_a_writer_that_never_ends_does_not_hold_the_reader(genuine: bytes) -> None:
    content = bytearray(genuine)
    put(content, "sequence", 7)
    with planted(bytes(content)) as found:
        begin = time.monotonic()
        with pytest.raises(rtloop.AttachError, match="in the middle of writing"):
            found.loops[0].read()
        assert time.monotonic() - begin < 20


def test_counters_that_contradict_the_histograms_are_an_error(genuine: bytes) -> None:
    for cycles in (0, 2, 1 << 50, 1 << 63):  # there is one
        content = bytearray(genuine)
        put(content, "written", cycles)
        with planted(bytes(content)) as found, pytest.raises(rtloop.AttachError, match="contradict"):
            found.loops[0].read()


def test_a_block_that_names_another_process_or_thread_is_nobodys_loop(genuine: bytes) -> None:
    for field, value in (("pid", os.getppid()), ("tid", 1), ("tid", 0), ("tid", -5), ("pid", -1), ("ended", 1)):
        content = bytearray(genuine)
        put(content, field, value)
        with planted(bytes(content)) as found:
            assert (found.loops, found.faulty) == ([], {}), field


def with_text(genuine: bytes, text: bytes) -> bytes:
    content = bytearray(genuine)
    at = len(content) - get(genuine, "text_capacity")
    content[at : at + len(text)] = text
    put(content, "text_bytes", len(text))
    return bytes(content)


def said(genuine: bytes) -> dict[str, Any]:
    at = len(genuine) - get(genuine, "text_capacity")
    content: dict[str, Any] = json.loads(genuine[at : at + get(genuine, "text_bytes")])
    return content


BAD_TEXTS = {
    "no JSON": lambda said: b"\xff\xfe{",
    "a list": lambda said: b"[]",
    "nothing in it": lambda said: b"{}",
    "too deep": lambda said: b"[" * 16000,
    "a setting of another kind": lambda said: said["settings"].update(period_ns="1"),
    "a bool for a number": lambda said: said["settings"].update(priority=True),
    "a name that is none": lambda said: said["settings"].update(name=None),
    "CPUs of text": lambda said: said["settings"].update(cpu=["0"]),
    "a grant without a name": lambda said: said["grants"][0].pop("name"),
    "a grant of lists": lambda said: said["grants"][0].update(granted=[1]),
    "a refusal of text": lambda said: said["grants"][0].update(ok="no"),
    "a fix of numbers": lambda said: said["grants"][0].update(fix=3),
    "a swap to no name": lambda said: said.update(last_swaps=[[3, "Law", 5, None]]),
    "a swap in a negative cycle": lambda said: said.update(last_swaps=[[-3, "Law", "Law", None]]),
    "a swap of too few facts": lambda said: said.update(last_swaps=[[3]]),
    "swaps by name": lambda said: said.update(last_swaps={"a": 1}),
    "facts in facts": lambda said: said["host"].update(kernel={}),
}


@pytest.mark.parametrize("change", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_a_text_that_no_loop_writes_is_an_error(genuine: bytes, change: Callable[[dict[str, Any]], Any]) -> None:
    content = said(genuine)
    changed = change(content)
    text = changed if isinstance(changed, bytes) else json.dumps(content).encode()
    assert "its text is not the description of a loop" in fault_of(with_text(genuine, text))


def test_nothing_that_a_terminal_would_obey_is_passed_on(genuine: bytes) -> None:
    content = said(genuine)
    content["settings"]["name"] = "\x1b]0;owned\x07\u202e\nnext"
    content["grants"][0]["detail"] = "\x1b[2J"
    content["host"]["kernel"] = "\x9b31m"
    with planted(with_text(genuine, json.dumps(content).encode())) as found:
        assert "\n" not in found.loops[0].name
        stats = found.loops[0].stats
        told = [str(stats), repr(found.loops[0]), stats.to_json()]
        told += [text for grant in stats.grants for text in map(str, grant)]
    for text in told:
        assert not any(bad in text for bad in ("\x1b", "\x07", "\x9b", "\u202e"))
        assert "\\u001b" not in text


def test_what_a_later_rtloop_says_more_is_passed_over(genuine: bytes) -> None:
    content = said(genuine)
    content["news"] = content["settings"]["news"] = content["grants"][0]["news"] = {"a": [1]}
    with planted(with_text(genuine, json.dumps(content).encode())) as found:
        assert "news" not in found.loops[0].stats.settings


def test_a_loop_that_has_not_told_yet_is_known_by_its_header(genuine: bytes) -> None:
    content = bytearray(genuine)
    put(content, "text_bytes", 0)
    put(content, "name", b"\x1bheader\xff")
    with planted(bytes(content)) as found:
        stats = found.loops[0].stats
        assert stats.name == "\N{REPLACEMENT CHARACTER}header\N{REPLACEMENT CHARACTER}"
        assert stats.settings["period_ns"] == 20 * 10**9 and str(stats)


def test_noise_in_the_header_never_crashes_the_reader(genuine: bytes) -> None:
    chance = random.Random(4711)
    outcomes = {"loop": 0, "fault": 0, "nobody": 0, "unreadable": 0}
    for _ in range(300):
        content = bytearray(genuine)
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(HEADER)] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        with planted(bytes(content)) as found:
            outcomes["fault"] += len(found.faulty)
            outcomes["nobody"] += not found.faulty and not found.loops
            for loop in found.loops:
                try:
                    str(loop.stats), repr(loop), loop.stats.to_json(records=True)
                    outcomes["loop"] += 1
                except rtloop.AttachError:
                    outcomes["unreadable"] += 1
    assert min(outcomes.values()) > 0 and sum(outcomes.values()) == 300, outcomes


def test_a_file_that_only_bears_the_name_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path can be made to look like a memfd's; opening what is there could block, or worse."""
    monkeypatch.setattr(block_files, "_LINK", f"{tmp_path}/memfd:rtloop:")
    os.mkfifo(tmp_path / "memfd:rtloop:fifo")
    fd = os.open(tmp_path / "memfd:rtloop:fifo", os.O_RDWR)
    try:
        assert list(block_files.block_files(os.getpid())) == []
        monkeypatch.setattr(block_files, "_mount_id", lambda path: 1)
        monkeypatch.setattr(block_files, "_memfd_mount_id", lambda: 1)
        assert len(list(block_files.block_files(os.getpid()))) == 1, "it is the mount that tells them apart"
        found = scan(os.getpid())
        assert (found.loops, found.faulty) == ([], {})
    finally:
        os.close(fd)


def test_a_text_too_long_for_its_room_leaves_out_what_matters_least() -> None:
    class Block:
        room = 10**6
        text = b""

        def describe(self, text: bytes) -> bool:
            if len(text) <= self.room:
                self.text = text
            return len(text) <= self.room

    settings = rtloop.RTLoop("1ms", name="long").settings
    grants = [rtloop.Grant("policy", "fifo 80", "other", ok=False, detail="d" * 2000, fix="f" * 2000)]
    seen = []
    block: Any = Block()
    while block.room > 0:
        block.text = b""
        description.write(block, settings, grants, has_own_wait=False)
        told = description.read(block.text)
        seen.append((len(told.settings) > 20, len(told.grants), any(grant.fix for grant in told.grants)))
        block.room = len(block.text) - 1  # too little for what it has just taken
    assert seen == [(True, 1, True), (True, 1, False), (True, 0, False), (False, 0, False)]


# Blocks of another user, who pays nothing for files of holes: this process plays both.


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the files of this process those of another user."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)


@contextmanager
def many(count: int, content: bytes) -> Iterator[None]:
    """Hold files that look like blocks, sealed; what is not in `content` is a hole."""
    fds = []
    try:
        for k in range(count):
            fds.append(os.memfd_create(f"rtloop:planted{k}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            os.write(fds[-1], content)
            fcntl.fcntl(fds[-1], fcntl.F_ADD_SEALS, SEALS)
        yield
    finally:
        for fd in fds:
            os.close(fd)


def test_a_stranger_has_a_bounded_number_of_blocks_inspected(stranger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for bound in ("MOST_CPU_S", "MOST_CPU_S_IN_ALL"):  # a slow machine reaches them first
        monkeypatch.setattr(block_files, bound, 600.0)
    with many(block_files.MOST_BLOCKS + 40, b""):
        found = scan(os.getpid())
        assert len(found.faulty) <= block_files.MOST_BLOCKS
        assert found.skipped == [os.stat("/proc/self").st_uid]
        assert "were skipped" in describe_skipped(found.skipped[0])
        again = scan(os.getpid(), known=found.faulty.keys())
        assert not again.faulty and again.skipped, "known blocks count as well"


def test_ones_own_blocks_are_all_inspected() -> None:
    with many(block_files.MOST_BLOCKS + 40, b""):
        found = scan(os.getpid())
        assert len(found.faulty) == block_files.MOST_BLOCKS + 40 and not found.skipped


def test_a_strangers_million_files_end_the_search_when_its_time_is_over(
    stranger: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def spend(path: str) -> str:
        looked.append(path)
        begin = time.thread_time()
        while time.thread_time() < begin + 0.005:
            pass
        return "/dev/null"

    monkeypatch.setattr(os, "readlink", spend)
    with many(400, b""):
        found = scan(os.getpid())
    assert found.skipped and len(looked) < 400
    assert 0.25 <= 0.005 * len(looked) < 0.25 + 0.005 * 70


def test_of_a_strangers_records_a_bounded_number_is_copied(
    genuine: bytes, stranger: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_reader, "MOST_FOREIGN_RECORDS", 3)
    content = bytearray(genuine)
    with planted(bytes(content)) as found:
        (loop,) = found.loops
        asked: list[Any] = []
        snapshot = loop._block.snapshot  # type: ignore[union-attr]

        def take(records: bool | int) -> Any:
            asked.append(records)
            return snapshot(records=records)

        block = SimpleNamespace(snapshot=take, has_ended=False, has_failed=False)
        monkeypatch.setattr(loop, "_block", block)
        for records in (True, 8, 2, False):
            loop.read(records=records)
        assert asked == [3, 3, 2, False]


def test_blocks_that_are_never_whole_cost_top_little_and_less_and_less(genuine: bytes, stranger: None) -> None:
    content = bytearray(genuine)
    put(content, "sequence", 7)
    reads = []

    class Counting(Sampler):
        def _row(self, reader: Any, records: int, files: dict[str, str]) -> Any:
            if "planted" in os.readlink(reader.file.path):
                reads.append(reader.file)
            return super()._row(reader, records, files)

    sampler = Counting(os.getpid())
    try:
        with many(10, bytes(content)):
            counts = []
            for _ in range(12):
                sample = sampler.sample()
                counts.append(len(reads))
                reads.clear()
                planted_paths = [path for path in sample.faulty if "planted" in os.readlink(path)]
                assert len(planted_paths) == 10, "each is reported, whether looked at or not"
            assert max(counts) <= 3, "each costs a tenth of a second"
            assert sum(counts[8:]) < sum(counts[:4])
        lines = notes(sample)
        assert 1 <= len(lines) <= 2, "one for each process and reason"
        assert all(f"process {os.getpid()}" in line or f"/proc/{os.getpid()}/" in line for line in lines), lines
    finally:
        sampler.close()

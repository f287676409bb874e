"""Files of a Recorder: records are appended in pieces, and stay readable if the process dies."""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from rtloop.data.record_clock import describe_clocks, infer_clock, read_clocks
from rtloop.errors import ConfigError, RecorderError, StateError

__all__ = ["RecordFile", "check_record_path", "json_schema", "open_record_file", "record_json"]

_LARGEST = (1 << 63) - 1
_MCAP_CHUNK_BYTES = 32 << 10


class RecordFile(Protocol):
    """A file that one thread appends records to."""

    path: Path

    @property
    def count(self) -> int:
        """Number of records in it."""
        ...

    def append(self, records: np.ndarray) -> None:
        """Write records, and raise OSError if only the first ones could be written; `count` tells how many."""
        ...

    def close(self, about: dict[str, Any]) -> None:
        """Complete the file; `about` is information on the recording."""
        ...

    def abandon(self) -> None:
        """Close the file as it is. Never raises."""
        ...


def open_record_file(path: str | os.PathLike[str], dtype: np.dtype[Any], topic: str) -> RecordFile:
    """Create the file of a recording, in the format of its suffix.

    Raises
    ------
    ConfigError, ImportError
        As :func:`check_record_path`.
    OSError
        If the file cannot be created.
    """
    target = Path(path)
    check_record_path(target)
    try:
        if target.suffix == ".npy":
            return NpyFile(target, dtype)
        if target.suffix == ".npz":
            return NpzFile(target, dtype)
        if target.suffix == ".mcap":
            return McapFile(target, dtype, topic)
        return CsvFile(target, dtype)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # of a write, which names no file
            raise RecorderError(error.errno, f"{target}: {os.strerror(error.errno)}") from error
        raise


def check_record_path(path: Path) -> None:
    """Check the name of a file of records before there are any.

    Raises
    ------
    ConfigError
        On a suffix other than ``.npy``, ``.npz``, ``.mcap`` and ``.csv``.
    FileNotFoundError
        If the folder does not exist.
    ImportError
        If it is an ``.mcap`` file, and the package mcap is not installed.
    """
    if path.suffix not in (".npy", ".npz", ".mcap", ".csv"):
        raise ConfigError(f"path={str(path)!r}: the name must end in .npy, .npz, .mcap or .csv")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path.parent))
    if path.suffix == ".mcap":
        importlib.import_module("mcap.writer")


def npy_header(dtype: np.dtype[Any], count: int) -> bytes:
    """Return the header of an ``.npy`` file, of the same length for any count (NEP 1)."""
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}

    def text(number: int) -> bytes:
        return f"{{'descr': {described['descr']!r}, 'fortran_order': False, 'shape': ({number},), }}".encode()

    room = -(-(12 + len(text(_LARGEST)) + 1) // 64) * 64 - 12
    return b"\x93NUMPY\x03\x00" + struct.pack("<I", room) + text(count).ljust(room - 1) + b"\n"


class _OpenFile:
    """A file that is written by its descriptor, and is complete at every moment."""

    _fd: int

    def close(self, about: dict[str, Any]) -> None:
        """Flush it to the disk and close it."""
        fd, self._fd = self._fd, -1
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def abandon(self) -> None:
        """Close the file as it is."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class NpyFile(_OpenFile):
    """An ``.npy`` file whose header always tells how many records follow.

    The records are written first and counted in the header afterwards: whoever reads the file at any moment, or after a
    crash, finds whole records.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.count = 0
        self._dtype = dtype
        self._begin = len(npy_header(dtype, 0))
        self._fd = _open_alone(path)
        try:
            _write_all(self._fd, npy_header(dtype, 0), 0)
        except BaseException:
            self.abandon()
            raise

    def append(self, records: np.ndarray) -> None:
        """Write records, and count them."""
        size = self._dtype.itemsize
        content = np.ascontiguousarray(records, self._dtype).view(np.uint8).data
        try:
            done = _write(self._fd, content, self._begin + self.count * size)
            problem = None
        except _ShortWriteError as error:
            done, problem = error.done, error.cause
        if done >= size:
            count = self.count + done // size
            _write_all(self._fd, npy_header(self._dtype, count), 0)
            self.count = count
        if problem is not None:
            os.ftruncate(self._fd, self._begin + self.count * size)
            raise problem


class NpzFile:
    """An ``.npz`` file of `records` and `about`, a JSON text; an ``.npy`` file beside it until it is complete."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self._dtype = dtype
        self._begun = read_clocks()
        self._part = NpyFile(path.with_name(path.name + ".part.npy"), dtype)

    @property
    def count(self) -> int:
        """Number of records."""
        return self._part.count

    def append(self, records: np.ndarray) -> None:
        """Write records into the file beside it."""
        self._part.append(records)

    def close(self, about: dict[str, Any]) -> None:
        """Compress it, replacing a former file of this name."""
        self._part.close(about)
        text = json.dumps({**about, **describe_clocks(self._begun, read_clocks())})
        records = np.load(self._part.path, mmap_mode="r") if self.count else np.empty(0, self._dtype)
        packed = self.path.with_name(self.path.name + ".part")
        try:
            with packed.open("wb") as file:
                np.savez_compressed(file, records=records, about=np.array(text))
                file.flush()
                os.fsync(file.fileno())
            packed.replace(self.path)
        except BaseException:
            packed.unlink(missing_ok=True)
            raise
        self._part.path.unlink()

    def abandon(self) -> None:
        """Keep what was written as the file beside it."""
        self._part.abandon()


class CsvFile(_OpenFile):
    """A ``.csv`` file (RFC 4180) of whole lines at any moment: the names of the fields, and a line for each record.

    The items of an array have columns of their own, ``third[0]`` and so on. A number has as many digits as it takes to
    read back the same number; a bool is 0 or 1.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self.count = 0
        self._dtype = dtype
        self._columns = list(_columns("", dtype))
        if any(kind not in "fiub" for _, kind in self._columns):
            raise ConfigError(f"a record of {dtype} does not consist of numbers, which a .csv file needs")
        self._fd = _open_alone(path)
        try:
            header = ",".join(_quoted(name) for name, _ in self._columns).encode() + b"\r\n"
            _write_all(self._fd, header, 0)
            self._size = len(header)
        except BaseException:
            self.abandon()
            raise

    def append(self, records: np.ndarray) -> None:
        """Write records as lines."""
        lines = [(",".join(map(_cell, _items(item))) + "\r\n").encode() for item in records.tolist()]
        try:
            self._size += _write(self._fd, b"".join(lines), self._size)
        except _ShortWriteError as error:
            done = 0
            for line in lines:
                if done + len(line) > error.done:
                    break
                done += len(line)
                self.count += 1
            self._size += done
            os.ftruncate(self._fd, self._size)
            raise error.cause from None
        self.count += len(lines)


def _columns(name: str, dtype: np.dtype[Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the kind of each number of a record."""
    if dtype.names is not None:
        fields: Any = dtype.fields
        for field in dtype.names:
            yield from _columns(f"{name}.{field}" if name else field, fields[field][0])
    elif dtype.subdtype is not None:
        item, shape = dtype.subdtype
        for index in np.ndindex(*shape):
            yield from _columns(f"{name}[{';'.join(map(str, index))}]", item)
    else:
        yield name or "value", dtype.kind


def _items(item: Any) -> Iterator[Any]:
    """Yield the numbers of a record, as ``tolist()`` of its array gives it."""
    if isinstance(item, np.ndarray):
        item = item.tolist()
    if isinstance(item, (tuple, list)):
        for part in item:
            yield from _items(part)
    else:
        yield item


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if set(name) & set(',"\r\n') else name


def _cell(value: bool | int | float) -> str:
    return str(int(value)) if isinstance(value, bool) else repr(value)


class McapFile:
    """An ``.mcap`` file with one channel of JSON messages, one message a record (https://mcap.dev/spec).

    The time of a message is taken from the record if it has a field for it: an integer `time`, `release` or `start` is
    nanoseconds on any of the four clocks of a loop and becomes the time of day, a float `t` is seconds since the
    recording began. Otherwise it is the time when the record was drained.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], topic: str) -> None:
        from mcap.writer import Writer

        self.path = path
        self.count = 0
        self._added = 0
        self._dtype = dtype
        self._begun = read_clocks()
        self._begun_ns = self._begun["realtime"]
        self._clock: str | None = None
        try:
            for item in np.zeros(1, dtype).tolist():
                record_json(item, dtype)
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"a record of {dtype} cannot be written as JSON, as an .mcap file needs: {error}"
            ) from None
        self._stream = _Stream(path)
        try:
            self._writer: Any = Writer(cast("Any", self._stream), chunk_size=_MCAP_CHUNK_BYTES)
            self._writer.start("", "rtloop")
            schema = json.dumps(json_schema(dtype)).encode()
            number = self._writer.register_schema(topic.strip("/").replace("/", "_") or "record", "jsonschema", schema)
            self._channel = self._writer.register_channel(topic, "json", number)
        except BaseException:
            self.abandon()
            raise

    def append(self, records: np.ndarray) -> None:
        """Write records as messages. They reach the file, and are counted, when their chunk is full."""
        times = self._times(records)
        for time_ns, item in zip(times, records.tolist(), strict=True):
            text = record_json(item, self._dtype)
            before = self._stream.tell()
            self._writer.add_message(self._channel, time_ns, text.encode(), time_ns, sequence=self._added & 0xFFFFFFFF)
            self._added += 1
            if self._stream.tell() != before:
                self.count = self._added

    def _times(self, records: np.ndarray) -> list[int]:
        now = time.time_ns()
        for name in ("time", "release", "start", "t"):
            if name not in (records.dtype.names or ()) or records[name].ndim != 1:
                continue
            kind = records[name].dtype.kind
            if kind == "f" and name == "t":
                seconds = np.nan_to_num(records[name], nan=-np.inf).tolist()
                return [_sane(self._begun_ns + round(x * 1e9), now) if abs(x) < 1e10 else now for x in seconds]
            if kind in "iu" and len(records):
                values = records[name].tolist()
                clock, is_only = infer_clock(max(values), read_clocks(), known=self._clock)
                if is_only:
                    self._clock = clock
                # As the clocks were at the begin: one time line, even if the time of day is set meanwhile.
                return [_sane(self._begun_ns + value - self._begun[clock], now) for value in values]
        return [now] * len(records)

    def close(self, about: dict[str, Any]) -> None:
        """Write the last chunk and the index; without an index, readers have to read the whole file."""
        facts = {**about, **describe_clocks(self._begun, read_clocks())}
        self._writer.add_metadata("rtloop", {key: json.dumps(value) for key, value in facts.items()})
        self._writer.finish()
        self.count = self._added
        self._stream.sync()
        self._stream.close()

    def abandon(self) -> None:
        """Keep what was written, without an index."""
        self._stream.close()


def _sane(time_ns: int, now: int) -> int:
    """Return a time that the format can hold; `now` if it cannot."""
    return time_ns if 0 <= time_ns < 1 << 63 else now


class _Stream:
    """Output of an MCAP writer: a file that always ends with a complete write, even if the disk is full."""

    def __init__(self, path: Path) -> None:
        self._fd = _open_alone(path)
        self._size = 0

    def write(self, content: bytes) -> int:
        try:
            _write(self._fd, content, self._size)
        except _ShortWriteError as error:
            os.ftruncate(self._fd, self._size)
            raise error.cause from None
        self._size += len(content)
        return len(content)

    def tell(self) -> int:
        return self._size

    def sync(self) -> None:
        os.fsync(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def json_schema(dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the JSON Schema of a record: an object with the fields, or with one field `value`.

    Each field has a single type, and an array one dimension, because Foxglove and Lichtblick read no other schema. NaN
    and infinity, which JSON does not have, are written as null nevertheless. An integer of 8 bytes is written exactly,
    but readers that use doubles round it beyond 2^53. The descriptions in the schema state both.
    """
    made = {"type": "object", "properties": {"value": _schema_of(dtype)}} if dtype.names is None else _schema_of(dtype)
    return {**made, "description": "A number that is NaN or infinite is null, because JSON has neither."}


def record_json(item: Any, dtype: np.dtype[Any]) -> str:
    """Return a record, as ``tolist()`` of its array gives it, as JSON of that schema; NaN and infinity become null."""
    return _to_json(_plain(item, dtype))


def _schema_of(dtype: np.dtype[Any]) -> dict[str, Any]:
    if dtype.subdtype is not None:
        item, shape = dtype.subdtype
        schema: dict[str, Any] = {"type": "array", "items": _schema_of(item)}
        if len(shape) > 1:
            schema["description"] = f"{' x '.join(map(str, shape))} items, row by row"
        return schema
    if dtype.names is not None:
        fields: Any = dtype.fields
        return {"type": "object", "properties": {name: _schema_of(fields[name][0]) for name in dtype.names}}
    if dtype.kind == "c":
        return {"type": "object", "properties": {"real": {"type": "number"}, "imag": {"type": "number"}}}
    kinds = {"f": "number", "i": "integer", "u": "integer", "b": "boolean"}
    schema = {"type": kinds.get(dtype.kind, "string")}
    if dtype.kind in "iu" and dtype.itemsize == 8:
        schema["description"] = "64-bit integer, exact in the text; a reader that uses doubles rounds it beyond 2^53"
    return schema


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value), separators=(",", ":"), allow_nan=False)


def _without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _plain(item: Any, dtype: np.dtype[Any]) -> Any:
    return _value(item, dtype) if dtype.names is not None else {"value": _value(item, dtype)}


def _value(item: Any, dtype: np.dtype[Any]) -> Any:
    if dtype.subdtype is not None:
        inner = dtype.subdtype[0]
        items = np.asarray(item, inner).ravel().tolist()
        return items if inner.kind in "fiub" else [_value(x, inner) for x in items]
    if dtype.names is not None:
        fields: Any = dtype.fields
        return {name: _value(x, fields[name][0]) for name, x in zip(dtype.names, item, strict=True)}
    if dtype.kind == "c":
        return {"real": item.real, "imag": item.imag}
    return item.decode(errors="replace") if isinstance(item, bytes) else item if dtype.kind in "fiub" else str(item)


def _open_alone(path: Path) -> int:
    """Create a file, or empty a former one, that nobody else is recording to."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
    except BlockingIOError:
        os.close(fd)
        raise StateError(f"another recorder is writing to {path}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


class _ShortWriteError(OSError):
    """A write that ended early, after `done` bytes."""

    def __init__(self, done: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror)
        self.done = done
        self.cause = cause


def _write(fd: int, content: bytes | memoryview, offset: int) -> int:
    view = memoryview(content)
    done = 0
    while done < len(view):
        try:
            done += os.pwrite(fd, view[done:], offset + done)
        except OSError as error:
            raise _ShortWriteError(done, error) from None
    return done


def _write_all(fd: int, content: bytes, offset: int) -> None:
    try:
        _write(fd, content, offset)
    except _ShortWriteError as error:
        raise error.cause from None

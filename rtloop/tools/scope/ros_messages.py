"""MessagePacker: samples as messages of ROS 2, the encoding that Foxglove, Lichtblick and PlotJuggler all read."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from rtloop.live.signal_set import HEAD

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MessagePacker", "find_names"]

#: Types of an .msg file by NumPy's names. Half floats, which .msg files do not have, become floats.
_TYPES = {"b1": "bool", "f2": "float32", "f4": "float32", "f8": "float64"} | {
    f"{kind}{size}": f"{word}{8 * size}" for kind, word in (("i", "int"), ("u", "uint")) for size in (1, 2, 4, 8)
}
_COMPLEX = {"c8": ("Complex64", "float32"), "c16": ("Complex128", "float64")}
#: The bytes before the content: CDR, little-endian.
_REPRESENTATION = b"\x00\x01\x00\x00"
#: std_msgs/Header with an empty frame: seconds, nanoseconds, and a string of one byte, its end.
_HEADER = {"sec": ("<i4", 0), "nanosec": ("<u4", 4), "frame_size": ("<u4", 8), "frame": ("u1", 12)}
_HEADER_BYTES = 13
#: Fields of every message before the signals. Absolute times in ns would be beyond what a double holds exactly.
_CYCLE = (("cycle", "u8", ""), ("latency", "i8", "ns from the release to the start of the step"))
_DEFINITIONS = {
    "std_msgs/Header": "builtin_interfaces/Time stamp\nstring frame_id",
    "builtin_interfaces/Time": "int32 sec\nuint32 nanosec",
}
_LINE = "=" * 80


class MessagePacker:
    """Packs the samples of a loop into messages: a header with the time of the release, and the signals.

    The encoding is CDR, and the type is defined as in an ``.msg`` file. A multidimensional array becomes a list, row by
    row, a complex number an object with `real` and `imag`, and a half float a float.

    Parameters
    ----------
    name : str
        Name of the loop.
    dtype : numpy.dtype
        Type of a sample.
    units : mapping
        Units by the signals' names, for the comments of the definition.

    Attributes
    ----------
    names : dict
        Field of a message by the name of the signal.
    type_name, definition : str
        Name of the type of the messages, and its definition.
    """

    def __init__(self, name: str, dtype: np.dtype[Any], units: Mapping[str, str]) -> None:
        own = {name for name, _ in HEAD}
        taken = ("header", *(name for name, _, _ in _CYCLE))
        self.names = find_names((name for name in dtype.names or () if name not in own), taken)
        self.type_name = f"rtloop/msg/{_type_name(name)}"
        fields: Any = dtype.fields
        rows = [(name, name, np.dtype(kind), [remark]) for name, kind, remark in _CYCLE]
        for signal, field in self.names.items():
            shape = fields[signal][0].shape
            remarks = [
                signal if field != signal else "",
                f"{' x '.join(map(str, shape))} numbers, row by row" if len(shape) > 1 else "",
                units.get(signal, ""),
            ]
            rows.append((f"_{signal}", field, fields[signal][0], remarks))
        lines, definitions = ["std_msgs/Header header"], dict(_DEFINITIONS)
        formats: dict[str, tuple[Any, int]] = dict(_HEADER)
        place = _HEADER_BYTES
        for key, field, kind, remarks in rows:
            base, shape = kind.base, kind.shape
            code = base.str[1:]
            if code in _COMPLEX:
                type_name, part = _COMPLEX[code]
                type_name, align = f"rtloop/{type_name}", base.itemsize // 2
                definitions[type_name] = f"{part} real\n{part} imag"
            else:
                base = np.dtype("f4") if code == "f2" else base
                type_name, align = _TYPES[code], base.itemsize
            place += -place % align
            formats[key] = ((base.newbyteorder("<"), shape), place)
            place += base.itemsize * math.prod(shape)
            size = f"[{math.prod(shape)}]" if shape else ""
            comment = ", ".join(filter(None, remarks))
            lines.append(f"{type_name}{size} {field}" + (f"  # {comment}" if comment else ""))
        parts = [f"{_LINE}\nMSG: {type_name}\n{text}" for type_name, text in definitions.items()]
        self.definition = "\n".join([*lines, *parts]) + "\n"
        begin = len(_REPRESENTATION)
        self._dtype = np.dtype(
            {
                "names": ["representation", *formats],
                "formats": [f"V{begin}", *(kind for kind, _ in formats.values())],
                "offsets": [0, *(begin + offset for _, offset in formats.values())],
                "itemsize": begin + place,
            }
        )

    def pack(self, records: NDArray[Any], times_ns: NDArray[np.int64]) -> Iterable[bytes]:
        """Return a message for each sample, with these times in the headers (ns since 1970, shape of the samples)."""
        made = np.zeros(len(records), self._dtype)
        made["representation"] = np.void(_REPRESENTATION)
        made["sec"], made["nanosec"] = np.divmod(times_ns, 1_000_000_000)
        made["frame_size"] = 1
        made["cycle"], made["latency"] = records["cycle"], records["start"] - records["release"]
        for signal in self.names:
            made[f"_{signal}"] = records[signal]
        content, size = made.tobytes(), self._dtype.itemsize
        return (content[begin : begin + size] for begin in range(0, len(content), size))


def find_names(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Return the names of fields that ROS 2 accepts, by the given ones: ``motorSpeed`` becomes ``motor_speed``.

    They consist of lower-case letters, digits and single underscores. An accepted name stays as it is. Names that would
    become the same are numbered.
    """
    wanted = {name: _field_name(name) for name in names}
    used = set(taken) | {name for name, field in wanted.items() if name == field}
    for name, field in wanted.items():
        if name == field and name not in taken:
            continue
        number, free = 1, field
        while free in used:
            number += 1
            free = f"{field}_{number}"
        used.add(free)
        wanted[name] = free
    return wanted


def _field_name(name: str) -> str:
    text = "".join(map(_in_ascii, unicodedata.normalize("NFKD", name)))
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text).lower()
    text = re.sub(r"[^a-z0-9]+", "_", text).strip("_")
    return text if text[:1].isalpha() else f"signal_{text}".strip("_")


def _in_ascii(character: str) -> str:
    """Return a character in ASCII: the word for a Greek letter, nothing for an accent."""
    if character.isascii():
        return character
    if unicodedata.category(character).startswith("M"):
        return ""
    described = unicodedata.name(character, "")
    word = described.rpartition(" ")[2].lower()
    if not re.fullmatch("[a-z]+", word):
        word = f"u{ord(character):x}"
    return word if described.startswith("LATIN") else f"_{word}_"


def _type_name(name: str) -> str:
    return "".join(word.capitalize() for word in _field_name(name).split("_"))

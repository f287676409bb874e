"""Presets: named sets of parameters, kept in a file."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rtloop.errors import ConfigError, StateError
from rtloop.units import show

__all__ = ["Presets", "default_path"]

_LONGEST_NAME = 60
_MOST_BYTES = 4 << 20


def default_path() -> Path | None:
    """Return the user's own file: ``rtloop/presets.json`` in ``$XDG_CONFIG_HOME``, by default in ``~/.config``.

    None if there is no home directory: ``HOME`` is not set, and this user has no entry in the user database.
    """
    base = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        folder = Path(base) if base.startswith("/") else Path.home() / ".config"
    except RuntimeError:
        return None
    return folder / "rtloop" / "presets.json"


class Presets:
    """Named sets of parameter values, by the name of the loop, in a JSON file that several programs may change.

    Parameters
    ----------
    path : Path or None
        The file; it and its folder are created by the first `save`. If None, there are no presets, and none can be
        saved.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def of(self, loop: str) -> dict[str, dict[str, Any]]:
        """Return the presets of a loop, by their names.

        Raises
        ------
        StateError
            If the file is not one of presets.
        OSError
            If it cannot be read.
        """
        return dict(sorted(self._read().get(loop, {}).items()))

    def save(self, loop: str, name: str, values: dict[str, Any]) -> None:
        """Save values under a name, replacing those of a former preset of this name.

        Raises
        ------
        ConfigError
            If the name is empty, too long or not printable.
        StateError, OSError
            As for `of`, and if `path` is None or the file cannot be written.
        """
        if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
            raise ConfigError(f"name={show(name)} must have 1 to {_LONGEST_NAME} printable characters")
        with self._changed() as content:
            content.setdefault(loop, {})[name] = values

    def delete(self, loop: str, name: str) -> None:
        """Delete a preset. Does nothing if there is none of this name."""
        with self._changed() as content:
            content.get(loop, {}).pop(name, None)

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        if self.path is None:
            return {}
        try:
            with self.path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return {}
        try:
            content = json.loads(text[:_MOST_BYTES])
        except (ValueError, RecursionError) as error:
            raise StateError(f"{self.path} is not a file of presets: {error}; move it away") from None
        # {loop: {preset: {parameter: value}}}
        if not _is_nested(content, 3):
            raise StateError(f"{self.path} is not a file of presets; move it away")
        found: dict[str, dict[str, dict[str, Any]]] = content
        return found

    @contextmanager
    def _changed(self) -> Iterator[dict[str, dict[str, dict[str, Any]]]]:
        """Yield the content, and write it back: a reader finds the former file or the new one, never a part."""
        if self.path is None:
            raise StateError(
                "presets cannot be saved: this user has no home directory; start rtloop scope with --presets FILE, or "
                "set HOME"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_name(self.path.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self._read()
            yield content
            part = self.path.with_name(self.path.name + ".part")
            part.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
            part.replace(self.path)


def _is_nested(content: Any, levels: int) -> bool:
    return levels == 0 or (isinstance(content, dict) and all(_is_nested(one, levels - 1) for one in content.values()))

"""Hook for PyInstaller, which finds it by the entry point ``pyinstaller40``."""

from __future__ import annotations

import os

__all__ = ["hook_folders"]


def hook_folders() -> list[str]:
    """Return the folders of hooks: PyInstaller calls this."""
    return [os.path.dirname(__file__)]

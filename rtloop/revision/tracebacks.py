"""Tracebacks of the user's code, without rtloop's own frames."""

from __future__ import annotations

import traceback
from pathlib import Path

__all__ = ["describe_exception", "user_frames"]

_PACKAGE = str(Path(__file__).resolve().parents[1])


def user_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an exception that are not in rtloop's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    # Frames of rtloop's compiled modules have names without its installation folder.
    return [frame for frame in frames if not frame.filename.startswith((_PACKAGE, "<frozen", "rtloop/"))]


def describe_exception(error: BaseException) -> str:
    """Format an exception of the user's code, with the frames of that code only."""
    lines = traceback.format_list(user_frames(error))
    text = "".join(traceback.format_exception_only(error)).rstrip()
    return ("Traceback (most recent call last):\n" + "".join(lines) if lines else "") + text

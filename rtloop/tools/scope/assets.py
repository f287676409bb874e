"""Assets of the page: its own files, and BokehJS from the installed Bokeh."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["bokeh_path", "read_page_file"]

#: Files of the page, and their types.
PAGE_FILES = {
    "scope.html": "text/html; charset=utf-8",
    "scope.css": "text/css; charset=utf-8",
    "main.js": "text/javascript; charset=utf-8",
    "link.js": "text/javascript; charset=utf-8",
    "curves.js": "text/javascript; charset=utf-8",
    "plots.js": "text/javascript; charset=utf-8",
    "parameters.js": "text/javascript; charset=utf-8",
    "trigger.js": "text/javascript; charset=utf-8",
}
BOKEH_FILES = ("bokeh.min.js", "bokeh-api.min.js")


def bokeh_path(name: str) -> Path:
    """Return the path of one of the files of BokehJS.

    Raises
    ------
    ModuleNotFoundError
        If Bokeh is not installed.
    """
    import bokeh

    return Path(bokeh.__file__).parent / "server" / "static" / "js" / name


def read_page_file(name: str) -> bytes:
    """Return one of the files of the page."""
    return (files("rtloop.tools.scope") / "page" / name).read_bytes()

"""Draw the house: its rooms, their modules, and which room uses which, as the source has it.

    python docs/draw_house.py

Writes docs/images/house.svg and the list of rooms in CONTRIBUTING.md. An arrow that follows from others is left out.
"""

from __future__ import annotations

import ast
import html
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import house  # noqa: E402 - in tests/support, which is not a package

IMAGE = ROOT / "docs" / "images" / "house.svg"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- house: made by docs/draw_house.py -->\n```text\n", "```\n<!-- end of house -->\n"

#: Rooms whose own docstring does not say what they are for in this list.
PURPOSES = {
    "": "The front doors for Python and Cython: they define next to nothing and hand names on.",
    "_os": "Declarations of libc and Linux that Cython does not ship.",
    "_python": "Declarations of CPython that Cython does not ship.",
    "__main__": "python -m rtloop.",
    "memory": "Memory of a real-time process: limits, locks, huge pages, and what the kernel accounts.",
    "guard": "Watch a step for page faults, system calls and allocations.",
    "numba": "The types that a step compiled by Numba is made of.",
}
_WIDTH, _LEFT, _LINE = 1100, 330, 15


def purpose(name: str) -> str:
    """Return the first line of a room's docstring."""
    if name in PURPOSES:
        return PURPOSES[name]
    path = house.PACKAGE / name
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0].replace("``", "")


def modules(name: str) -> list[str]:
    """Return the modules in a room, those in its folders with their path; a room that is one module has none."""
    found = {house.short(module) for module, path in house.sources(house.PACKAGE) if path.stem != "__init__"}
    return sorted(module.removeprefix(f"{name}.") for module in found if name and module.startswith(f"{name}."))


def uses() -> dict[str, list[str]]:
    """Return which rooms each room uses directly, without those that it reaches through another one anyway."""
    height = {name: i for i, name in enumerate(house.ROOMS)}
    direct: dict[str, set[str]] = {name: set() for name in house.ROOMS}
    for a, b in house.edges(house.PACKAGE):
        if height[house.room(a)] > height[house.room(b)]:
            direct[house.room(a)].add(house.room(b))
    reach: dict[str, set[str]] = {}
    for name in house.ROOMS:  # from the ground up
        reach[name] = direct[name].union(*(reach[other] for other in direct[name]))
    return {
        name: sorted(
            (b for b in direct[name] if not any(b in reach[c] for c in direct[name])),
            key=height.__getitem__,
            reverse=True,
        )
        for name in house.ROOMS
    }


def label(name: str) -> str:
    """Return how a room is written: a folder with a slash."""
    if not name:
        return "rtloop"
    return f"{name}/" if (house.PACKAGE / name).is_dir() else name


def as_text() -> str:
    """Return the list of rooms, the upper ones first."""
    rooms = [name for name in reversed(house.ROOMS) if not name.startswith("__")]
    width = max(len(label(name)) for name in rooms) + 2
    return "".join(f"{label(name):<{width}}{purpose(name)}\n" for name in rooms)


def as_svg() -> str:
    """Return the drawing."""
    rooms = [name for name in reversed(house.ROOMS) if not name.startswith("_")]
    parts, middle, y = [], {}, 20
    for name in rooms:
        lines = textwrap.wrap("  ".join(modules(name)), 118)
        height = 26 + _LINE * (1 + len(lines))
        middle[name] = y + height / 2
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{_WIDTH - _LEFT - 10}" height="{height}" rx="6" class="room"/>')
        parts.append(f'<text x="{_LEFT + 12}" y="{y + 20}" class="name">{html.escape(label(name))}</text>')
        parts.append(f'<text x="{_LEFT + 130}" y="{y + 20}" class="purpose">{html.escape(purpose(name))}</text>')
        for i, line in enumerate(lines):
            parts.append(f'<text x="{_LEFT + 12}" y="{y + 22 + _LINE * (i + 1)}" class="modules">{line}</text>')
        y += height + 10
    for name, others in uses().items():
        for other in others:
            if name in middle and other in middle:
                a, b = middle[name], middle[other]
                bulge = _LEFT - 30 - 0.30 * (b - a)
                parts.append(f'<path d="M{_LEFT} {a:.0f} C{bulge:.0f} {a:.0f} {bulge:.0f} {b:.0f} {_LEFT} {b:.0f}"/>')
    style = (
        "text{font-family:system-ui,sans-serif;font-size:13px;fill:#1b1f24}.name{font-weight:600;font-size:15px}"
        ".modules{font-family:ui-monospace,monospace;font-size:11px;fill:#57606a}.room{fill:#f6f8fa;stroke:#d0d7de}"
        "path{fill:none;stroke:#0969da;stroke-width:1.3;opacity:.6;marker-end:url(#arrow)}"
    )
    arrow = (
        '<marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
        '<polygon points="0,0 10,5 0,10" fill="#0969da"/></marker>'
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 10}" role="img">\n'
        f"<title>The rooms of rtloop, and which uses which</title>\n<style>{style}</style>\n<defs>{arrow}</defs>\n"
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def main() -> None:
    """Write both."""
    IMAGE.write_text(as_svg())
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or not after:
        sys.exit(f"{PAGE.name} lacks the lines between which the list stands")
    PAGE.write_text(before + BEGIN + as_text() + END + after)


if __name__ == "__main__":
    main()

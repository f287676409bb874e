"""Write the tables of the doctor's checks and the items of the kernel's documentation from the source.

    python docs/draw_doctor.py

Writes the tables of docs/reference/doctor.md; it needs the installed package.
"""

from __future__ import annotations

from pathlib import Path

from rtloop.machine.doctor.checks.known import PROBLEMS, corrected_in
from rtloop.machine.doctor.references import ITEMS, PAGES, VERDICTS_OF

PAGE = Path(__file__).resolve().parent / "reference" / "doctor.md"
BEGIN, END = "<!-- checks: made by docs/draw_doctor.py -->\n", "<!-- end of checks -->\n"


def tables() -> str:
    """Return the tables as Markdown: one for each page of the kernel, then one of the verdicts."""
    lines: list[str] = []
    for key, page in PAGES.items():
        title = f"[{page.title}]({page.url})" if page.url else page.title
        lines += ["", f"### {title}", "", "| item | expects | the doctor's checks |", "|---|---|---|"]
        for item in ITEMS:
            if item.page == key:
                name = f"[{item.name}]({page.url}#{item.anchor})" if page.url else item.name
                checks = ", ".join(f"`{check}`" for check in item.checks)
                covered = "; ".join(text for text in (checks, item.remark) if text)
                lines.append(f"| {name} | {item.expects} | {covered} |".replace("*", "\\*"))
    lines += ["", "## Verdicts", "", "| check | ok | note | warn | fail |", "|---|---|---|---|---|"]
    for name, verdicts in VERDICTS_OF.items():
        cells = [verdicts.get(verdict, "-") for verdict in ("ok", "note", "warn", "fail")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines += [
        "",
        "## Known problems of kernels",
        "",
        "| problem | what happens | kernels | corrected in |",
        "|---|---|---|---|",
    ]
    for problem in PROBLEMS:
        since = "{}.{}".format(*problem.since) if problem.since != (0, 0) else "before"
        kind = "PREEMPT_RT, " if problem.is_rt else ""
        kernels = f"{kind}from {since}" if since != "before" else "all older ones"
        lines.append(f"| [{problem.name}]({problem.url}) | {problem.text} | {kernels} | {corrected_in(problem)} |")
    return "\n".join(lines) + "\n\n"


def written(text: str) -> str:
    """Return the page's text with the tables as they are now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{tables()}{END}{after}"


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(written(PAGE.read_text()))


if __name__ == "__main__":
    main()

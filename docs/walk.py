"""Walk through a tutorial: run its commands as printed, in one shell, and compare their output with the page.

Run it in a clone, or in a writable copy of one::

    python docs/walk.py docs/tutorials/first-loop.md            # in this environment
    python docs/walk.py --set-up docs/tutorials/first-loop.md   # as a newcomer, with set-up and sudo
    python docs/walk.py --set-up --write ...                    # also refresh docs/outputs

Commands are the lines that begin with ``$`` in ``console`` blocks. A block under ``<!-- set up -->`` is part of the
set-up. A ``literalinclude`` of a file in ``outputs`` shows the output of the last command before it. An image in
``outputs`` shows the file of that name that the command wrote.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ITEM = re.compile(
    r"^(?P<set_up><!-- set up -->\n+)?```console\n(?P<commands>.*?)^```$"
    r"|^```\{literalinclude\} \.\./outputs/(?P<text>[\w-]+\.txt)$"
    r"|^!\[[^\]]*\]\(\.\./outputs/(?P<picture>[\w-]+\.(?:png|svg))\)$",
    re.DOTALL | re.MULTILINE,
)
MARK = "@@@ walked @@@"
ROW = re.compile(r"^ ?([A-Za-z][\w,. -]*?)  +\S*\d")


class Outcome(NamedTuple):
    """Result of a command of a page."""

    command: str
    output: str
    code: int | None  # None if the command was not reached
    shown: tuple[str, ...]  # names of files in docs/outputs


def read(page: Path, *, set_up: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Return the commands of a page, each with the names of the outputs shown after it."""
    found: list[tuple[str, tuple[str, ...]]] = []
    for item in ITEM.finditer(page.read_text()):
        if item["commands"] is None:
            command, shown = found[-1]
            found[-1] = command, (*shown, item["text"] or item["picture"])
        elif set_up or not item["set_up"]:
            found += [(line[2:], ()) for line in item["commands"].splitlines() if line.startswith("$ ")]
    return found


def structure(text: str) -> list[str]:
    """Return the row labels of the figures in an output, which are the same on every machine and in every run.

    The grants at the end are left out, because they depend on the machine.
    """
    rows = text.partition("\ngranted ")[0].partition("\nrefused ")[0].splitlines()
    return [row[1].strip() for row in map(ROW.match, rows) if row]


def walk(page: Path, root: Path, *, set_up: bool = False, timeout: float = 600) -> list[Outcome]:
    """Run the commands of a page.

    Parameters
    ----------
    page : pathlib.Path
        The tutorial.
    root : pathlib.Path
        Initial folder of the shell: the root of a clone. The commands write into its examples.
    set_up : bool
        If true, also run the set-up commands, and run sudo as written. If false, ``sudo COMMAND`` runs just COMMAND.
    timeout : float
        Limit for the whole page, in seconds.
    """
    commands = read(page, set_up=set_up)
    script = "" if set_up else 'sudo() { "$@"; }\n'
    for i, (command, shown) in enumerate(commands):
        pictures = [f"cp {name} .walked-{name}" for name in shown if not name.endswith(".txt")]
        script += f"printf '\\n{MARK}{i}\\n'; " + "\n".join([f"{command}\nprintf '\\n{MARK}%s' $?", *pictures]) + "\n"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TERM": "dumb", "COLUMNS": "80"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    outcomes = []
    for i, (command, shown) in enumerate(commands):
        found = re.search(rf"^{MARK}{i}\n(.*?)\n{MARK}(\d+)", done.stdout, re.DOTALL | re.MULTILINE)
        output, code = (found[1], int(found[2])) if found else ("", None)
        outcomes.append(Outcome(command, output, code, shown))
    return outcomes


def complain(outcomes: list[Outcome], outputs: Path) -> list[str]:
    """Return the faults: commands that failed, and outputs whose rows differ from the page."""
    wrong = []
    for command, output, code, shown in outcomes:
        if code:
            wrong.append(f"$ {command}\n{output}\nexit code {code}")
        elif code is None:
            wrong.append(f"$ {command}\nwas not reached")
        for name in shown:
            if not (outputs / name).exists():
                wrong.append(f"$ {command}\n{outputs / name} is missing; docs/walk.py --set-up --write creates it")
            elif name.endswith(".txt") and structure((outputs / name).read_text()) != structure(output):
                wrong.append(f"$ {command}\nthe rows of its output differ from docs/outputs/{name}:\n{output}")
    return wrong


def write(outcomes: list[Outcome], root: Path, outputs: Path) -> None:
    """Replace the page's outputs by the new ones."""
    for outcome in outcomes:
        for name in outcome.shown:
            if name.endswith(".txt"):
                lines = [line.rstrip() for line in outcome.output.strip("\n").splitlines()]
                (outputs / name).write_text("\n".join(lines) + "\n")
            else:
                (drawn,) = root.rglob(f".walked-{name}")
                shutil.move(drawn, outputs / name)


def main() -> int:
    """Walk through the pages, and return 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set-up", action="store_true", help="also run the set-up commands, and sudo")
    parser.add_argument("--write", action="store_true", help="refresh docs/outputs")
    parser.add_argument("pages", nargs="+", type=Path)
    options = parser.parse_args()
    docs = Path(__file__).resolve().parent
    failed = False
    for page in options.pages:
        outcomes = walk(page, docs.parent, set_up=options.set_up)
        wrong = complain([o for o in outcomes if o.code != 0] if options.write else outcomes, docs / "outputs")
        if options.write and not wrong:
            write(outcomes, docs.parent, docs / "outputs")
        print(f"{page}: {len(outcomes)} commands, {'as shown' if not wrong else 'WRONG'}")
        print("".join(f"\n{text}\n" for text in wrong), end="")
        failed = failed or bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

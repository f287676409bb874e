"""Check every external link of the pages (`make linkcheck`), and list those that could not be reached.

Every build checks the links between the pages and into the repository; a broken one fails the build.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent


def judge(lines: Iterable[dict[str, Any]]) -> tuple[list[str], list[str], list[str]]:
    """Return the addresses that work, those that are wrong, and those that could not be checked, with the reasons.

    Parameters
    ----------
    lines : iterable of dict
        Entries of Sphinx's ``output.json``. An address is wrong if its server answers 400, 404 or 410, or if the page
        lacks the anchor. It could not be checked if there is no answer, if the server refuses programs (403, 429),
        or if the server itself fails (5xx).
    """
    works, wrong, unknown = [], [], []
    for line in lines:
        where = f"{line['uri']} ({line['filename']}:{line['lineno']}): {line['info'] or line['status']}"
        if line["status"] in ("working", "redirected"):
            works.append(where)
        elif line["status"] in ("ignored", "unchecked", "local"):
            continue
        elif "Anchor" in line["info"] or any(f"{code} " in line["info"] for code in (400, 404, 410)):
            wrong.append(where)
        else:
            unknown.append(where)
    return works, wrong, unknown


def main(target: str) -> int:
    """Run Sphinx's link checker, print the results, and return 1 if a link is wrong."""
    # -P, because the current folder contains the uncompiled package.
    command = [sys.executable, "-P", "-m", "sphinx", "--quiet", "-b", "linkcheck", str(DOCS), target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = Path(target, "output.json")
    if not found.exists():
        print(f"the link check failed to run:\n{done.stderr}", file=sys.stderr)
        return 1
    works, wrong, unknown = judge(json.loads(line) for line in found.read_text().splitlines())
    for title, lines in (("WRONG", wrong), ("NOT CHECKED", unknown)):
        for line in sorted(set(lines)):
            print(f"{title}: {line}")
    print(f"external links: {len(works)} work, {len(wrong)} are wrong, {len(unknown)} could not be checked")
    if unknown and not works:
        print("no address could be reached; is the network down?")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

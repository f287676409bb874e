"""The process of one side: runs a row's client beside its company, and prints the result as one line of JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys

from counterpart_rows import in_company


def main() -> None:
    row, side, company, seconds, *more = sys.argv[1:]
    if "RTLOOP_SWITCH_INTERVAL" in os.environ:
        sys.setswitchinterval(float(os.environ["RTLOOP_SWITCH_INTERVAL"]))
    client = importlib.import_module(f"counterpart_rows.{row}").client
    with in_company(company) as policies:
        result = client(side, float(seconds), *more)
        result["policies"] = policies()
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

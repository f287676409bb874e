"""A host's controller for tests: runs the example's actuator behind a bridge, and answers lines on stdin with JSON.

    zenoh_host.py CUT_LINK.PYX JSON

The JSON has `key`, `config` and `publish`: whether the log goes out as a signal, or stays here to be looked at.
"""

import json
import sys
import warnings

import numpy as np

import rtloop
from rtloop.zenoh import Bridge

warnings.simplefilter("ignore")
about = json.loads(sys.argv[2])
Actuator = rtloop.build(sys.argv[1]).Actuator
loop = Actuator("1kHz", max_age=100_000_000, clock="tai", align="10ms", strict=False, name=about["name"])
signals = {"log": loop.log} if about["publish"] else {}
kept = [loop.log.drain()]

with Bridge(loop, key=about["key"], config=about["config"], setpoints={"angle": loop.setpoint}, signals=signals,
            batch="20ms", interval="100ms") as bridge:  # fmt: skip
    loop.start()
    print(json.dumps("running"), flush=True)
    for line in sys.stdin:
        is_last = line.strip() == "stop"
        if is_last:
            loop.stop()
        stats = loop.stats
        if not about["publish"]:
            kept.append(loop.log.drain())
        log = np.concatenate(kept)
        releases = stats.records["release"]
        print(json.dumps({
            "state": stats.state,
            "cycles": stats.cycles,
            "missed": stats.missed,
            "elapsed": int(releases[-1] - releases[0]) // 1_000_000 + 1 if len(releases) else 0,
            "releases": releases.tolist() if is_last else [],
            "page_faults": list(stats.page_faults),
            "output": float(log["output"][-1]) if len(log) else None,
            "obeyed_too_old": int(((log["output"] != 0) & (log["age"] > 100_000_000)).sum()),
            "bridge": bridge.stats.to_dict(),
        }), flush=True)  # fmt: skip
        if is_last:
            break

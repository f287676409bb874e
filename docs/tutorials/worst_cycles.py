"""Print the five most delayed cycles of a saved run, in chronological order."""

import sys

import rtloop

stats = rtloop.Stats.load(sys.argv[1])
worst = stats.worst(5)
for release, start, end in sorted(worst.tolist()):
    at = (release - stats.records["release"][0]) / 1e9
    print(f"at {at:.3f} s: woke up {(start - release) / 1e3:.1f} us late, step took {(end - start) / 1e3:.1f} us")

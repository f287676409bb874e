"""Output of cyclictest, read as a histogram."""

from __future__ import annotations

import pytest

from rtloop.machine.latency.cyclictest import parse_cyclictest

PRINTED = """# /dev/cpu_dma_latency set to 0us
# Histogram
000000 000000
020000 000060
030000 000038
999999 000000
# Total: 000000098
# Min Latencies: 20000
# Avg Latencies: 47000
# Max Latencies: 1845000
# Histogram Overflows: 00002
# Histogram Overflow at cycle number:
# Thread 0: 00077 00078
"""


def test_the_histogram_of_cyclictest_is_read_with_what_overflowed_it() -> None:
    histogram = parse_cyclictest(PRINTED)
    assert (histogram.count, histogram.min, histogram.max) == (100, 20_000, 1_845_000)
    assert histogram.percentile(50) == pytest.approx(20_000, rel=0.01)
    assert histogram.percentile(99) == pytest.approx(1_000_000, rel=0.01), "at least so late: not the largest's value"
    assert parse_cyclictest(PRINTED.replace("Overflows: 00002", "Overflows: 00000")).count == 98


@pytest.mark.parametrize("text", ["", "# Histogram\n000000 000000\n", PRINTED.replace("# Max", "# Mix"), PRINTED[:60]])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no histogram"):
        parse_cyclictest(text)

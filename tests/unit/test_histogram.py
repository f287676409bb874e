"""Histograms: bins as in the C header, percentiles that never underestimate, and exact means and deviations."""

from __future__ import annotations

import copy
import ctypes
import json
import pickle
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from rtloop import Histogram, RTLoop

INCLUDE = Path(__file__).parents[2] / "rtloop" / "include"
C_FACE = """
#include <rtloop/histogram.h>
uint32_t bin(int64_t value) { return rt_histogram_bin(value); }
int64_t edge(uint32_t bin) { return rt_histogram_edge(bin); }
uint32_t bins(void) { return RT_HISTOGRAM_BINS; }
"""


def bin_of(value: int) -> int:
    """The layout written down a second time, from its description and not from the code."""
    if value < 0:
        return 0
    if value >= 2**40:
        return 4352
    if value < 256:
        return value
    octave = value.bit_length() - 8
    return octave * 128 + (value >> octave)


def test_the_bins_are_those_of_the_description() -> None:
    edges = Histogram.empty().edges
    assert len(edges) == 4354 and edges[-1] == np.inf and edges[-2] == 2**40
    rng = np.random.default_rng(1)
    values = [*range(2000), 2**40 - 1, 2**40, 2**50, *(int(2**x) for x in rng.uniform(0, 41, 3000))]
    for value in values:
        i = bin_of(value)
        assert edges[i] <= value < edges[i + 1]
        assert Histogram.from_values([value]).counts[i] == 1


def test_the_bins_are_those_of_the_c_header(tmp_path: Path) -> None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("needs a C compiler")
    (tmp_path / "face.c").write_text(C_FACE)
    command = [compiler, "-std=gnu11", "-O1", "-shared", "-fPIC", f"-I{INCLUDE}", "face.c", "-o", "face.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    face = ctypes.CDLL(str(tmp_path / "face.so"))
    face.bin.argtypes, face.bin.restype = [ctypes.c_int64], ctypes.c_uint32
    face.edge.argtypes, face.edge.restype = [ctypes.c_uint32], ctypes.c_int64
    edges = Histogram.empty().edges
    assert face.bins() == len(edges) - 1 == len(Histogram.empty().counts)
    assert [face.edge(i) for i in range(face.bins())] == edges[:-1].tolist()
    around = np.concatenate([edges[:-1] - 1, edges[:-1], edges[:-1] + 1]).astype(np.int64)
    random = np.exp2(np.random.default_rng(7).uniform(0, 42, 2000)).astype(np.int64)
    for value in [*around.tolist(), *random.tolist(), -(2**63), 2**62]:
        assert Histogram.from_values([value]).counts[face.bin(value)] == 1, value


def test_no_bin_is_wider_than_a_hundredth_of_its_value() -> None:
    edges = Histogram.empty().edges[:-1]
    widths = np.diff(edges)
    assert np.all(widths[256:] / edges[256:-1] <= 1 / 128)
    assert np.all(widths[:256] == 1)


def test_a_loop_records_into_the_same_bins(ordinary: dict[str, object]) -> None:
    stats = RTLoop("1ms", warmup=0, **ordinary).run(cycles=200)  # type: ignore[arg-type]
    latency = stats.records["start"] - stats.records["release"]
    execution = stats.records["end"] - stats.records["start"]
    assert stats.latency == Histogram.from_values(latency)
    assert stats.execution == Histogram.from_values(execution)
    assert stats.response == Histogram.from_values(latency + execution)
    assert stats.interval == Histogram.from_values(np.diff(stats.records["start"]))


def test_the_exact_figures_are_exact() -> None:
    values = [3, 1000, 123_456_789, 5]
    histogram = Histogram.from_values(values)
    assert (histogram.count, histogram.min, histogram.max) == (4, 3, 123_456_789)
    assert histogram.mean == sum(values) / 4
    assert histogram.std == pytest.approx(np.std(values), rel=1e-15) and histogram.has_exact_std


@pytest.mark.parametrize(
    "values",
    [
        [1_000_000, 1_000_400] * 500, [23_158] * 9 + [23_159], [2**39] * 100 + [2**39 + 1], [-5, 7, -2**62, 2**62],
        list(range(300)), [10**9 + 7] * 1000 + [10**9 + 9], [2**62 + 5, 2**62 + 6],
    ],
)  # fmt: skip
def test_the_standard_deviation_is_exact_to_rounding_however_far_from_zero(values: list[int]) -> None:
    n, mean = len(values), Fraction(sum(values), len(values))
    exact = float(sum((value - mean) ** 2 for value in values) / n) ** 0.5
    halves = Histogram.from_values(values[: n // 2]) + Histogram.from_values(values[n // 2 :])
    loaded = Histogram.from_dict(json.loads(json.dumps(halves.to_dict())))
    for histogram in (Histogram.from_values(values), halves, loaded):
        assert histogram.std == pytest.approx(exact, rel=1e-15)


def test_without_squares_the_deviation_is_an_estimate_and_says_so() -> None:
    """As read from a file that an older rtloop has written."""
    values = Histogram.from_values([1_000_000, 1_000_400] * 500).to_dict()
    del values["squares_ns2"]
    old = Histogram.from_dict(values)
    assert not old.has_exact_std and old.std == pytest.approx(200, abs=0.004 * 1_000_400)
    assert not (old + Histogram.from_values([5])).has_exact_std
    assert (Histogram.empty() + Histogram.from_values([5])).has_exact_std


def test_squares_that_contradict_the_sum_are_refused() -> None:
    values = Histogram.from_values([5, 70_000]).to_dict()
    with pytest.raises(ValueError, match="squares=1 is less"):
        Histogram.from_dict(values | {"squares_ns2": 1})


@pytest.mark.parametrize("q", [0, 1, 50, 90, 99, 99.9, 99.99, 100])
def test_a_percentile_never_understates_and_overstates_by_less_than_a_hundredth(q: float) -> None:
    values = np.random.default_rng(2).lognormal(10, 1.5, 10_000).astype(np.int64)
    rank = max(1, int(np.ceil(round(q / 100 * len(values), 6))))
    exact = np.sort(values)[rank - 1]
    assert exact <= Histogram.from_values(values).percentile(q) <= exact * 1.008 + 1


@pytest.mark.parametrize("n", [1000, 10**6, 10**9, 10**12])
def test_the_rank_is_exact_whatever_floating_point_makes_of_the_product(n: int) -> None:
    counts = np.zeros(len(Histogram.empty().counts), np.uint64)
    counts[5], counts[9] = n - 1, 1
    histogram = Histogram(counts, total=5 * (n - 1) + 9, minimum=5, maximum=9)
    assert histogram.percentile([100 * (n - 1) / n, 100]).tolist() == [5, 9]


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000])
def test_one_percentile_is_the_same_as_among_several(count: int) -> None:
    histogram = Histogram.from_values(np.random.default_rng(count).integers(-5, 2**41, count))
    wanted = [0, 1e-9, 0.1, 33, 50.0, 99.9, 100 - 1e-9, 100, *np.arange(100) / 7]
    np.testing.assert_equal([histogram.percentile(float(q)) for q in wanted], histogram.percentile(wanted))
    for outside in (-1, 100.1, float("nan")):
        with pytest.raises(ValueError, match="within 0 to 100"):
            histogram.percentile(outside)


def test_counts_that_somebody_may_change_are_copied() -> None:
    counts = np.zeros(len(Histogram.empty().counts), np.uint64)
    counts[3] = 1
    view = counts[:]
    view.flags.writeable = False
    for given in (counts, view):
        histogram = Histogram(given, total=3, minimum=3, maximum=3)
        counts[3] = 5
        assert histogram.counts[3] == 1
        counts[3] = 1


def test_percentiles_at_the_ends_and_of_several() -> None:
    histogram = Histogram.from_values([7, 100_000, 2**41])
    assert histogram.percentile(0) == 7 and histogram.percentile(100) == 2**41
    assert histogram.percentile([0, 100]).tolist() == [7, 2**41]
    assert Histogram.from_values([1000]).percentile(50) == 1000, "never beyond the largest value"
    for q in (-1, 101, float("nan")):
        with pytest.raises(ValueError, match="within 0 to 100"):
            histogram.percentile(q)


def test_an_empty_histogram_says_so() -> None:
    empty = Histogram.empty()
    assert (empty.count, empty.min, empty.max) == (0, 0, 0)
    assert np.isnan(empty.mean) and np.isnan(empty.std) and np.isnan(empty.percentile(50))
    assert "empty" in repr(empty)
    assert Histogram.from_values([]) == empty


def test_negative_values_are_in_the_first_bin_and_exact_in_the_minimum() -> None:
    histogram = Histogram.from_values([-500, 10])
    assert histogram.counts[0] == 1 and histogram.min == -500 and histogram.percentile(50) >= -500


def test_histograms_add_up() -> None:
    a, b = Histogram.from_values([1, 2, 3]), Histogram.from_values([1000, 5])
    assert a + b == Histogram.from_values([1, 2, 3, 1000, 5])
    assert a + Histogram.empty() == a == Histogram.empty() + a


def test_it_is_immutable_and_survives_a_round_trip() -> None:
    histogram = Histogram.from_values([5, 5, 70_000])
    with pytest.raises(ValueError, match="read-only"):
        histogram.counts[0] = 1
    assert Histogram.from_dict(histogram.to_dict()) == histogram
    assert pickle.loads(pickle.dumps(histogram)) == histogram
    assert copy.deepcopy(histogram) == histogram
    with pytest.raises(ValueError, match="4353"):
        Histogram([1, 2], total=0, minimum=0, maximum=0)


@pytest.mark.parametrize("count", [-1, 0.5])
def test_a_count_is_an_integer_of_at_least_zero(count: float) -> None:
    with pytest.raises(ValueError, match="integers"):
        Histogram(np.full(4353, count), total=0, minimum=0, maximum=0)


@pytest.mark.parametrize(
    "damage", [{"bins": [-1, 900]}, {"bins": [5, 4353]}, {"bins": [5]}, {"count": 4}, {"min_ns": 10**9}]
)
def test_a_damaged_dict_is_refused(damage: dict[str, object]) -> None:
    values = Histogram.from_values([5, 5, 70_000]).to_dict()
    with pytest.raises(ValueError, match=r"bins|above"):
        Histogram.from_dict(values | damage)

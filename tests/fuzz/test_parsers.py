"""Whatever is parsed ends in a value or in the exception that is meant for it, whatever is in it.

`make fuzz` runs this with many more examples (RTLOOP_FUZZ_EXAMPLES). The doctor's parsers are fuzzed in
tests/unit/test_doctor_parse.py, the headers of blocks in tests/unit/test_hostile_blocks.py.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import rtloop
from rtloop import units
from rtloop.culprit import attribution, trace_text
from rtloop.live import signal_set
from rtloop.machine.latency import cyclictest
from rtloop.memory import hugepage_supply
from rtloop.settings import SETTING_KINDS
from rtloop.system import cgroup, cpu, host, privilege
from rtloop.telemetry import description

EXAMPLES = int(os.environ.get("RTLOOP_FUZZ_EXAMPLES", "200"))
#: More examples than usual are for finding what is new: then they are drawn anew each time.
fuzz = hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES <= 200, database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip


def texts(*pieces: str) -> st.SearchStrategy[str]:
    """Draw any text, and texts put together from what a parser looks for."""
    own = [*pieces, *" \t\n:,-/0.", "-1", "18446744073709551616", "9" * 5000, "max", "²", "٣", "\0", "\udcff"]
    return st.one_of(st.text(), st.lists(st.sampled_from(own)).map("".join))


DURATIONS = st.one_of(
    texts("ns", "us", "µs", "ms", "s", "min", "h", "Hz", "kHz", "MHz", "K", "MiB", "1.5", "1e3", "inf", "nan"),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.timedeltas(),
    st.binary(),
    st.none(),
    st.lists(st.integers(), max_size=2),
    st.sampled_from([timedelta.max, timedelta.min, 10**5000, -(10**5000)]),
)
PARSERS: list[Callable[[Any, str], int]] = [
    units.parse_duration, units.parse_period, units.parse_timeout, units.parse_size,
    lambda value, name: units.parse_duration(value, name, rate=True),
]  # fmt: skip


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.__name__)
def test_a_duration_or_a_size_is_an_int64_or_a_short_ConfigError(parser: Callable[[Any, str], int]) -> None:
    @fuzz
    @hypothesis.given(DURATIONS)
    def parse(value: Any) -> None:
        result: Any = 0
        said = ""
        try:
            result = parser(value, "argument")
        except rtloop.ConfigError as error:
            said = str(error)
        if said:
            assert "argument=" in said and len(said) < 600
        else:
            kinds = (int, Fraction) if parser is units.parse_period else (int,)  # a rate need not be whole ns
            assert type(result) in kinds and 0 <= result < 1 << 63

    parse()


SETTINGS = [
    "phase", "align", "clock", "policy", "priority", "runtime", "deadline", "cpu", "spin", "overrun", "max_burst",
    "max_overruns", "warmup", "lock_memory", "stack_size", "dma_latency", "record", "name",
]  # fmt: skip


def test_any_settings_make_a_loop_or_a_ConfigError() -> None:
    value = st.one_of(DURATIONS, st.sampled_from(["fifo", "deadline", "skip", "auto", "all", "1ms", (0, 1)]))

    @fuzz
    @hypothesis.given(value, st.dictionaries(st.sampled_from(SETTINGS), value, max_size=4))
    def make(period: Any, keywords: dict[str, Any]) -> None:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loop, said = None, ""
            try:
                loop = rtloop.RTLoop(period, **keywords)
            except (rtloop.ConfigError, TypeError) as error:
                said = str(error)
            if loop is None:
                assert 0 < len(said) < 2000
            else:
                assert loop.state == "new" and json.dumps(loop.settings.to_dict())

    make()


@fuzz
@hypothesis.given(texts("0-3", "0,2", "1-", "-", "65535", "0-99999999999"))
def test_a_list_of_cpus_is_sorted_and_short_or_a_ValueError(text: str) -> None:
    try:
        cpus = cpu.parse_cpu_list(text)
    except ValueError:
        return
    assert cpus == tuple(sorted(set(cpus))) and all(0 <= number < 1 << 16 for number in cpus)
    assert cpu.parse_cpu_list(cpu.format_cpu_list(cpus)) == cpus


FILES: dict[str, tuple[Callable[[str], object], tuple[str, ...]]] = {
    "isolated_cpus": (cpu.isolated_cpus, ("0-3", "1")),
    "rt_group_file": (privilege.rt_group_file, ("4:cpu,cpuacct:", "/a", "0::/")),
    "rt_group_runtime": (privilege.rt_group_runtime, ("4:cpu:/", "\n")),
    "default_page_size": (hugepage_supply.default_page_size, ("Hugepagesize:", " 2048 kB", "\n")),
    "available_memory": (hugepage_supply.available_memory, ("MemAvailable:", " 2048 kB", "\n")),
    "memory_room": (cgroup.memory_room, ("0::/", "4:memory:", "../..", "\n")),
}


@pytest.mark.parametrize("name", FILES)
def test_no_text_in_a_file_of_the_kernel_makes_its_reader_raise(name: str, tmp_path: Path) -> None:
    reader, pieces = FILES[name]
    file = tmp_path / "file"

    @fuzz
    @hypothesis.given(st.one_of(texts(*pieces).map(lambda text: text.encode(errors="surrogateescape")), st.binary()))
    def read(content: bytes) -> None:
        file.write_bytes(content)
        reader(str(file))

    read()


@fuzz
@hypothesis.given(texts("model name", "CPU part", "processor"))
def test_no_cpuinfo_makes_its_reader_raise(text: str) -> None:
    assert isinstance(host._cpu_model(text), str)


@fuzz
@hypothesis.given(texts("CapEff:\t", "000001ffffffffff", "zz"), st.integers(0, 63))
def test_no_status_makes_the_reader_of_capabilities_raise(text: str, bit: int) -> None:
    assert privilege.has_capability(bit, text) in (True, False)


@fuzz
@hypothesis.given(texts("# Max Latencies: ", "# Histogram Overflows: ", "000010 \t000002", "\n"))
def test_what_cyclictest_prints_is_a_histogram_or_a_ValueError(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert cyclictest.parse_cyclictest(text).count > 0


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=10,
)
ABOUT = st.fixed_dictionaries(
    {
        "settings": st.one_of(JSON, st.dictionaries(st.sampled_from(sorted(SETTING_KINDS)), JSON, max_size=4)),
        "host": st.one_of(JSON, st.dictionaries(st.text(), JSON, max_size=3)),
        "started_ns": JSON,
    },
    optional={
        "grants": st.lists(
            st.one_of(JSON, st.dictionaries(st.sampled_from(["name", "requested", "granted", "ok", "errno"]), JSON))
        )
    },
)


@fuzz
@hypothesis.given(st.one_of(st.binary(), ABOUT.map(lambda value: json.dumps(value).encode()), st.just(b"[" * 200_000)))
def test_what_a_block_says_of_its_loop_is_of_its_kinds_or_a_ValueError(text: bytes) -> None:
    try:
        found = description.read(text)
    except ValueError:
        return
    assert type(found.started_ns) is int and all(key in SETTING_KINDS for key in found.settings)
    for key in (*found.host, *(grant.name for grant in found.grants)):
        assert all(letter.isprintable() or letter in "\n\N{REPLACEMENT CHARACTER}" for letter in key), key
    repr(found)


SIGNAL = st.fixed_dictionaries(
    {
        "name": st.one_of(st.sampled_from(["a", "b", "c", "cycle", "x y"]), JSON),
        "type": st.one_of(st.sampled_from(["f8", "?", "b1", "c16", "u1", "O", "V9"]), JSON),
        "shape": st.one_of(st.just([]), st.lists(st.integers(-1, 9000), max_size=9), JSON),
        "unit": st.one_of(st.just("rad"), JSON),
        "low": st.one_of(st.none(), st.integers(), st.floats(), JSON),
        "high": st.one_of(st.none(), st.integers(), st.floats(), JSON),
    }
)
SIGNALS = st.fixed_dictionaries(
    {
        "signals": st.one_of(st.lists(SIGNAL, max_size=3), JSON),
        "places": st.one_of(st.lists(st.one_of(st.integers(-8, 99), st.integers(), JSON), max_size=3), JSON),
    }
)


@fuzz
@hypothesis.given(
    st.one_of(st.binary(), st.one_of(JSON, SIGNALS).map(lambda value: json.dumps(value).encode())),
    st.sampled_from([0, 8, 24, 32, 64, 65536]),
)
@hypothesis.example(b'{"signals": [{"name": "a", "type": "f8", "shape": [], "unit": "", "low": null, "high": null}], '
                    b'"places": [24]}', 32)  # fmt: skip
def test_what_a_block_says_of_its_signals_is_within_a_record_or_a_ValueError(text: bytes, record_bytes: int) -> None:
    try:
        layout = signal_set.parse_layout(text, record_bytes)
    except ValueError:
        return
    fields: Any = layout.stored.fields
    assert layout.stored.itemsize == record_bytes and layout.dtype.names == layout.stored.names == tuple(fields)
    assert all(0 <= fields[name][1] <= record_bytes - fields[name][0].itemsize for name in fields)
    assert layout.dtype.itemsize <= 24 + 8192


TRACE = texts(
    "            cc1-77    [001] d.h2.   838.360022: ", " <...>-7 (  3) [000] ....1 838.360030: ", "\n",
    "CPU:1 [LOST 7 EVENTS]\n",
    "local_timer_entry: vector=236\n", "local_timer_exit: vector=236\n", "softirq_entry: vec=1 [action=TIMER]\n",
    "irq_handler_entry: irq=36 name=x\n", "irq_handler_exit: irq=36 ret=handled\n",
    "sched_switch: prev_comm=cc1 prev_pid=77 prev_prio=120 prev_state=R ==> next_comm=loop next_pid=7 next_prio=19\n",
    "sched_switch: prev_comm=loop prev_pid=7 prev_prio=19 prev_state=D ==> next_comm=cc1 next_pid=77 next_prio=120\n",
    "sched_waking: comm=loop pid=7 prio=19 target_cpu=001\n", "sched_stat_runtime: comm=cc1 pid=77 runtime=5 [ns]\n",
    "workqueue_execute_start: work struct 00: function f\n", "mm_compaction_begin: \n", "mm_compaction_end: \n",
    "signal_generate: sig=19 errno=0 code=0 comm=x pid=7 grp=1 res=0\n", "cpu_idle: state=1 cpu_id=1\n",
)  # fmt: skip


@fuzz
@hypothesis.given(TRACE, TRACE)
def test_a_trace_of_the_kernel_gives_an_explanation_that_can_be_printed(cpu: str, rare: str) -> None:
    trace_text.first_time(cpu.encode(errors="replace"))
    trace_text.last_time(cpu.encode(errors="replace"))
    machine = attribution.Machine(
        7, 7, True, True, lambda pid, prio: "FIFO 1", lambda pid: "", lambda cpu, state: "C1", lambda cpu: 10_000
    )
    base = 838_360_000_000
    for what in ("start", "execution"):
        delay = attribution.Delay(1, what, base, base, base + 40_000, 40_000)
        one = attribution.explain(delay, [*trace_text.parse(cpu)], [*trace_text.parse(rare)], machine)
        assert str(one).isprintable() and one.is_known == bool(one.name)

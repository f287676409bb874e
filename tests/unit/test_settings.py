"""The keywords of a loop: a bad value is refused with the argument's name, the value and the accepted forms."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import RTLoop
from rtloop.settings import CALLBACKS

#: Methods of a loop that it does not override, but calls.
FOR_STEP = {"shift", "sleep_until", "device_cycle"}


def test_the_settings_are_parsed_once_and_cannot_be_changed() -> None:
    loop = RTLoop("4kHz", phase="50us", align="1s", cpu=[1, 0, 1], stack_size="100K", spin="auto", name="arm")
    settings = loop.settings
    assert settings.period_ns == 250_000
    assert settings.phase_ns == 50_000
    assert settings.align_ns == 10**9
    assert settings.cpu == (0, 1)
    assert settings.stack_bytes == 128 << 10, "rounded up to the largest page size of any Linux"
    assert settings.is_spin_auto and settings.spin_ns == 0
    assert settings.name == "arm"
    with pytest.raises(AttributeError):
        settings.period_ns = 1  # type: ignore[misc]


def test_the_defaults_are_those_of_the_contract() -> None:
    s = RTLoop("1ms").settings
    assert (s.clock, s.policy, s.priority, s.cpu, s.overrun, s.max_burst, s.warmup) == (
        "monotonic", "fifo", 80, "auto", "skip", 8, 10,
    )  # fmt: skip
    assert (s.strict, s.lock_memory, s.stack_bytes, s.tune_malloc, s.core_dumps, s.dma_latency_us, s.record) == (
        True, "all", 512 << 10, False, True, 0, 65536,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("period", 0.001),
        ("period", 0),
        ("phase", "-1ms"),
        ("align", 0),
        ("clock", "monotonic_raw"),
        ("policy", "batch"),
        ("priority", 0),
        ("priority", 100),
        ("priority", True),
        ("cpu", "all"),
        ("cpu", -1),
        ("cpu", []),
        ("cpu", 1.0),
        ("cpu", True),
        ("cpu", b"01"),
        ("spin", "always"),
        ("overrun", "ignore"),
        ("max_burst", 0),
        ("max_overruns", 0),
        ("warmup", -1),
        ("strict", "no"),
        ("lock_memory", True),
        ("stack_size", "32K"),
        ("core_dumps", 0),
        ("dma_latency", 1.0),
        ("guard", "sometimes"),
        ("guard_allow", "getppid"),
        ("guard_allow", ("get_parent",)),
        ("guard_allow", (39,)),
        ("guard_allow", ("getppid", "vfork")),
        ("record", -1),
        ("name", ""),
        ("name", "a\nb"),
        ("name", "\ud800"),
        ("period", 400 * 86400 * 10**9),
        ("phase", 2**62),
        ("dma_latency", "1h"),
        ("stack_size", "2G"),
        ("record", 2**40),
        ("warmup", 2**64),
        ("runtime", "100us"),
        ("deadline", "1ms"),
    ],
)
def test_a_bad_value_is_refused_by_name(keyword: str, value: object) -> None:
    arguments = {"period": "1ms", keyword: value}
    with pytest.raises(rtloop.ConfigError, match=keyword) as caught:
        RTLoop(**arguments)  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("spin", ["1ms", "1h", 10**6])
def test_a_loop_that_spins_all_the_time_is_refused(spin: object) -> None:
    with pytest.raises(rtloop.ConfigError, match=r"spin=.* must be less than period=1 ms: otherwise the loop would"):
        RTLoop("1ms", policy="other", spin=spin)  # type: ignore[arg-type]
    assert RTLoop("1ms", spin="999us").settings.spin_ns == 999_000, "the rest depends on the kernel's settings"


@pytest.mark.parametrize("keyword", ["priority", "warmup", "cpu", "name", "overrun", "strict", "guard"])
def test_a_value_of_thousands_of_digits_is_refused_in_a_short_message(keyword: str) -> None:
    with pytest.raises(rtloop.ConfigError, match=keyword) as caught:
        RTLoop("1ms", **{keyword: 10**5000})  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


class Controller(RTLoop):
    """What a user calls, and expects to read in a message."""


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("perod", "period"),
        ("prio", "priority"),
        ("stack", "stack_size"),
        ("rate", "period"),
        ("lock_memroy", "lock_memory"),
    ],
)
def test_an_unknown_keyword_names_the_users_class_and_the_keyword_that_was_meant(keyword: str, meant: str) -> None:
    expected = rf"^Controller\(\) got an unexpected keyword argument '{keyword}'; did you mean '{meant}'\?$"
    for arguments in ((), ("1ms",)):
        with pytest.raises(TypeError, match=expected):
            Controller(*arguments, **{keyword: "1ms"})  # type: ignore[arg-type]


def test_a_call_that_does_not_fit_is_a_type_error_in_the_name_of_the_class() -> None:
    call: Any = Controller
    with pytest.raises(TypeError, match=r"^Controller\(\) needs its argument 'period'.*'1ms'"):
        call()
    with pytest.raises(TypeError, match=r"^Controller\(\) takes one positional argument.* got 2"):
        call("1ms", "2ms")
    with pytest.raises(TypeError, match=r"^Controller\(\) got two values for its argument 'period'"):
        call("1ms", period="2ms")
    with pytest.raises(TypeError, match=r"'xyzzy'; the keywords are period, phase, align, clock"):
        call("1ms", xyzzy=1)
    assert call(period="1ms").settings.period_ns == 10**6


@pytest.mark.parametrize(
    "value",
    [1, np.int64(1), np.array(1), np.array([1]), [np.int32(1)], {1}, range(1, 2), iter([1, 1])],
    ids=lambda value: type(value).__name__,  # the repr of an iterator has its address
)
def test_cpus_are_integers_of_any_kind_and_iterables_of_them(value: Any) -> None:
    assert RTLoop("1ms", cpu=value).settings.cpu == (1,)
    assert RTLoop("1ms", cpu=np.array([3, 1, 2])).settings.cpu == (1, 2, 3)


@pytest.mark.parametrize("value", [[0, 8192], np.array([0.5]), [True], ["0"]], ids=repr)
def test_each_of_several_cpus_is_checked(value: Any) -> None:
    with pytest.raises(rtloop.ConfigError, match=r"cpu=.* must be an int from 0 to 8191"):
        RTLoop("1ms", cpu=value)


@pytest.mark.parametrize("value", [1, 10, 5000, np.int64(10)])
def test_a_run_shorter_than_a_period_by_a_bare_int_is_refused(value: int, ordinary: dict[str, Any]) -> None:
    loop = RTLoop("1ms", **ordinary)
    with pytest.raises(rtloop.ConfigError, match=rf"duration=.*bare int is nanoseconds.*did you mean '{value}s'"):
        loop.run(duration=value)
    assert loop.state == "new", "nothing was started"


def test_a_run_is_as_long_as_its_duration_says(ordinary: dict[str, Any]) -> None:
    loop = RTLoop("2ms", **ordinary)
    assert loop.run(duration=10_000_000).cycles + loop.stats.missed >= 5
    assert loop.run(duration="1us").cycles == 1, "with its unit a short run is meant: it has one release"


@pytest.mark.parametrize("method", ["stop", "join"])
def test_a_timeout_without_its_unit_is_refused(method: str, ordinary: dict[str, Any]) -> None:
    with RTLoop("1ms", **ordinary) as loop:
        with pytest.raises(rtloop.ConfigError, match=r"timeout=5 is 5 ns.*'5s'"):
            getattr(loop, method)(timeout=5)
        assert loop.state == "running"


def test_a_period_under_which_no_thread_can_sleep_is_refused() -> None:
    with pytest.raises(rtloop.ConfigError, match=r"period='1ns'.*at least 2 us"):
        RTLoop("1ns")
    with pytest.raises(rtloop.ConfigError, match=r"period=1000 is 1 us.*'1000Hz'"):
        RTLoop(1000)


def test_priority_99_warns() -> None:
    with pytest.warns(rtloop.RTSetupWarning, match="kernel's own threads") as caught:
        RTLoop("1ms", priority=99)
    assert caught[0].filename == __file__, "the warning points at the caller"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "needs runtime"),
        ({"runtime": "200us", "cpu": 0}, "pinned"),
        ({"runtime": "200us", "deadline": "100us"}, "runtime <= deadline <= period"),
        ({"runtime": "200us", "deadline": "2ms"}, "runtime <= deadline <= period"),
        ({"runtime": "990us"}, "5 %"),
        ({"runtime": 1000}, "runtime"),
        ({"runtime": "100us", "spin": "100us"}, "spin"),
    ],
)
def test_a_deadline_loop_is_validated_before_the_kernel_is_asked(settings: dict[str, object], text: str) -> None:
    with pytest.raises(rtloop.ConfigError, match=text):
        RTLoop("1ms", policy="deadline", **settings)  # type: ignore[arg-type]


def test_the_signature_is_there_for_people_and_editors() -> None:
    import inspect

    parameters = inspect.signature(RTLoop).parameters
    assert list(parameters)[:3] == ["period", "phase", "align"]
    assert parameters["priority"].default == 80
    assert parameters["name"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", ["", " ", "\x1b[2J", 3])
def test_a_loop_a_group_and_a_chain_refuse_the_same_names(name: Any) -> None:
    loops = [RTLoop("1ms"), RTLoop("2ms")]
    for make in (
        lambda: RTLoop("1ms", name=name),
        lambda: rtloop.LoopGroup(loops, name=name),
        lambda: rtloop.Chain(loops, name=name),
    ):
        with pytest.raises(rtloop.ConfigError, match="must be a str of printable characters"):
            make()


def test_the_callbacks_are_the_methods_that_the_class_declares_but_those_for_step_to_call() -> None:
    text = Path(rtloop.__file__).with_name("loop").joinpath("loop.pxd").read_text()
    text = re.sub(r"_RTLoop_\d+ former", "RTLoop former", text)  # as the front door names it
    methods = re.findall(r"^    (cdef \w+ ((?!_)\w+)\(self.*\) noexcept nogil)$", text, re.MULTILINE)
    assert {name: declaration for declaration, name in methods if name not in FOR_STEP} == CALLBACKS

"""The keywords of a loop: each bad value is refused with the argument's name, the value, and what is accepted."""

import pytest

import rtloop
from rtloop import RTLoop


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
        ("guard", "count"),
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


def test_an_unknown_keyword_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="prio"):
        RTLoop("1ms", prio=80)  # type: ignore[call-arg]


def test_T11_priority_99_warns() -> None:
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
def test_T10_a_deadline_loop_is_validated_before_the_kernel_is_asked(settings: dict[str, object], text: str) -> None:
    with pytest.raises(rtloop.ConfigError, match=text):
        RTLoop("1ms", policy="deadline", **settings)  # type: ignore[arg-type]


def test_the_signature_is_there_for_people_and_editors() -> None:
    import inspect

    parameters = inspect.signature(RTLoop).parameters
    assert list(parameters)[:3] == ["period", "phase", "align"]
    assert parameters["priority"].default == 80
    assert parameters["name"].kind is inspect.Parameter.KEYWORD_ONLY

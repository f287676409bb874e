"""Targets of ``rtloop run``: found by name, created with the given keywords, or refused with a message."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rtloop
from rtloop.revision.tracebacks import describe_exception
from rtloop.tools.run.show import describe_progress
from rtloop.tools.run.target import Name, Target, TargetError, find_target, make_loop, parse_value

STEPS = """\
import rtloop

def step(cycle, gain=1.0):
    return cycle.index * gain >= 6

class Counter:
    def __init__(self, limit=3):
        self.limit = limit
    def __call__(self, cycle):
        return cycle.index >= self.limit

class Empty: pass

class Slow(rtloop.RTLoop):
    def __init__(self, period, *, gain=1.0, **settings):
        super().__init__(period, **settings)
        self.gain = gain
    limit = property(lambda self: self._limit, lambda self, value: setattr(self, "_limit", float(value)))
    name_of_nothing = 3

class Odd(rtloop.RTLoop):
    def __init__(self):
        super().__init__("1kHz")

class Closed(rtloop.RTLoop):
    def __init__(self, period):
        super().__init__(period, policy="other", lock_memory="off", dma_latency=None)

class Python(rtloop.RTLoop):
    def step(self, cycle): pass

class Raises(rtloop.RTLoop):
    def __init__(self, period, **settings):
        super().__init__(period, **settings)
        self.setup_motor()
    def setup_motor(self):
        raise TypeError("no motor")

made = rtloop.PyLoop(step, "1kHz")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "steps.py").write_text(STEPS)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def made(text: str, settings: dict[str, Any] | None = None, **given: Any) -> rtloop.RTLoop:
    easy = {"policy": "other", "lock_memory": "off", "dma_latency": None, "strict": False}
    return make_loop(find_target(text), 1_000_000, settings or {}, easy, given)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2.0", 2.0), ("-3", -3), ("1e3", 1000.0), ("true", True), ("False", False), ("none", None), ("[1, 2]", [1, 2]),
        ("'3'", "3"), ("250us", "250us"), ("fifo", "fifo"), ("", ""), ("inf", math.inf), ("007", 7.0), ("a(c)", "a(c)"),
    ],
)  # fmt: skip
def test_a_value_is_a_literal_or_else_text(text: str, value: Any) -> None:
    found = parse_value(text)
    assert found == value and type(found) in (type(value), Name)


def test_a_folder_is_not_taken_for_a_missing_file(folder: Path) -> None:
    (folder / "servo.pyx").mkdir()
    with pytest.raises(TargetError, match=r"^servo\.pyx is a folder$"):
        find_target("servo.pyx")


def test_a_file_with_only_a_callable_class_runs_it(folder: Path) -> None:
    (folder / "only.py").write_text(
        "class Base: pass\nclass Control:\n    def __call__(self, cycle):\n        return cycle.index >= 2\n"
    )
    assert made("only.py").run().cycles == 3


def test_a_word_that_names_an_object_of_the_file_is_that_object(folder: Path) -> None:
    (folder / "named.py").write_text(
        "LIMIT = 2\nclass Limits:\n    limit = 4\n"
        "def step(cycle, limit=0, limits=None, word=''):\n"
        "    assert type(word) is str and word in ('', 'other')\n"
        "    return cycle.index >= (limits.limit if limits else limit)\n"
    )
    word = parse_value("other")
    assert made("named.py", limit=parse_value("LIMIT"), word=word).run().cycles == 3
    assert made("named.py", limits=parse_value("Limits")).run().cycles == 5, "a class is instantiated"
    (folder / "picky.py").write_text("class Motor:\n    def __init__(self, port): pass\ndef step(cycle, m): pass\n")
    with pytest.raises(TargetError, match=r"m=Motor: Motor\(\) cannot be created: .*port"):
        made("picky.py", m=parse_value("Motor"))


def test_a_function_of_python_runs_with_its_keywords() -> None:
    loop = made("steps.py:step", gain=2.0)
    assert isinstance(loop, rtloop.PyLoop) and loop.name == "step"
    assert loop.run().cycles == 4
    assert made("steps:step").run().cycles == 7, "as a module of this folder, too"


def test_a_class_that_can_be_called_is_made_and_run() -> None:
    assert made("steps.py:Counter", limit=5).run().cycles == 6


def test_settings_go_to_the_loop_and_the_rest_to_the_function() -> None:
    loop = made("steps.py:step", {"name": "arm"}, gain=2.0, warmup=1)
    assert (loop.name, loop.settings.warmup) == ("arm", 1)


def test_a_keyword_of_the_constructor_goes_before_an_attribute() -> None:
    loop: Any = made("steps.py:Slow", gain=4.0, limit=2)
    assert (loop.gain, loop.limit) == (4.0, 2.0)


def test_what_a_class_does_not_hand_on_is_not_forced_on_it() -> None:
    assert made("steps.py:Closed").settings.strict is True
    with pytest.raises(TargetError, match=r"does not take priority=3, because its __init__ does not pass it on"):
        made("steps.py:Closed", {"priority": 3})


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("nothing.py", {}, "there is no file nothing.py"),
        ("step.py", {}, "there is no file step.py; did you mean steps.py?"),
        ("no_such_module:X", {}, "there is no file and no module no_such_module"),
        ("a b:X", {}, "is not a .pyx, a .py or a module's name"),
        ("steps.py:stepp", {}, "steps.py has no stepp; did you mean step?"),
        ("steps.py:Zebra", {}, "there are Slow, Odd, Closed, Python, Raises, step"),
        ("steps.py", {}, "several that can be run: Slow, Odd, Closed, Python, Raises; say which one, steps.py:Slow"),
        ("steps.py:step", {"gian": 1}, r"unexpected keyword argument 'gian'; it is step(cycle, gain=1.0)"),
        ("steps.py:Counter", {"limitt": 1}, "it is Counter(limit=3)"),
        ("steps.py:Empty", {}, "neither a subclass of RTLoop nor callable"),
        ("steps.py:made", {}, "made is a loop object"),
        ("steps.py:Slow", {"gian": 1}, "Slow does not take 'gian'; did you mean 'gain'?"),
        ("steps.py:Slow", {"prioriti": 1}, "did you mean 'priority'?"),
        ("steps.py:Slow", {"limit": "x"}, "Slow.limit cannot be 'x': could not convert"),
        ("steps.py:Odd", {}, "its __init__ must take the period first"),
        ("steps.py:Python", {}, "Python.step is a Python method"),
    ],
)
def test_what_cannot_be_run_is_refused_in_a_sentence(text: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError) as caught:
        made(text, **given)
    assert message in str(caught.value)


def test_a_class_from_which_another_one_of_the_file_is_derived_does_not_count(folder: Path) -> None:
    begin = "import rtloop\n\nclass State(rtloop.RTLoop): pass\n\nclass Servo(State): pass\n\nMotor = Servo\n"
    (folder / "servo.py").write_text(begin)
    assert find_target("servo.py").name == "Servo"
    assert find_target("servo.py:State").name == "State"
    (folder / "pair.py").write_text(f"{begin}\nclass Arm(State): pass\n")
    with pytest.raises(TargetError, match=r"several that can be run: Servo, Arm; say which one, pair\.py:Servo"):
        find_target("pair.py")
    called = "class Base:\n    def __call__(self, cycle): return True\n\nclass Law(Base): pass\n"
    (folder / "law.py").write_text(called)
    assert find_target("law.py").name == "Law"


def test_what_a_class_takes_is_listed() -> None:
    with pytest.raises(TargetError) as caught:
        made("steps.py:Slow", gian=1)
    lines = str(caught.value).splitlines()
    assert lines[1] == "  constructor  Slow(period, *, gain=1.0, **settings)"
    assert lines[2] == "  attributes   limit"
    assert lines[3].startswith("  settings     phase, align, ")


def test_an_error_in_the_user_s_code_is_the_user_s() -> None:
    with pytest.raises(TypeError, match="no motor") as caught:
        made("steps.py:Raises")
    text = describe_exception(caught.value)
    assert text.startswith("Traceback (most recent call last):\n")
    assert 'raise TypeError("no motor")' in text and text.endswith("\nTypeError: no motor")
    assert "rtloop/tools" not in text and "rtloop/loop" not in text


def test_a_module_that_lacks_another_says_which(folder: Path) -> None:
    (folder / "lacking.py").write_text("import not_installed_here\n")
    for text in ("lacking.py", "lacking:X"):
        with pytest.raises(ModuleNotFoundError, match="not_installed_here"):
            find_target(text)


def test_a_file_named_like_a_module_of_python_does_not_take_its_place(folder: Path) -> None:
    import textwrap

    (folder / "textwrap.py").write_text("def step(cycle): return True\n")
    assert find_target("textwrap.py").name == "step"
    assert sys.modules["textwrap"] is textwrap


def test_a_file_finds_its_neighbours(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "gains_of_arm.py").write_text("K = 7\n")
    (folder / "sub" / "arm_step.py").write_text(
        "from gains_of_arm import K\ndef step(cycle): return cycle.index >= K\n"
    )
    assert made("sub/arm_step.py").run().cycles == 8


def test_code_as_a_value_is_explained(folder: Path) -> None:
    """It would be a str, and the error that of whatever takes no str."""
    (folder / "motor.py").write_text(
        "class Motor: pass\nmotors = [Motor()]\ndef step(cycle, motor=None): return True\n"
    )
    why = r"motor=Motor\(\): -p does not run code.*-p motor=Motor, and the class is created without arguments"
    with pytest.raises(TargetError, match=why):
        made("motor.py:step", motor="Motor()")
    for text in ("Motor(3)", "motors.append", "Motor.mro()"):
        with pytest.raises(TargetError, match=r"-p does not run code.*-p motor=NAME"):
            made("motor.py:step", motor=text)
    made("motor.py:step", motor="nobody.knows(1)")  # a text


def test_a_compiled_function_gets_an_array_of_its_file(folder: Path) -> None:
    (folder / "native.py").write_text(
        "import ctypes, numpy as np\nstate = np.zeros(2)\n"
        "libc = ctypes.CDLL(None)\nabs_ = libc.labs\n"
    )  # fmt: skip
    loop: Any = made("native.py:abs_", data="state")
    assert isinstance(loop, rtloop.FunctionLoop)
    assert loop.data is sys.modules["native"].state  # type: ignore[attr-defined]
    with pytest.raises(TargetError, match="native has no stat"):
        made("native.py:abs_", data="stat")
    with pytest.raises(TargetError, match="does not take 'gain': pass data, -p data=NAME"):
        made("native.py:abs_", gain=2)


def test_a_compiled_function_without_data_is_refused_if_it_may_use_it(folder: Path) -> None:
    """Its argument would be address 0, and the first cycle a segmentation fault."""
    (folder / "native.py").write_text(
        "import ctypes, numpy as np\nstate = np.zeros(2)\nstep = ctypes.CDLL(None).labs\n"
        "leave = ctypes.CDLL(None).abs\noff = 'off'\n"
    )
    why = r"may use its argument data.*and crash; pass an array of the file, -p data=state, or give -p data=none"
    with pytest.raises(TargetError, match=f"^step {why}"):
        made("native.py")
    loop: Any = made("native.py", data=None)
    assert isinstance(loop, rtloop.FunctionLoop) and loop.data is None
    made("native.py", data="state", leave="leave", enter="step")
    with pytest.raises(TargetError, match="leave=rest: native has no rest"):
        made("native.py", data="state", leave="rest")
    with pytest.raises(TargetError, match="step cannot be run: leave='off' is not a compiled function"):
        made("native.py", data="state", leave="off")


def test_a_numba_function_is_known_to_use_data_or_not(folder: Path) -> None:
    pytest.importorskip("numba", reason="needs rtloop[numba]")
    (folder / "jitted.py").write_text("""
from numba import carray, cfunc
import numpy as np, rtloop, rtloop.numba
@cfunc(rtloop.numba.signature)
def step(cycle, data):
    return np.int32(carray(data, 1, dtype=np.int64)[0])
@cfunc(rtloop.numba.signature)
def idle(cycle, data):
    return rtloop.RT_CONTINUE
@cfunc(rtloop.numba.leave_signature)
def leave(data):
    carray(data, 1, dtype=np.int64)[0] = 0
""")
    with pytest.raises(TargetError, match=r"^step uses its argument data.*address 0 and crash; .* -p data=NAME$"):
        made("jitted.py:step")
    with pytest.raises(TargetError, match=r"^step uses its argument data, and -p data=none gives it no array"):
        made("jitted.py:step", data=None)
    assert made("jitted.py:idle").simulate(cycles=3).cycles == 3
    with pytest.raises(TargetError, match=r"^leave uses its argument data"):
        made("jitted.py:idle", leave="leave")


def test_a_class_without_a_step_is_noticed(folder: Path) -> None:
    from rtloop.tools.run.target import Target, has_no_step

    code = "cdef class Slow(RTLoop):\n    cdef int {}(self, const Cycle *c) noexcept nogil:\n        pass\n"
    slow = find_target("steps.py:Slow")
    for name, expected in (("step", False), ("stp", True), ("misstep", True)):
        (folder / "slow.pyx").write_text(
            code.format(name) + "cdef class Other(RTLoop):\n    cdef int step(self): pass\n"
        )
        built: Any = object()
        assert has_no_step(Target(slow.thing, "Slow", slow.module, folder / "slow.pyx", built)) is expected
    assert not has_no_step(slow), "of a class from elsewhere nothing is known"


@pytest.mark.parametrize(("base", "leaf"), [("step", "stp"), ("stp", "step"), ("stp", "stp")])
def test_a_step_and_a_constructor_are_looked_for_in_the_bases_of_the_file(folder: Path, base: str, leaf: str) -> None:
    from rtloop.tools.run.target import Target, has_no_step

    classes = "class State(rtloop.RTLoop):\n    def __init__(self, period, *, gain=1.0, **settings):\n"
    classes += "        super().__init__(period, **settings)\n\nclass Servo(State): pass\n"
    (folder / "servo.py").write_text(f"import rtloop\n\n{classes}")
    found = find_target("servo.py")
    code = "cdef class State(RTLoop):\n    cdef int {}(self): pass\n\n"
    code += "cdef class Servo(State):\n    cdef int {}(self): pass\n"
    (folder / "servo.pyx").write_text(code.format(base, leaf))
    built: Any = object()
    target = Target(found.thing, "Servo", found.module, folder / "servo.pyx", built)
    assert has_no_step(target) is ("step" not in (base, leaf))
    with pytest.raises(TargetError, match=r"constructor  Servo\(period, \*, gain=1\.0, \*\*settings\)"):
        made("servo.py", gian=2.0)


def test_the_live_line_says_what_matters() -> None:
    loop = made("steps.py:step", gain=0.1)
    assert describe_progress(loop.stats) == "0 cycles"
    stats = loop.run(cycles=40)
    line = describe_progress(stats)
    assert line.startswith("40 cycles, latency ") and ", max " in line
    assert "latency" not in describe_progress(stats, is_brief=True)


def test_the_leave_of_a_callable_class_is_called(folder: Path) -> None:
    (folder / "drive.py").write_text(
        "class Drive:\n    def __call__(self, cycle):\n        return cycle.index >= 2\n"
        "    def leave(self):\n        open('left', 'a').write('left')\n"
    )
    assert made("drive.py").run().cycles == 3 and (folder / "left").read_text() == "left"


def test_a_name_that_only_a_parameter_has_is_set_as_that(tuned_path: Path) -> None:
    sys.path.insert(0, str(tuned_path))
    values = made("tuned:Tuned", a=3.0, mode=2).parameters
    assert (values["a"], values["b"], values["mode"]) == (3.0, 1.0, 2)
    with pytest.raises(rtloop.ConfigError, match="a=2000"):
        made("tuned:Tuned", a=2000.0)
    with pytest.raises(TargetError, match="Tuned does not take 'gain'; did you mean 'gains'") as caught:
        made("tuned:Tuned", gain=1.0)
    listed = next(line for line in str(caught.value).splitlines() if line.startswith("  parameters   "))
    assert {"a", "b", "mode"} <= set(listed.split(maxsplit=1)[1].rstrip(",").split(", "))


class Choosing(rtloop.PyLoop):
    """Chooses its clock, and takes one keyword of the signals only."""

    def __init__(self, period: Any, *, signals_every: int = 1, **settings: Any) -> None:
        if settings.pop("signals_capacity", None) is not None:
            raise TypeError("__init__() got an unexpected keyword argument 'signals_capacity'")
        super().__init__(lambda cycle: None, period, clock="tai", signals_every=signals_every, **settings)


def test_a_successor_has_the_settings_that_matter_unless_its_class_chooses_them() -> None:
    from rtloop.revision.successor import create_successor, successor_settings

    loop = rtloop.RTLoop("2ms", clock="tai", signals_every=3, signals_capacity=500, priority=70, guard="count")
    settings = successor_settings(loop)
    assert settings == {"clock": "tai", "signals_every": 3, "signals_capacity": 500}
    assert successor_settings(rtloop.RTLoop("1ms")) == {}
    target = Target(Choosing, "Choosing", sys.modules[__name__], None, None)
    for made in (
        create_successor(Choosing, "2ms", settings), make_loop(target, "2ms", {}, {"strict": False, **settings}, {}),
    ):  # fmt: skip
        assert (made.settings.clock, made.settings.signals_every, made.settings.period_ns) == ("tai", 3, 2_000_000)
    made = make_loop(target, "2ms", {}, settings, {"signals_every": 5})
    assert made.settings.signals_every == 5, "-p is asked for by name"

"""FunctionLoop: compiled functions from every tool as steps, their data, and refusals."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rtloop
from rtloop import FunctionLoop

counter_dtype = np.dtype([("steps", "i8"), ("stop_at", "i8"), ("code", "i8"), ("t", "f8")])
SIGNATURE = r"int \(const rt_cycle_t \*cycle, void \*data\)"
C_DECLARATION = "int count(const struct rt_cycle *, void *);"


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory, compiler: list[str]) -> Path:
    """The shared library of tests/support/steps.c, built against nothing but rtloop's header."""
    library = tmp_path_factory.mktemp("steps") / "steps.so"
    source = Path(__file__).parents[1] / "support" / "steps.c"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", f"-I{rtloop.get_include()}"]
    subprocess.run([*compiler, *flags, str(source), "-o", str(library)], check=True)
    return library


@pytest.fixture
def library(steps: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(steps))


def from_ctypes(steps: Path) -> Any:
    return ctypes.CDLL(str(steps)).count


def from_typed_ctypes(steps: Path) -> Any:
    function = ctypes.CDLL(str(steps)).count
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64)], ctypes.c_int
    return function


def from_address(steps: Path) -> Any:
    return ctypes.cast(from_ctypes(steps), ctypes.c_void_p).value


def from_cffi(steps: Path) -> Any:
    ffi = pytest.importorskip("cffi").FFI()
    ffi.cdef(C_DECLARATION)
    return ffi.addressof(ffi.dlopen(str(steps)), "count")


def from_cffi_void(steps: Path) -> Any:
    ffi = pytest.importorskip("cffi").FFI()
    return ffi.cast("void *", from_address(steps))


def from_scipy(steps: Path) -> Any:
    return pytest.importorskip("scipy").LowLevelCallable(from_typed_ctypes(steps))


def from_scipy_cffi(steps: Path) -> Any:
    return pytest.importorskip("scipy").LowLevelCallable(from_cffi(steps))


def capsule(address: int, name: bytes, context: int = 0) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.argtypes, new.restype = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p], ctypes.py_object
    return new(address, name, None)


NAME = b"int (struct Cycle const *, void *)"


def from_capsule(steps: Path) -> Any:
    return capsule(from_address(steps), NAME)


def from_numba(steps: Path) -> Any:
    numba = pytest.importorskip("numba")
    import rtloop.numba

    assert sys.modules["numba"] is numba and rtloop.numba is not numba

    @numba.cfunc(rtloop.numba.signature)
    def count(cycle: Any, data: Any) -> int:
        now = numba.carray(cycle, 1)[0]
        counter = numba.carray(data, 3, dtype=np.int64)
        counter[0] += 1
        numba.carray(data, 4, dtype=np.float64)[3] = now.t
        if counter[0] == counter[1]:
            return np.int32(counter[2])
        return rtloop.RT_CONTINUE

    return count


FORMS = [
    from_ctypes, from_typed_ctypes, from_address, from_cffi, from_cffi_void, from_scipy, from_scipy_cffi, from_capsule,
    from_numba,
]  # fmt: skip


@pytest.mark.parametrize("make", FORMS)
def test_a_compiled_function_is_a_step(make: Callable[[Path], Any], steps: Path, ordinary: dict[str, Any]) -> None:
    data = np.zeros(1, counter_dtype)
    callback = make(steps)
    loop = FunctionLoop(callback, "1ms", data=data, **ordinary)
    stats = loop.run(cycles=30)
    assert stats.cycles == data["steps"][0] == 30
    assert data["t"][0] >= 0.029 - 1e-9
    assert loop.callback is callback and loop.data is data
    data[:] = 0
    data["stop_at"], data["code"] = 7, 1
    assert loop.simulate("1s").cycles == 7, "RT_STOP is a normal end"
    data["steps"], data["code"] = 0, -5
    with pytest.raises(rtloop.CallbackError, match=r"step\(\) returned -5 in cycle 6.*EIO"):
        loop.run()


def test_the_example_of_the_numba_module_compiles_and_runs() -> None:
    pytest.importorskip("numba", reason="needs rtloop[numba]")
    import rtloop.numba

    text = (rtloop.numba.__doc__ or "").split("::\n\n", 1)[1]
    lines = text.splitlines()
    end = next(i for i, line in enumerate(lines) if line and not line.startswith(" "))
    found: dict[str, Any] = {}
    exec(textwrap.dedent("\n".join(lines[:end])), found)
    loop: FunctionLoop = found["loop"]
    loop.data[:] = 0, 2
    assert loop.simulate(cycles=1000).cycles == 1000
    assert loop.data[0] == pytest.approx(2.0)


def test_a_cython_function_is_one_by_its_capsule(probes: Any) -> None:
    data = np.zeros(1, np.int64)
    FunctionLoop(probes.__pyx_capi__["exported_step"], "1ms", data=data).simulate(cycles=12)
    assert data[0] == 12


def test_scipy_brings_its_own_data(steps: Path) -> None:
    scipy = pytest.importorskip("scipy")
    counter = np.zeros(1, counter_dtype)
    callback = scipy.LowLevelCallable(from_typed_ctypes(steps), counter.ctypes.data_as(ctypes.c_void_p))
    FunctionLoop(callback, "1ms").simulate(cycles=5)
    assert counter["steps"] == 5
    with pytest.raises(rtloop.ConfigError, match="its own user_data"):
        FunctionLoop(callback, "1ms", data=counter)


def test_without_data_the_function_gets_null(library: ctypes.CDLL) -> None:
    assert FunctionLoop(library.nothing, "1ms").simulate(cycles=5).cycles == 5
    with pytest.raises(rtloop.CallbackError, match="EINVAL"):
        FunctionLoop(library.nothing, "1ms", data=bytearray(8)).simulate(cycles=5)


# The data.


@pytest.mark.parametrize(
    "make", [bytearray, lambda n: memoryview(bytearray(n)), lambda n: np.zeros(n // 8).reshape(2, -1)]
)
def test_anything_with_a_writable_buffer_is_data(make: Callable[[int], Any], library: ctypes.CDLL) -> None:
    data = make(32)
    FunctionLoop(library.count, "1ms", data=data).simulate(cycles=3)
    assert np.frombuffer(data, np.int64)[0] == 3


@pytest.mark.parametrize("dtype", ["M8[ns]", [("at", "M8[ns]"), ("value", "f8")]])
def test_times_of_numpy_are_data(dtype: Any, library: ctypes.CDLL, ordinary: dict[str, Any]) -> None:
    data = np.zeros(100, dtype)
    FunctionLoop(library.count, "1ms", data=data, **ordinary).simulate(cycles=3)
    assert data.view("i8")[0] == 3


def test_a_huge_buffer_is_data(library: ctypes.CDLL) -> None:
    buffer = rtloop.HugeBuffer("64K", backing="pages")
    FunctionLoop(library.count, "1ms", data=buffer).simulate(cycles=3)
    assert buffer.array("i8")[0] == 3


def test_data_is_held_and_cannot_be_resized(library: ctypes.CDLL) -> None:
    data = bytearray(64)
    loop = FunctionLoop(library.count, "1ms", data=data)
    with pytest.raises(BufferError):
        data.extend(b"more")
    del loop
    gc.collect()
    data.extend(b"more")

    array = np.zeros(8)
    alive = weakref.ref(array)
    loop = FunctionLoop(library.count, "1ms", data=array)
    with pytest.raises(ValueError, match="resize"):
        array.resize(1000)
    del array
    gc.collect()
    assert alive() is not None, "the loop uses its memory"
    del loop
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"constant", "no writable"),
        (np.zeros(10)[::2], "ascontiguousarray"),
        (np.zeros((4, 4), order="F"), "ascontiguousarray"),
        ([1.0, 2.0], "list has no writable"),
        (5.0, "float has no writable"),
        (np.array([object()]), "Python objects"),
    ],
    ids=["bytes", "strided", "fortran", "list", "float", "objects"],
)
def test_data_that_cannot_be_shared_is_refused(data: Any, message: str, library: ctypes.CDLL) -> None:
    with pytest.raises(rtloop.ConfigError, match=message):
        FunctionLoop(library.count, "1ms", data=data)


def test_read_only_data_is_refused(library: ctypes.CDLL) -> None:
    data = np.zeros(8)
    data.flags.writeable = False
    with pytest.raises(rtloop.ConfigError, match="no writable"):
        FunctionLoop(library.count, "1ms", data=data)


def test_the_data_is_locked_while_the_loop_runs_and_a_grant_says_so(library: ctypes.CDLL) -> None:
    data = np.zeros(2048)  # 16 KiB: within what every user may lock
    settings: dict[str, Any] = {"policy": "other", "dma_latency": None, "record": 16, "stack_size": "64K"}
    loop = FunctionLoop(library.count, "1ms", data=data, lock_memory="own", strict=False, **settings)
    loop.run(cycles=3)
    (grant,) = [grant for grant in loop.grants if grant.name == "data"]
    assert grant.requested == "16 KiB, locked"
    data[:] = 0
    loop = FunctionLoop(library.count, "1ms", data=data, lock_memory="off", **settings)
    loop.run(cycles=3)
    (grant,) = [grant for grant in loop.grants if grant.name == "data"]
    assert "locked" not in grant.requested


def test_a_library_stays_loaded_while_a_loop_needs_it(steps: Path, script: Callable[..., Any]) -> None:
    pytest.importorskip("cffi")
    done = script(f"""
        import cffi, gc, numpy as np, rtloop
        ffi = cffi.FFI()
        ffi.cdef("int count(void *, void *);")
        library = ffi.dlopen({str(steps)!r})
        data = np.zeros(4, "i8")
        loop = rtloop.FunctionLoop(library.count, "1ms", data=data)
        ffi.dlclose(library)
        loop.simulate(cycles=5)
        print(data[0], {str(steps)!r} in open("/proc/self/maps").read())
        del loop
        gc.collect()
        print({str(steps)!r} in open("/proc/self/maps").read())
    """)
    assert done.stdout == "5 True\nFalse\n", done.stderr


# Its ends.

ENDS_DTYPE = np.dtype([(name, "i8") for name in ("enters", "steps", "leaves", "code", "steps_at_leave")])


def typed(steps: Path, name: str) -> Any:
    function = ctypes.CDLL(str(steps))[name]
    function.argtypes, function.restype = [ctypes.c_void_p], None if name == "rest" else ctypes.c_int
    return function


def address_of(steps: Path, name: str) -> int:
    return ctypes.cast(ctypes.CDLL(str(steps))[name], ctypes.c_void_p).value or 0


def in_cffi(steps: Path, name: str) -> Any:
    ffi = pytest.importorskip("cffi").FFI()
    ffi.cdef("int begin(void *); void rest(void *);")
    return ffi.addressof(ffi.dlopen(str(steps)), name)


def in_scipy(steps: Path, name: str) -> Any:
    return pytest.importorskip("scipy").LowLevelCallable(typed(steps, name))


def in_numba(steps: Path, name: str) -> Any:
    numba = pytest.importorskip("numba")
    import rtloop.numba

    if name == "begin":

        @numba.cfunc(rtloop.numba.enter_signature)
        def begin(data: Any) -> int:
            numba.carray(data, 1, dtype=np.int64)[0] += 1
            return np.int32(numba.carray(data, 4, dtype=np.int64)[3])

        return begin

    @numba.cfunc(rtloop.numba.leave_signature)
    def rest(data: Any) -> None:
        ends = numba.carray(data, 5, dtype=np.int64)
        ends[2] += 1
        ends[4] = ends[1]

    return rest


END_FORMS: dict[str, Callable[[Path, str], Any]] = {
    "ctypes": lambda steps, name: ctypes.CDLL(str(steps))[name],
    "typed ctypes": typed,
    "address": address_of,
    "cffi": in_cffi,
    "scipy": in_scipy,
    "capsule": lambda steps, name: capsule(
        address_of(steps, name), b"int (void *)" if name == "begin" else b"void (void *)"
    ),
    "numba": in_numba,
}


@pytest.mark.parametrize("form", END_FORMS)
def test_enter_and_leave_come_in_pairs_around_the_steps(form: str, steps: Path, ordinary: dict[str, Any]) -> None:
    data = np.zeros((), ENDS_DTYPE)
    enter, leave = END_FORMS[form](steps, "begin"), END_FORMS[form](steps, "rest")
    loop = FunctionLoop(ctypes.CDLL(str(steps)).work, "1ms", enter=enter, leave=leave, data=data, **ordinary)
    del enter, leave
    gc.collect()
    loop.run(cycles=4)
    assert data.tolist() == (1, 4, 1, 0, 4)
    loop.simulate(cycles=3)
    assert data.tolist() == (2, 7, 2, 0, 7)
    data["code"] = -5
    with pytest.raises(rtloop.CallbackError, match=r"enter\(\) returned -5.*EIO"):
        loop.run()
    assert data.tolist() == (3, 7, 2, -5, 7), "an enter that failed has no leave"
    data["code"] = 1
    data["enters"] = 2
    loop.run()
    assert data.tolist() == (3, 7, 3, 1, 7), "after RT_STOP of enter there are no steps"


def test_every_end_of_a_function_loop_leaves_once(steps: Path, ordinary: dict[str, Any]) -> None:
    library = ctypes.CDLL(str(steps))
    array = np.zeros(3, ENDS_DTYPE)

    def make(index: int, **settings: Any) -> FunctionLoop:
        ends = {"enter": library.begin, "leave": library.rest}
        return FunctionLoop(library.work, "1ms", **ends, data=array[index : index + 1], **ordinary, **settings)

    with pytest.raises(KeyError), make(0):
        raise KeyError
    first, other = make(0, name="first"), make(1, name="other")
    with rtloop.LoopGroup([first, other]):
        pass
    assert array["enters"].tolist() == array["leaves"].tolist() == [2, 1, 0]
    law, successor = make(0), make(2)
    array["enters"][2] = 1  # swap() does not call enter()
    with law:
        law.swap(successor)
    assert array["leaves"].tolist() == [2, 1, 1], "leave is that of the step that is in place"
    assert array["steps_at_leave"][2] == array["steps"][2]


def test_a_leave_alone_may_have_data_of_its_own(steps: Path, ordinary: dict[str, Any]) -> None:
    scipy = pytest.importorskip("scipy")
    data, own = np.zeros((), ENDS_DTYPE), np.zeros((), ENDS_DTYPE)
    data["enters"] = 1
    leave = scipy.LowLevelCallable(typed(steps, "rest"), ctypes.c_void_p(own.ctypes.data))
    FunctionLoop(ctypes.CDLL(str(steps)).work, "1ms", leave=leave, data=data, **ordinary).run(cycles=2)
    assert (data["leaves"], own["leaves"]) == (0, 1)


@pytest.mark.parametrize(
    ("keyword", "declaration", "why"),
    [
        ("leave", "double rest(void *);", "returns double, not void"),
        ("leave", "void rest(void *, void *);", "takes 2 arguments, not 1"),
        ("enter", "void rest(void *);", "returns void, not int"),
        ("enter", "int rest(double);", "double is not a pointer"),
    ],
)
def test_an_end_of_another_signature(steps: Path, keyword: str, declaration: str, why: str) -> None:
    ffi = pytest.importorskip("cffi").FFI()
    ffi.cdef(declaration)
    wrong: Any = {keyword: ffi.addressof(ffi.dlopen(str(steps)), "rest")}
    form = {"enter": r"int \(void \*data\)", "leave": r"void \(void \*data\)"}[keyword]
    with pytest.raises(TypeError, match=f"^{keyword}= is .*{why}. It must be '{form}'"):
        FunctionLoop(ctypes.CDLL(str(steps)).work, "1ms", **wrong)


def test_an_end_that_is_not_a_compiled_function(library: ctypes.CDLL) -> None:
    with pytest.raises(TypeError, match=r"leave= is .*Python code.*rtloop\.numba\.leave_signature.*has leave= as well"):
        FunctionLoop(library.work, "1ms", leave=lambda: None)
    with pytest.raises(TypeError, match=r"enter='begin' is not a compiled function: give a numba\.cfunc"):
        FunctionLoop(library.work, "1ms", enter="begin")
    with pytest.raises(rtloop.ConfigError, match="leave=1: there is no code at 0x1"):
        FunctionLoop(library.work, "1ms", leave=1)


def test_a_function_that_uses_data_gets_some(library: ctypes.CDLL) -> None:
    """It would use address 0, and crash the process in its first cycle."""
    numba = pytest.importorskip("numba")
    import rtloop.numba

    @numba.cfunc(rtloop.numba.signature)
    def reads(cycle: Any, data: Any) -> int:
        return np.int32(numba.carray(data, 1, dtype=np.int64)[0])

    @numba.cfunc(rtloop.numba.leave_signature)
    def rests(data: Any) -> None:
        numba.carray(data, 1, dtype=np.int64)[0] = 0

    @numba.cfunc(rtloop.numba.signature)
    def ignores(cycle: Any, data: Any) -> int:
        return rtloop.RT_CONTINUE

    with pytest.raises(rtloop.ConfigError, match=r"reads uses its argument data.*address 0.*data=np\.zeros"):
        FunctionLoop(reads, "1ms")
    with pytest.raises(rtloop.ConfigError, match="rests uses its argument data"):
        FunctionLoop(ignores, "1ms", leave=rests)
    assert FunctionLoop(ignores, "1ms").simulate(cycles=3).cycles == 3
    FunctionLoop(reads, "1ms", leave=rests, data=np.zeros(1, "i8")).simulate(cycles=3)


def test_the_use_of_data_is_that_of_the_argument() -> None:
    """An attribute, a constant or a text of the same name is not the argument."""
    from rtloop.functions.function_pointer import uses_data

    ignoring = (
        lambda cycle, data: cycle.data,
        lambda cycle, data: ("data", cycle),
        lambda cycle, data: cycle in ("data", "x"),
    )
    using = (lambda cycle, data: data[0], lambda cycle, data: cycle.x + data.x, lambda cycle, data: lambda: data)
    assert [uses_data(SimpleNamespace(_pyfunc=one)) for one in (*ignoring, *using)] == [False] * 3 + [True] * 3
    assert uses_data(print) is None


# What is refused.


def ctypes_of(library: ctypes.CDLL, result: Any, *arguments: Any) -> Any:
    function = library.count
    function.restype, function.argtypes = result, arguments
    return function


@pytest.mark.parametrize(
    ("result", "arguments", "why"),
    [
        (ctypes.c_double, (ctypes.c_void_p, ctypes.c_void_p), "returns c_double"),
        (None, (ctypes.c_void_p, ctypes.c_void_p), "returns None"),
        (ctypes.c_int, (ctypes.c_void_p,), "takes 1 argument, not 2"),
        (ctypes.c_int, (ctypes.c_void_p, ctypes.c_double), "c_double is not a pointer"),
        (ctypes.c_int, (ctypes.POINTER(ctypes.c_double), ctypes.c_void_p), "first argument points to double"),
    ],
)
def test_a_ctypes_function_of_another_signature(library: ctypes.CDLL, result: Any, arguments: Any, why: str) -> None:
    with pytest.raises(TypeError, match=f"{why}.*{SIGNATURE}.*c_void_p, c_void_p"):
        FunctionLoop(ctypes_of(library, result, *arguments), "1ms")


@pytest.mark.parametrize("result", [ctypes.c_double, ctypes.c_uint, None])
def test_a_ctypes_function_that_tells_no_more_than_its_result(library: ctypes.CDLL, result: Any) -> None:
    library.count.restype = result
    with pytest.raises(TypeError, match=f"returns .*, not c_int.*{SIGNATURE}"):
        FunctionLoop(library.count, "1ms")
    library.count.restype = lambda code: code  # what Python makes of an int
    FunctionLoop(library.count, "1ms")


@pytest.mark.parametrize(
    ("declaration", "why"),
    [
        ("double count(void *, void *);", "returns double"),
        ("int count(void *);", "takes 1 argument"),
        ("int count(void *, ...);", "takes 1 or more arguments"),
        ("int count(double, void *);", "double is not a pointer"),
        ("int count(double *, void *);", "first argument points to double"),
        ("int count(void **, void *);", r"first argument points to void \*"),
    ],
)
def test_a_cffi_function_of_another_signature(steps: Path, declaration: str, why: str) -> None:
    ffi = pytest.importorskip("cffi").FFI()
    ffi.cdef(declaration)
    with pytest.raises(TypeError, match=f"{why}.*{SIGNATURE}"):
        FunctionLoop(ffi.addressof(ffi.dlopen(str(steps)), "count"), "1ms")


def test_a_cffi_object_that_is_no_function() -> None:
    ffi = pytest.importorskip("cffi").FFI()
    with pytest.raises(TypeError, match=r"double \*, of cffi: it is not a pointer to a function"):
        FunctionLoop(ffi.new("double *"), "1ms")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"double (void *, void *)", "returns double"),
        (b"int (void *)", "takes 1 argument"),
        (b"int (double, void *)", "double is not a pointer"),
        (b"int (const double *, void *)", "first argument points to double"),
    ],
)
def test_a_capsule_of_another_signature(steps: Path, name: bytes, why: str) -> None:
    with pytest.raises(TypeError, match=f"{why}.*{SIGNATURE}"):
        FunctionLoop(capsule(from_address(steps), name), "1ms")


def test_a_scipy_callable_of_another_signature(steps: Path) -> None:
    scipy = pytest.importorskip("scipy")
    function = ctypes_of(ctypes.CDLL(str(steps)), ctypes.c_double, ctypes.c_double, ctypes.c_void_p)
    with pytest.raises(TypeError, match=f"returns c_double.*{SIGNATURE}"):
        FunctionLoop(scipy.LowLevelCallable(function), "1ms")


@pytest.mark.parametrize(
    ("signature", "why"),
    [
        ("float64(CPointer(float64), voidptr)", "returns float64, not int32"),
        ("int64(CPointer(float64), voidptr)", "returns int64, not int32"),
        ("int32(voidptr)", "takes 1 argument"),
        ("int32(int64, voidptr)", "int64 is not a pointer"),
        ("int32(CPointer(float64), voidptr)", "first argument points to float64"),
        ("int32(CPointer(CPointer(int64)), voidptr)", r"first argument points to int64\*"),
    ],
)
def test_a_numba_function_of_another_signature(signature: str, why: str) -> None:
    numba = pytest.importorskip("numba")

    function = (lambda a: 0) if signature == "int32(voidptr)" else (lambda a, b: 0)
    with pytest.raises(TypeError, match=rf"{why}.*{SIGNATURE}.*numba\.cfunc\(rtloop\.numba\.signature\)"):
        FunctionLoop(numba.cfunc(signature)(function), "1ms")


def test_a_numba_function_of_another_record() -> None:
    numba = pytest.importorskip("numba")
    other = numba.from_dtype(np.dtype([("t", "f8"), ("index", "u8")]))

    @numba.cfunc(numba.types.int32(numba.types.CPointer(other), numba.types.voidptr))
    def step(cycle: Any, data: Any) -> int:
        return 0

    with pytest.raises(TypeError, match=r"another kind than a cycle.*rtloop\.numba\.Cycle"):
        FunctionLoop(step, "1ms")


@pytest.mark.parametrize("data", ["voidptr", "CPointer(float64)"])
def test_a_numba_function_with_its_arguments_in_the_other_order(data: str) -> None:
    numba = pytest.importorskip("numba")
    import rtloop.numba

    first = eval(data, vars(numba.types))
    with pytest.raises(TypeError, match=rf"the cycle must be the first argument.*{SIGNATURE}"):
        FunctionLoop(
            numba.cfunc(numba.types.int32(first, numba.types.CPointer(rtloop.numba.Cycle)))(lambda a, b: 0), "1ms"
        )


@pytest.mark.parametrize(
    "signature",
    ["int32(voidptr, voidptr)", "int32(CPointer(uint8), voidptr)", "int32(CPointer(int64), CPointer(float64))"],
)
def test_a_numba_function_that_reads_the_cycle_as_bytes_or_integers_is_one(signature: str) -> None:
    numba = pytest.importorskip("numba")
    FunctionLoop(numba.cfunc(signature)(lambda a, b: 0), "1ms")


def test_python_code_is_refused_in_every_disguise(library: ctypes.CDLL) -> None:
    def step(cycle: Any, data: Any) -> int:
        return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    disguises: list[Any] = [step, kind(step), ctypes.PyDLL(None).Py_IsInitialized, FunctionLoop, len]
    for module, make in (
        ("cffi", lambda cffi: cffi.FFI().callback("int(void *, void *)", step)),
        ("scipy", lambda scipy: scipy.LowLevelCallable(kind(step))),
    ):
        try:
            disguises.append(make(__import__(module)))
        except ModuleNotFoundError:
            continue
    for disguise in disguises:
        with pytest.raises(TypeError, match=r"Python code.*GIL.*numba\.cfunc.*rtloop\.PyLoop"):
            FunctionLoop(disguise, "1ms")


def test_a_numba_jit_function_is_told_how_to_become_one() -> None:
    numba = pytest.importorskip("numba")
    with pytest.raises(TypeError, match=r"numba\.cfunc"):
        FunctionLoop(numba.njit(lambda cycle, data: 0), "1ms")


@pytest.mark.parametrize("address", [0, -1, 8, 2**63])
def test_an_address_without_code_is_refused(address: int) -> None:
    with pytest.raises(rtloop.ConfigError, match="no code at"):
        FunctionLoop(address, "1ms")


def test_an_address_of_data_is_refused() -> None:
    array = np.zeros(8)
    with pytest.raises(rtloop.ConfigError, match="no code at"):
        FunctionLoop(array.ctypes.data, "1ms")


@pytest.mark.parametrize("callback", [None, "step", 3.5, True, [1]])
def test_what_is_no_function_at_all(callback: Any) -> None:
    with pytest.raises(TypeError, match=r"not a compiled function: give a numba\.cfunc, a cffi or ctypes pointer"):
        FunctionLoop(callback, "1ms")


def test_a_class_that_leaves_out_its_constructor_has_an_empty_step(ordinary: dict[str, Any]) -> None:
    class WithoutFunction(rtloop.FunctionLoop):
        def __init__(self) -> None:
            rtloop.RTLoop.__init__(self, "1ms", **ordinary)

    assert WithoutFunction().run(cycles=3).cycles == 3


def test_keywords_are_those_of_a_loop(library: ctypes.CDLL) -> None:
    with pytest.raises(TypeError, match=r"FunctionLoop\(\).*'period'"):
        FunctionLoop(library.count)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean 'priority'"):
        FunctionLoop(library.count, "1ms", prio=3)  # type: ignore[call-arg]
    assert repr(FunctionLoop(library.nothing, "1ms", name="arm")) == "<FunctionLoop 'arm', 1 kHz, new>"


def test_numba_is_named_with_its_extra_where_it_is_missing(script: Callable[..., Any]) -> None:
    done = script("import sys; sys.modules['numba'] = None; import rtloop.numba")
    assert "ModuleNotFoundError" in done.stderr and "pip install 'rtloop[numba]'" in done.stderr
    assert script("import rtloop, sys; rtloop.FunctionLoop; assert 'numba' not in sys.modules").returncode == 0


TABLE = np.array([2.0])
TABLES = (1.0, (TABLE,))


def test_an_array_that_a_step_reaches_in_another_way_is_named_too() -> None:
    numba = pytest.importorskip("numba", reason="needs Numba")
    import rtloop.numba

    gains, here = np.array([3.0]), ModuleType("here")
    here.TABLE = TABLE  # type: ignore[attr-defined]

    @numba.njit
    def helper():
        return TABLE[0] + gains[0]

    def called(cycle, data):
        return int(helper() > 1e9)

    def in_a_tuple(cycle, data):
        return int(TABLES[1][0][0] > 1e9)

    def in_a_module(cycle, data):
        return int(here.TABLE[0] > 1e9)

    for step, names in (
        (called, r"TABLE \(in helper\), gains \(in helper\)"), (in_a_tuple, "TABLES"), (in_a_module, r"here\.TABLE"),
    ):  # fmt: skip
        with pytest.warns(rtloop.RTSetupWarning, match=rf"uses {names}: Numba copied"):
            FunctionLoop(numba.cfunc(rtloop.numba.signature)(step), "1ms")


@pytest.mark.parametrize("where", ["global", "closure"])
def test_an_array_that_numba_copies_is_named(where: str) -> None:
    """The copy is made when the function is compiled: what is written to the array afterwards is never seen."""
    numba = pytest.importorskip("numba", reason="needs Numba")
    import rtloop.numba

    gains, factor = np.array([3.0]), 2.0

    def of_global(cycle, data):
        return 1 if TABLE[0] > 5 else 0

    def of_closure(cycle, data):
        return 1 if gains[0] * factor > 50 else 0

    compiled = numba.cfunc(rtloop.numba.signature)(of_global if where == "global" else of_closure)
    name = "TABLE" if where == "global" else "gains"
    with pytest.warns(rtloop.RTSetupWarning, match=rf"uses {name}: Numba copied .* pass it as data="):
        loop = FunctionLoop(compiled, "1ms", policy="other", lock_memory="off", dma_latency=None)
    (TABLE if where == "global" else gains)[0] = 100.0
    assert loop.run(cycles=3).cycles == 3, "it would end at once if it saw the new value"
    TABLE[0] = 2.0


def test_numbers_and_modules_among_the_globals_are_no_arrays(recwarn: pytest.WarningsRecorder) -> None:
    numba = pytest.importorskip("numba", reason="needs Numba")
    import rtloop.numba

    limit = 3.0

    @numba.cfunc(rtloop.numba.signature)
    def step(cycle, data):
        return 1 if np.sqrt(limit) > 5 else 0

    FunctionLoop(step, "1ms")
    assert not [one for one in recwarn if "Numba copied" in str(one.message)]

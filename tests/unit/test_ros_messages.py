"""Samples as messages of ROS 2, read by a decoder that knows only their definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rtloop.tools.scope.ros_messages import MessagePacker, find_names

HEAD = [("cycle", "u8"), ("release", "i8"), ("start", "i8")]
#: All types of a signal, as a number, an array, and an array of two dimensions.
KINDS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
SAMPLE = np.dtype(HEAD + [(f"{kind}_{len(shape)}", kind, shape) for shape in ((), (3,), (2, 3)) for kind in KINDS])


def decoder(packer: MessagePacker) -> Any:
    made = pytest.importorskip("mcap_ros2.decoder", reason="the decoder is missing: pip install mcap-ros2-support")
    from mcap.records import Schema

    schema = Schema(id=1, name=packer.type_name, encoding="ros2msg", data=packer.definition.encode())
    found = made.DecoderFactory().decoder_for("cdr", schema)
    assert found is not None
    return found


def plain(value: Any) -> Any:
    """Return a decoded field as numbers."""
    if isinstance(value, (bytes, list, tuple)):
        return [plain(item) for item in value]
    return complex(value.real, value.imag) if type(value).__name__.startswith("Complex") else value


def test_a_decoder_of_ros_2_reads_every_type_of_signal() -> None:
    rng = np.random.default_rng(1)
    records = np.frombuffer(rng.bytes(50 * SAMPLE.itemsize), SAMPLE).copy()
    for name in SAMPLE.names or ():
        base = records[name].dtype
        if base.kind == "b":
            records[name] = rng.integers(0, 2, records[name].shape)
        elif base.kind in "fc":
            records[name] = rng.normal(size=records[name].shape).astype(base)
    records["release"] = 1 << 60
    records["start"] = records["release"] + rng.integers(-1000, 1000, 50)
    records["f8_0"][3], records["f4_0"][4], records["f2_0"][5] = np.nan, -np.inf, np.inf
    packer = MessagePacker("every type", SAMPLE, {"f8_0": "rad # \"'", "i8_2": "µm"})
    decode = decoder(packer)
    times = np.arange(50, dtype=np.int64) * 1_000_000_007 + 1_796_055_422_332_990_118
    messages = list(packer.pack(records, times))
    assert len(messages) == 50
    for message, record, time_ns in zip(messages, records, times.tolist(), strict=True):
        found = decode(message)
        assert found.header.stamp.sec * 10**9 + found.header.stamp.nanosec == time_ns
        assert found.header.frame_id == ""
        assert (found.cycle, found.latency) == (record["cycle"], record["start"] - record["release"])
        for name in packer.names:
            got, wanted = np.ravel(plain(getattr(found, packer.names[name]))), np.ravel(record[name])
            assert np.array_equal(got, wanted, equal_nan=wanted.dtype.kind in "fc"), name
    assert packer.type_name == "rtloop/msg/EveryType"
    assert "float64 f8_0  # rad # \"'\n" in packer.definition
    assert "int64[6] i8_2  # 2 x 3 numbers, row by row, µm\n" in packer.definition


def test_no_sample_is_no_message() -> None:
    packer = MessagePacker("motor", SAMPLE, {})
    assert list(packer.pack(np.empty(0, SAMPLE), np.empty(0, np.int64))) == []


def test_signals_have_names_that_ros_2_accepts() -> None:
    names = {
        "kp": "kp", "Kp": "kp_2", "KP": "kp_3", "motorSpeed": "motor_speed", "PWMDuty": "pwm_duty", "x2": "x2",
        "θ": "theta", "Δx": "delta_x", "e_ω": "e_omega", "µ": "mu", "größe": "grose", "ẋ": "x", "x_": "x_3",
        "_x": "x_4", "x__y": "x_y", "_1": "signal_1", "_": "signal", "角": "u89d2", "header": "header_2", "x_2": "x_2",
        "latency": "latency_2",
    }  # fmt: skip
    assert find_names(names, taken=("header", "latency")) == names
    dtype = np.dtype(HEAD + [(name, "f8") for name in names])
    packer = MessagePacker("Größe θ-1", dtype, {})
    assert packer.type_name == "rtloop/msg/GroseTheta1"
    assert packer.names == names
    records = np.array([(0, 0, 0, *range(len(names)))], dtype)
    (message,) = packer.pack(records, np.zeros(1, np.int64))
    found = decoder(packer)(message)
    assert [getattr(found, name) for name in packer.names.values()] == list(range(len(names)))
    assert "float64 theta  # θ\n" in packer.definition, "the comment has the name of the signal"

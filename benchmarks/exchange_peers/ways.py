"""The contestants of benchmarks/exchanges.py: ways from one process to another, with a reader that sleeps.

A message is a buffer that begins with its number and the time of its write, and ends with its number. Each way is
lossless with back-pressure for `throughput`, and has the reader asleep for `latency`. A writer is made in one process;
`channel` is what it hands to the other process, in which the reader is made of it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import socket
import struct
import tempfile
import time
from collections import deque
from multiprocessing import get_context
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Condition
from typing import Any

import numpy as np

import rtloop

DEPTH = 32  # messages that fit between the two sides, of those that have a queue
SPAWN = get_context("spawn")


class Exchange:
    """rtloop: a shared Latest, or a shared Ring."""

    needs = "rtloop"

    def __init__(self, size: int, kind: str) -> None:
        self.channel: Any = (f"bench-{os.getpid()}-{kind}-{size}", kind)
        dtype = np.dtype([("data", "u1", (size,))])
        self.exchange: Any = (
            rtloop.Latest(dtype, share=self.channel[0])
            if kind == "latest"
            else rtloop.Ring(dtype, DEPTH, share=self.channel[0])
        )
        self.dtype = dtype

    def write(self, message: np.ndarray[Any, Any]) -> None:
        item = message.view(self.dtype)
        if isinstance(self.exchange, rtloop.Latest):
            self.exchange.write(item)
            return
        while not self.exchange.push(item):
            time.sleep(0.00005)

    def close(self) -> None:
        self.exchange.close()


class ExchangeReader:
    def __init__(self, channel: tuple[str, str], size: int) -> None:
        name, kind = channel
        self.exchange: Any = rtloop.Latest.open(name) if kind == "latest" else rtloop.Ring.open(name)
        self.is_latest = kind == "latest"
        self.waiting: deque[Any] = deque()

    def read(self) -> Any:
        while not self.waiting:
            self.exchange.wait("10s")
            self.waiting.extend([self.exchange.read()] if self.is_latest else self.exchange.drain())
        return self.waiting.popleft()["data"]

    def close(self) -> None:
        self.exchange.close()


class LatestWay(Exchange):
    def __init__(self, size: int) -> None:
        super().__init__(size, "latest")


class RingWay(Exchange):
    def __init__(self, size: int) -> None:
        super().__init__(size, "ring")


class IceoryxWay:
    """iceoryx2: publish-subscribe with blocking back-pressure, and an event that wakes the subscriber."""

    needs = "iceoryx2"

    def __init__(self, size: int) -> None:
        self.channel: Any = f"rtloop-bench/{os.getpid()}/{size}"
        self.size = size
        self.node, self.service, event = _iceoryx_services(self.channel)
        iox2: Any = importlib.import_module("iceoryx2")
        builder = self.service.publisher_builder().initial_max_slice_len(size)
        self.publisher = builder.backpressure_strategy(iox2.BackpressureStrategy.RetryUntilDelivered).create()
        self.notifier = event.notifier_builder().create()

    def write(self, message: np.ndarray[Any, Any]) -> None:
        sample = self.publisher.loan_slice_uninit(self.size)
        ctypes.memmove(sample.payload_ptr, message.ctypes.data, self.size)
        sample.assume_init().send()
        self.notifier.notify()

    def close(self) -> None:
        self.publisher.delete()
        self.notifier.delete()


class IceoryxReader:
    def __init__(self, channel: str, size: int) -> None:
        self.iox2: Any = importlib.import_module("iceoryx2")
        self.node, service, event = _iceoryx_services(channel)
        self.subscriber = service.subscriber_builder().create()
        self.listener = event.listener_builder().create()
        self.patience = self.iox2.Duration.from_millis(100)
        self.sample: Any = None

    def read(self) -> Any:
        while True:
            if self.sample is not None:
                self.sample.delete()
            self.sample = self.subscriber.receive()
            if self.sample is not None:
                return self.sample.payload().as_memory_view()  # in place, no copy
            self.listener.timed_wait(self.patience)

    def close(self) -> None:
        self.subscriber.delete()
        self.listener.delete()


def _iceoryx_services(name: str) -> tuple[Any, Any, Any]:
    iox2: Any = importlib.import_module("iceoryx2")
    iox2.set_log_level(iox2.LogLevel.Error)
    node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
    builder = node.service_builder(iox2.ServiceName.new(name)).publish_subscribe(iox2.Slice[ctypes.c_uint8])
    service = builder.enable_safe_overflow(False).subscriber_max_buffer_size(DEPTH).max_subscribers(1).open_or_create()
    return node, service, node.service_builder(iox2.ServiceName.new(name)).event().open_or_create()


class LockWay:
    """multiprocessing.shared_memory, one place, with a Condition: a lock, and a wake-up each way."""

    needs = "multiprocessing"

    def __init__(self, size: int) -> None:
        self.memory = SharedMemory(create=True, size=size + 8)
        self.condition: Condition = SPAWN.Condition()
        self.channel: Any = (self.memory.name, self.condition)
        self.size = size

    def write(self, message: np.ndarray[Any, Any]) -> None:
        with self.condition:
            while self.memory.buf[0]:
                self.condition.wait()
            self.memory.buf[8 : 8 + self.size] = message.data
            self.memory.buf[0] = 1
            self.condition.notify()

    def close(self) -> None:
        self.memory.close()
        self.memory.unlink()


class LockReader:
    def __init__(self, channel: tuple[str, Condition], size: int) -> None:
        name, self.condition = channel
        self.memory, self.size = SharedMemory(name), size

    def read(self) -> bytes:
        with self.condition:
            while not self.memory.buf[0]:
                self.condition.wait()
            message = bytes(self.memory.buf[8 : 8 + self.size])
            self.memory.buf[0] = 0
            self.condition.notify()
        return message

    def close(self) -> None:
        self.memory.close()


class SocketWay:
    """A Unix socket, a stream."""

    needs = "socket"

    def __init__(self, size: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.channel: Any = f"{self.folder.name}/socket"
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.channel)
        self.server.listen(1)
        self.socket: socket.socket | None = None

    def write(self, message: np.ndarray[Any, Any]) -> None:
        if self.socket is None:
            self.socket, _ = self.server.accept()
        self.socket.sendall(message.data)

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.server.close()
        self.folder.cleanup()


class SocketReader:
    def __init__(self, channel: str, size: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(channel)
        self.message = bytearray(size)
        self.view = memoryview(self.message)

    def read(self) -> bytearray:
        have = 0
        while have < len(self.message):
            have += self.socket.recv_into(self.view[have:])
        return self.message

    def close(self) -> None:
        self.socket.close()


class ZenohWay:
    """Zenoh between two peers, with its shared memory."""

    needs = "zenoh"

    def __init__(self, size: int) -> None:
        zenoh: Any = importlib.import_module("zenoh")
        shm: Any = importlib.import_module("zenoh.shm")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"tcp/127.0.0.1:{probe.getsockname()[1]}"
        self.channel: Any = address
        self.session = _zenoh_session({"listen": {"endpoints": [address]}})
        self.provider = shm.ShmProvider.default_backend(4 * DEPTH * size + (1 << 20))
        self.policy = shm.BlockOn(shm.GarbageCollect())
        self.publisher = self.session.declare_publisher(
            "rtloop/bench", congestion_control=zenoh.CongestionControl.BLOCK, express=True
        )
        self.size = size

    def write(self, message: np.ndarray[Any, Any]) -> None:
        while not self.publisher.matching_status.matching:
            time.sleep(0.01)
        buffer = self.provider.alloc(self.size, self.policy)
        buffer[:] = message.tobytes()
        self.publisher.put(buffer)

    def close(self) -> None:
        self.session.close()


class ZenohReader:
    def __init__(self, channel: str, size: int) -> None:
        zenoh: Any = importlib.import_module("zenoh")
        self.session = _zenoh_session({"connect": {"endpoints": [channel]}})
        self.subscriber = self.session.declare_subscriber("rtloop/bench", zenoh.handlers.FifoChannel(DEPTH))

    def read(self) -> Any:
        return self.subscriber.recv().payload.to_bytes()

    def close(self) -> None:
        self.session.close()


def _zenoh_session(more: dict[str, Any]) -> Any:
    import json

    zenoh: Any = importlib.import_module("zenoh")
    config = zenoh.Config()
    settings = {
        "mode": "peer",
        "scouting/multicast/enabled": False,
        "transport/shared_memory/enabled": True,
        **{f"{key}/{name}": value for key, part in more.items() for name, value in part.items()},
    }
    for key, value in settings.items():
        config.insert_json5(key, json.dumps(value))
    return zenoh.open(config)


#: By the name in the table: the writer's side and the reader's. The first two are ours.
WAYS: dict[str, tuple[Any, Any]] = {
    "Latest": (LatestWay, ExchangeReader),
    "Ring": (RingWay, ExchangeReader),
    "iceoryx2": (IceoryxWay, IceoryxReader),
    "shared_memory + lock": (LockWay, LockReader),
    "Unix socket": (SocketWay, SocketReader),
    "Zenoh": (ZenohWay, ZenohReader),
}

HEAD, TAIL = struct.Struct("<qq"), struct.Struct("<q")


def serve(name: str, channel: Any, size: int, pipe: Any) -> None:
    """Run the reader: for each request, (number of the first message, how many), read them and return their delays.

    Returns
    -------
    The times from write to read in ns, and the time of the last read; by the pipe.
    """
    reader = WAYS[name][1](channel, size)
    pipe.send("ready")
    while (request := pipe.recv()) is not None:
        number, count = request
        end = number + count
        delays = []
        now = 0
        while number < end:
            message = reader.read()
            now = time.monotonic_ns()
            got, written = HEAD.unpack_from(message, 0)
            if TAIL.unpack_from(message, size - 8)[0] != got:
                raise SystemExit(f"{name}: message {got} of {size} bytes is torn")
            # A Latest passes the newest only, if this process was not run for a millisecond.
            if got != number and not (name == "Latest" and number < got < end):
                raise SystemExit(f"{name}: message {got} of {size} bytes instead of {number}")
            number = got + 1
            delays.append(now - written)
            del message
        pipe.send((delays, now))
    reader.close()

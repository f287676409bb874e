"""Loops on several hosts, observed and controlled over Zenoh: the extra ``rtloop[zenoh]``.

Nothing here is reachable from a ``step``. docs/reference/zenoh.md describes the messages.
"""

from rtloop.zenoh.bridge import Bridge, BridgeStats
from rtloop.zenoh.connection import RemoteConnection, connect
from rtloop.zenoh.frames import Frame, pack, unpack
from rtloop.zenoh.recording import Recording
from rtloop.zenoh.remote import RemoteLoop, Remotes
from rtloop.zenoh.session import open_session

__all__ = [
    "Bridge", "BridgeStats", "Frame", "Recording", "RemoteConnection", "RemoteLoop", "Remotes", "connect",
    "open_session", "pack", "unpack",
]  # fmt: skip

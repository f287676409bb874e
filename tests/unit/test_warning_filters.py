"""Warnings of rtloop's own threads, where Python's filters hold for a context instead of all threads."""

from __future__ import annotations

import threading
from contextvars import Context, ContextVar
from types import SimpleNamespace

import pytest

from rtloop.process import interpreter


@pytest.mark.parametrize(("flags", "seen"), [({"context_aware_warnings": True}, "caller"), ({}, "thread")])
def test_another_thread_warns_with_the_filters_of_the_caller(
    flags: dict[str, bool], seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filters = ContextVar("filters", default="thread")
    found: list[str] = []
    monkeypatch.setattr(interpreter, "sys", SimpleNamespace(flags=SimpleNamespace(**flags)))
    filters.set("caller")
    call = interpreter.with_filters_of_caller(lambda: found.append(filters.get()))
    filters.set("later")
    thread = threading.Thread(target=Context().run, args=(call,))
    thread.start()
    thread.join()
    assert found == [seen]

"""The environment is copied for another program, whatever other threads do to it meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from rtloop.process.environment import copy_environment


class Shrinking(dict[str, str]):
    """An environment from which a variable is removed after its names have been read."""

    def __iter__(self) -> Iterator[str]:
        return iter(["PATH", "REMOVED"])

    def keys(self) -> list[str]:  # type: ignore[override]
        return list(self)


def test_a_variable_that_is_removed_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", Shrinking(PATH="/bin"))
    assert copy_environment() == {"PATH": "/bin"}


def test_variables_are_added_and_changed_in_the_copy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTLOOP_TEST", "before")
    assert copy_environment(RTLOOP_TEST="after", RTLOOP_NEW="1") == {
        **os.environ, "RTLOOP_TEST": "after", "RTLOOP_NEW": "1",
    }  # fmt: skip
    assert os.environ["RTLOOP_TEST"] == "before" and "RTLOOP_NEW" not in os.environ

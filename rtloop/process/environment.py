"""The environment of the process, copied while other threads may change it."""

from __future__ import annotations

import os

__all__ = ["copy_environment"]


def copy_environment(**variables: str) -> dict[str, str]:
    """Return a copy of the environment for another program, with these variables added or changed.

    ``{**os.environ}`` raises KeyError if another thread removes a variable meanwhile, and execve(2) fails with EFAULT
    if it gets the C library's own environment while another thread adds one.
    """
    found = ((name, os.environ.get(name)) for name in os.environ)
    return {name: value for name, value in found if value is not None} | variables

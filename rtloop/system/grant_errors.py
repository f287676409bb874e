"""Exceptions for refused grants: the one place that turns them into a SetupError."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rtloop.errors import SetupError, setup_error
from rtloop.system.fixes import NO_FILE, no_file_fix
from rtloop.system.grant import Grant, describe_refused

__all__ = ["import_errors", "raise_if_refused", "refusal_error", "setup_errors"]


def refusal_error(
    grants: Iterable[Grant], name: str | None = None, *, advice: str = "", every: Sequence[Grant] = ()
) -> SetupError:
    """Make the exception for refused grants: all of them in one, of the type that fits the first.

    Parameters
    ----------
    grants : iterable of Grant
        All requests; at least one of them was refused.
    name : str, optional
        Name of the loop or process, for the message if several were refused.
    advice : str
        Lines to add to the message.
    every : sequence of Grant
        ``grants`` of the exception; by default `grants`.
    """
    from rtloop.system.refusal_cause import is_privilege_missing  # here, so that `import rtloop` does not import it

    grants = tuple(grants)
    refused = [grant for grant in grants if not grant.ok]
    first = refused[0]
    text = describe_refused(*refused)
    if len(refused) > 1:
        text = f"{name}: {len(refused)} requests were refused:\n{text}"
    return setup_error(
        first.errno,
        f"{text}\n{advice}" if advice else text,
        memory_lock=first.kind == "lock",
        privilege=is_privilege_missing(first),
        grants=tuple(every) or grants,
    )


def raise_if_refused(grants: Sequence[Grant], name: str | None = None, *, advice: str = "") -> None:
    """Raise one SetupError for all refused grants; return if there are none."""
    if not all(grant.ok for grant in grants):
        raise refusal_error(grants, name, advice=advice)


@contextmanager
def setup_errors(name: str, grants: list[Grant]) -> Iterator[None]:
    """Turn any other system error of a start, such as no free file descriptor, into a SetupError.

    `grants` is the list that the start fills. The SetupError carries it, and a note about earlier refusals.
    """
    try:
        yield
    except SetupError as error:
        _add_grants(error, grants)
        raise
    except OSError as error:
        text = f"{name} could not be set up: {error}"
        if str(error.filename).startswith("/proc/") and not os.path.exists("/proc/self"):
            text += "; proc(5) is not mounted, and the start reads it\nmount -t proc proc /proc"
        setup = SetupError(error.errno or 0, _with_limit(text, error.errno))
        _add_grants(setup, grants)
        raise setup from error


@contextmanager
def import_errors(name: str) -> Iterator[None]:
    """Turn the error of an import without a free file descriptor into a SetupError; `name` is what needs the module."""
    try:
        yield
    except (OSError, ImportError) as error:
        number = error.errno if isinstance(error, OSError) else _errno_in(error)
        if number not in NO_FILE:
            raise
        raise SetupError(number, _with_limit(f"{name} cannot import its modules: {error}", number)) from error


def _errno_in(error: ImportError) -> int:
    """Return the errno of an import that dlopen(3) refused, which tells its text only; 0 for any other."""
    return next((number for number in NO_FILE if os.strerror(number) in str(error)), 0)


def _with_limit(text: str, number: int | None) -> str:
    if number is None or number not in NO_FILE:
        return text
    why, fix = no_file_fix(number)
    return f"{text}; {why}\n{fix}"


def _add_grants(error: SetupError, grants: list[Grant]) -> None:
    if error.grants:
        return
    error.grants = tuple(grants)
    if error.refused:
        error.add_note("Refused before that:\n" + describe_refused(*error.refused))

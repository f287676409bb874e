"""Revision of the .pyx of a running loop: compiled and examined before any of it is loaded into the process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from rtloop.errors import BuildError, RtloopError
from rtloop.revision.examination import Examination, Examined, Rejected
from rtloop.revision.tracebacks import describe_exception
from rtloop.tools.run.target import Target, find_target

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Revision", "make_revision"]


class Revision(NamedTuple):
    """A revision that is loaded.

    Attributes
    ----------
    found : Target
        Its class or function.
    examined : Examined
        Result of its examination.
    """

    found: Target
    examined: Examined


def make_revision(target: str, build: Mapping[str, Any]) -> Revision:
    """Compile, examine and load a source.

    Parameters
    ----------
    target : str
        As on the command line: FILE.pyx or FILE.pyx:CLASS.
    build : mapping
        Keywords of the build.

    Raises
    ------
    Rejected
        If it does not compile, the lint finds something, it cannot be imported, or the class is missing.
    """
    with Examination(Path(target.partition(":")[0]), build) as examination:
        try:
            found = find_target(target, **build, examine=examination.begin, check=examination.check)
        except Rejected:
            raise
        except BuildError as error:
            raise Rejected("compile", str(error)) from None
        except (RtloopError, click.ClickException, FileNotFoundError) as error:
            raise Rejected("compile", str(error)) from None
        except BaseException as error:  # raised by the user's module on import
            raise Rejected("import", f"it cannot be imported:\n{describe_exception(error)}") from None
    assert examination.result is not None
    return Revision(found, examination.result)

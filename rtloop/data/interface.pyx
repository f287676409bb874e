"""Conventions of the compiled classes that users subclass: public name, versioned interface, shared refusals."""

from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF

from rtloop._python cimport rt_is_heap_type, rt_set_type_name

import re


def publish(kind):
    """Give a versioned class its public name, and return the ``__getattr__`` of its module.

    The class ``_Pool_1`` becomes known as ``rtloop.Pool``. The number is the version of its binary interface: a module
    that was compiled against another one asks for another name when it is imported, and the ``__getattr__`` tells its
    user to recompile it.

    Parameters
    ----------
    kind : type
        A class whose name is ``_NAME_VERSION``.

    Returns
    -------
    callable
        To be assigned to ``__getattr__`` in the class's module.
    """
    module = kind.__module__
    public, version = re.fullmatch(r"_(\w+)_(\d+)", kind.__name__).groups()
    if rt_is_heap_type(<PyTypeObject *>kind):
        kind.__module__, kind.__name__, kind.__qualname__ = "rtloop", public, public
    else:
        name = f"rtloop.{public}".encode()
        Py_INCREF(name)  # the type may outlive every module
        rt_set_type_name(<PyTypeObject *>kind, name)

    def __getattr__(name):
        asked = re.fullmatch(rf"_{public}_(\d+)", name)
        if asked:
            raise ImportError(
                f"this module was compiled against interface {asked[1]} of rtloop's {public}, and the installed rtloop "
                f"has interface {version}: recompile the module"
            )
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__


def refuse_copy(instance, what):
    """Raise the TypeError of an object that cannot be pickled or copied, because it is `what` of this process."""
    raise TypeError(
        f"{type(instance).__name__} cannot be pickled or copied, because it is {what} of this process: make a new one "
        "where it is needed, with the same arguments"
    )


def never_made(noun):
    """Return the message for a subclass that skipped the base's ``__init__``; `noun` is ``"pool"`` and the like."""
    return f"this {noun} was never made: a subclass has not called super().__init__()"


def made_twice(noun):
    """Return the message for a second call of ``__init__``."""
    return f"a {noun} is made once, because others may be using its memory: make a new one"


def lost_by_fork(noun):
    """Return the message for a use in a forked child, which inherits no memory of this kind."""
    return f"this process is a fork, and a {noun} does not survive a fork: make a new one here"

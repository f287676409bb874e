"""One side of an exchange: its fields, its role if it is shared, and access to its memory for the common methods."""

from libc.stdint cimport uint64_t

from rtloop.data.storage cimport SharedStorage

from rtloop.data.interface import never_made
from rtloop.errors import ConfigError, StateError


cdef class Access:
    """Access(name, noun, reader)
--

    What differs between the kinds of exchange, for the methods that they have in common.

    Whoever makes one sets its functions; `check_closing` may be NULL. `plain` is the table of methods for Cython of the
    public class, and `waking` the table that replaces it as soon as somebody waits.

    Parameters
    ----------
    name, noun : str
        The public class, and what messages call an instance.
    reader : str
        The role that waits.
    """

    def __cinit__(self, name, noun, reader):
        self.name, self.noun, self.reader = name, noun, reader


cdef Access access_of(object exchange):
    """Return the access of an exchange.

    Raises
    ------
    StateError
        If it was never made.
    """
    if fields_of(exchange).handle is NULL:
        raise StateError(never_made("exchange"))
    return <Access?>(<object>fields_of(exchange).owner).access


cdef SharedStorage shared_storage(object exchange):
    """Return the memory of a shared one, or None."""
    owner = <object>fields_of(exchange).owner
    return <SharedStorage>owner if isinstance(owner, SharedStorage) else None


cdef int check_side(object exchange, role) except -1:
    """Raise a StateError if this is a shared exchange, and this object not the side of that role."""
    cdef SharedStorage storage = shared_storage(exchange)
    if storage is not None:
        storage.file.check_role(role)
    return 0


cdef int rearm(object owner) except -1:
    """Clear the event file of an exchange after something was taken out."""
    if owner.notifier is not None:
        owner.notifier.rearm()
    return 0


cdef SharedStorage map_side(object exchange, Access access, file, uint64_t data_bytes):
    """Map a shared exchange with a given size of its data, for one side. Closes the file if this fails."""
    plan = file.header.plan
    try:
        if fields_of(exchange).methods is not access.plain:
            raise ConfigError(
                f"a class in Cython that derives from {access.name} cannot be shared: use a {access.name} as its field"
            )
        if plan.data_bytes != data_bytes:
            raise ConfigError(f"the exchange {file.header.name!r} is damaged: its sizes contradict each other")
        storage = SharedStorage(file)
    except BaseException:
        file.close()
        raise
    storage.access = access
    return storage


def describe_sides(exchange):
    """Return the end of an exchange's repr: its name and role if it is shared, its loops if a chain names them."""
    shared = "" if exchange.share is None else f", share={exchange.share!r}, role={exchange.role!r}"
    return shared + ("" if exchange.ends is None else f", {' to '.join(exchange.ends)}")

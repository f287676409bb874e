"""Exchange: the common methods of Ring and Latest, for waiting and for shared exchanges."""

cimport cython

from rtloop.data.exchange.side cimport (
    Access,
    Fields,
    access_of,
    check_side,
    fields_of,
    shared_storage,
)
from rtloop.data.storage cimport SharedStorage
from rtloop.sharing.wakers cimport Sleep

from rtloop.data.interface import lost_by_fork, refuse_copy
from rtloop.errors import StateError
from rtloop.sharing.waiting import find_notifier, wait_in_thread


@cython.auto_pickle(False)
cdef class Exchange:
    """Base of :class:`rtloop.Ring` and :class:`rtloop.Latest`. *News* means an item, or an unread value."""

    @property
    def share(self):
        """Name of a shared exchange; None if it is not shared."""
        cdef SharedStorage storage = shared_storage(self)
        return None if storage is None else storage.file.header.name

    @property
    def role(self):
        """Role of this object in a shared exchange; None if it is not shared."""
        cdef SharedStorage storage = shared_storage(self)
        return None if storage is None else storage.file.role

    @property
    def peers(self):
        """Ids of the processes that have the other side of a shared exchange now; empty if it is not shared.

        A process of another PID namespace has no id in this one, and is listed as 0.
        """
        cdef SharedStorage storage = shared_storage(self)
        return () if storage is None else storage.file.peers()

    def close(self):
        """Give up the role in a shared exchange, so that another process can take it.

        No loop may use this object any more: calls in a step have no effect. Items and values stay as long as a process
        has the exchange open. A second call does nothing, and neither does a call for an exchange that is not shared.

        Raises
        ------
        StateError
            If a view of a ring is in use.
        """
        cdef SharedStorage storage = shared_storage(self)
        cdef Access access
        if storage is not None:
            access = storage.access
            with cython.critical_section(self):
                if access.check_closing is not NULL:
                    access.check_closing(self)
                fields_of(self).handle = storage.closed()
            storage.file.close()
            if storage.notifier is not None:
                storage.notifier.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def wait(self, timeout=None):
        """Sleep until a ring has an item, or a Latest has an unread value.

        A loop that writes to it wakes this thread after its step, by one system call between two cycles; if nobody
        waits, it makes none. The other side may be in another process. Signal handlers run, so Ctrl-C ends the
        wait. Call this from any thread but that of a loop.

        Parameters
        ----------
        timeout : duration, optional
            Longest wait: ``"100ms"``. Without it there is no limit, even if the other side has died: see `peers`.

        Returns
        -------
        bool
            True if there is an item, or an unread value; False after the timeout.

        Raises
        ------
        StateError
            In a forked child, at the writing side of a shared one, or if another thread closes it.

        Notes
        -----
        A write by the inline forms of the C headers, or to an instance of a class in Cython that derives from this one,
        wakes nobody. This method finds it within 20 ms.
        """
        cdef Sleep sleep = Sleep(timeout)
        cdef Access access = access_of(self)
        cdef Fields *fields = fields_of(self)
        cdef SharedStorage storage = shared_storage(self)
        cdef void *handle
        if fields.methods is access.plain:
            fields.methods = access.waking  # those of a derived class in Cython, and of a shared one, stay
        while True:
            handle = fields.handle
            check_side(self, access.reader)
            if access.size(handle) == 0:
                if storage is not None and handle is storage.closed():
                    continue  # another thread is closing it
                raise StateError(lost_by_fork(access.noun))
            if access.has_news(handle):
                return True
            if sleep.is_over():
                return False
            sleep.once(access.awaited(handle), access.has_news, handle)

    async def ready(self, timeout=None):
        """Wait as :meth:`wait` does, for asyncio. Another thread sleeps meanwhile, of which each wait has one."""
        return await wait_in_thread(self.wait, timeout)

    def fileno(self):
        """Return a file descriptor that is readable while there is an item, or an unread value.

        For select(2), Qt, and other event loops. A thread of this process sleeps and sets it. Never read it: taking all
        items out, by `pop`, `drain` or a view, clears it, and so does `read`. It is closed with this object.
        """
        cdef Access access = access_of(self)
        check_side(self, access.reader)
        if access.size(fields_of(self).handle) == 0:
            raise StateError(lost_by_fork(access.noun))
        return find_notifier(self, <object>fields_of(self).owner).fd

    @property
    def is_locked(self):
        """True if the kernel keeps the memory from being paged out; read again at each call."""
        cdef Access access = access_of(self)
        return access.size(fields_of(self).handle) != 0 and (<object>fields_of(self).owner).is_locked

    @property
    def ends(self):
        """Names of the loop that writes and the loop that reads, if a chain of a group tells them, or None."""
        owner = <object>fields_of(self).owner
        return owner.ends if owner is not None else None

    @ends.setter
    def ends(self, pair):
        (<object>fields_of(self).owner).ends = pair

    def __reduce_ex__(self, protocol):
        refuse_copy(self, "memory")

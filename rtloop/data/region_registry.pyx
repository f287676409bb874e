"""Registry of the regions of all large buffers, which read as zeros in a forked child. See rtloop/hugepage.h."""

from libc.stdlib cimport calloc, free

from rtloop._os cimport pthread_atfork, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock
from rtloop.headers.hugepage cimport (
    rt_region_t,
    rt_region_unmap,
    rt_regions_add,
    rt_regions_in_child,
    rt_regions_remove,
    rt_regions_t,
)


cdef rt_regions_t _regions


cdef void _before_fork() noexcept nogil:
    pthread_mutex_lock(&_regions.mutex)


cdef void _after_fork_in_parent() noexcept nogil:
    pthread_mutex_unlock(&_regions.mutex)


cdef void _after_fork_in_child() noexcept nogil:
    rt_regions_in_child(&_regions)
    pthread_mutex_unlock(&_regions.mutex)


cdef rt_region_t *keep_region(rt_region_t *fresh) except NULL:
    """Take over a fresh mapping, and unmap it on failure. The returned address stays valid until drop_region()."""
    cdef rt_region_t *region = <rt_region_t *>calloc(1, sizeof(rt_region_t))
    if region is NULL:
        rt_region_unmap(fresh)
        raise MemoryError
    region[0] = fresh[0]
    rt_regions_add(&_regions, region)
    return region


cdef void drop_region(rt_region_t *region) noexcept nogil:
    """Unmap a region and forget it."""
    rt_regions_remove(&_regions, region)
    rt_region_unmap(region)
    free(region)


if pthread_mutex_init(&_regions.mutex, NULL) or pthread_atfork(
    _before_fork, _after_fork_in_parent, _after_fork_in_child
):
    raise MemoryError("pthread_atfork failed")

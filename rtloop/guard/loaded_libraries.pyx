"""Libraries that are loaded into this process, as the dynamic linker has them: without ``/proc``, and quickly."""

from libc.stdlib cimport free

import os


cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <link.h>
    #include <stdlib.h>
    #include <string.h>

    typedef struct rt_names {
      char *text; /* each name with its zero */
      size_t bytes;
    } rt_names_t;

    static int rt_names_add(struct dl_phdr_info *info, size_t size, void *data) {
      rt_names_t *const names = data;
      (void)size;
      const size_t more = info->dlpi_name ? strlen(info->dlpi_name) + 1 : 1;
      if (more == 1) return 0; /* the program itself */
      char *const text = realloc(names->text, names->bytes + more);
      if (text == NULL) return -1;
      memcpy(text + names->bytes, info->dlpi_name, more);
      names->text = text;
      names->bytes += more;
      return 0;
    }

    static int rt_names_read(rt_names_t *names) { return dl_iterate_phdr(rt_names_add, names); }
    """
    ctypedef struct rt_names_t:
        char *text
        size_t bytes
    int rt_names_read(rt_names_t *names) nogil


def loaded_libraries():
    """Return the paths of the loaded libraries, as they were when each was loaded (dl_iterate_phdr(3))."""
    cdef rt_names_t names
    cdef int rc
    names.text, names.bytes = NULL, 0
    try:
        with nogil:  # another thread may be loading a library that needs the GIL
            rc = rt_names_read(&names)
        if rc:
            raise MemoryError
        content = <bytes>names.text[:names.bytes] if names.bytes else b""
    finally:
        free(names.text)
    return [os.fsdecode(name) for name in content.split(b"\0")[:-1]]

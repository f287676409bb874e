"""Reading of PyCapsules, in which other tools provide the address of a C function."""

from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_GetName, PyCapsule_GetPointer


def open_capsule(capsule):
    """Return the pointer in a PyCapsule, its context, and its name, which by custom is the signature."""
    cdef const char *name = PyCapsule_GetName(capsule)
    cdef void *pointer = PyCapsule_GetPointer(capsule, name)
    text = "" if name is NULL else (<bytes>name).decode(errors="replace")
    return <size_t>pointer, <size_t>PyCapsule_GetContext(capsule), text

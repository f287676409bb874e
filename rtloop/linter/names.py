"""Names that the lint knows: Cython's own, Python's C interface, and the C library's.

A call that is not in these tables, and whose source was not read, is never reported as clean.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["CONTRACTS", "KINDS", "Kind", "is_cython_macro", "is_harmless", "judge", "judge_error"]


class Kind(NamedTuple):
    """Meaning of a kind of finding, and its fix."""

    why: str
    fix: str


KINDS = {
    "gil": Kind(
        "takes the GIL: the loop waits for milliseconds until the Python threads release it",
        "do it in Python, outside the loop; pass data through a Ring or a Latest",
    ),
    "missing-noexcept": Kind(
        "may raise, because it is not declared noexcept: its caller takes the GIL to check for an exception after "
        "every call, or whenever the error value is returned",
        "declare it `noexcept nogil`, and return a code instead of raising",
    ),
    "exception-check": Kind(
        "the result is checked for an exception, which is printed to stderr with the GIL",
        "declare the called function `noexcept` where it is cimported, and return a code",
    ),
    "raise": Kind(
        "an exception takes the GIL and heap memory, and in noexcept code it only reaches stderr",
        "return a negative code: the loop fails with it, and run() raises CallbackError",
    ),
    "bounds-check": Kind(
        "an index out of bounds takes the GIL to raise; step ends there, and the loop does not detect it",
        "check the index yourself, and put `# cython: boundscheck=False` at the head of the file",
    ),
    "wraparound": Kind(
        "every index is checked for being negative, as in Python",
        "put `# cython: wraparound=False` at the head of the file",
    ),
    "division": Kind(
        "divides as Python does: it rounds down, with branches, and a zero divisor takes the GIL to raise",
        "put `# cython: cdivision=True` at the head of the file, and check for zero if it can occur",
    ),
    "init-check": Kind(
        "a memoryview, variable or attribute that was never set takes the GIL to raise",
        "set it in setup, and put `# cython: initializedcheck=False, nonecheck=False` at the head of the file",
    ),
    "reference": Kind(
        "counts references: the last one frees the object with the GIL, and memoryviews use shared atomics",
        "take a C pointer in setup (`cdef double *p = &view[0]`), and use that in step",
    ),
    "python": Kind(
        "uses Python's C interface, which needs the GIL",
        "use only C types in step, and do the rest in Python, outside the loop",
    ),
    "allocation": Kind(
        "the heap takes locks, and the first touch of memory that it gets from the kernel is a page fault",
        "allocate in setup, or take blocks from a Pool",
    ),
    "blocking": Kind(
        "waits for something else, for an unbounded time",
        "do it in another thread; pool and ring need no lock. A mutex that inherits priority may be accepted by allow",
    ),
    "thread-pool": Kind(
        "waits for the pool of threads of a library such as OpenBLAS: they have ordinary priority",
        "call rtloop.limit_thread_pools() before the start, so that the call uses one thread, and accept it by allow",
    ),
    "io": Kind(
        "reads or writes a file or a stream: locks, buffers from the heap, and system calls",
        "push a record to a Ring, and write it from Python or with a Recorder",
    ),
    "system-call": Kind(
        "enters the kernel, for an unbounded time",
        "do it in setup, in enter, or in another thread",
    ),
    "field-type": Kind(
        "declares a field with a type that it does not have: rtloop reads a wrong number, and setting a parameter may "
        "overwrite the next field",
        'give the type of the field: "f4" for a float, "i4" for an int or a bint, "i8" for an int64_t',
    ),
    "bad-allow": Kind(
        "an accepted finding needs a name and a reason",
        "write `# rtloop: allow NAME: reason`; NAME is a kind of finding or the function that is called",
    ),
}

#: Methods, and the kinds of findings that their contract allows, the strictest first; each allows what those before it
#: allow. `wait` may wait for hardware, and no release waits for `enter` and `leave`, which may allocate and block. An
#: exception stays a finding: it ends `leave` before the actuator is at rest. So does the GIL, which no thread can
#: take once the interpreter has ended.
CONTRACTS: tuple[tuple[tuple[str, ...], frozenset[str]], ...] = (
    (("step", "overrun", "on_peer_failure", "safe", "take_over"), frozenset()),
    (("wait",), frozenset({"blocking", "system-call"})),
    (("enter", "leave"), frozenset({"blocking", "system-call", "allocation", "thread-pool", "io"})),
)

_DENIED = {
    "allocation": """
        malloc calloc realloc reallocarray free cfree aligned_alloc posix_memalign memalign valloc pvalloc
        strdup strndup asprintf vasprintf getline getdelim open_memstream mmap mmap64 munmap mremap brk sbrk
        alloca dlopen dlsym dlclose malloc_trim mallopt PyMem_Malloc PyMem_Calloc PyMem_Realloc PyMem_Free
        PyMem_RawMalloc PyMem_RawCalloc PyMem_RawRealloc PyMem_RawFree PyObject_Malloc PyObject_Calloc
        PyObject_Realloc PyObject_Free""",
    "blocking": """
        sleep usleep nanosleep clock_nanosleep pause poll ppoll select pselect epoll_wait epoll_pwait
        pthread_mutex_lock pthread_mutex_timedlock pthread_mutex_clocklock pthread_rwlock_rdlock
        pthread_rwlock_wrlock pthread_spin_lock pthread_cond_wait pthread_cond_timedwait pthread_barrier_wait
        pthread_join pthread_once sem_wait sem_timedwait sem_clockwait mtx_lock mtx_timedlock cnd_wait
        cnd_timedwait thrd_sleep thrd_join wait waitpid waitid wait3 wait4 sigwait sigwaitinfo sigtimedwait
        sigsuspend flock lockf sched_yield thrd_yield PyThread_acquire_lock read write readv writev pread pwrite
        preadv pwritev recv recvfrom recvmsg recvmmsg send sendto sendmsg sendmmsg accept accept4 connect ioctl
        mq_send mq_receive mq_timedsend mq_timedreceive msgsnd msgrcv""",
    "io": """
        printf fprintf vprintf vfprintf dprintf vdprintf puts fputs putchar fputc putc puts_unlocked perror
        psignal scanf fscanf vscanf vfscanf getchar getc fgetc gets fgets ungetc fread fwrite fopen fopen64
        fdopen freopen fclose fflush fseek ftell rewind setvbuf setbuf tmpfile remove rename open open64 openat
        creat close fsync fdatasync sync syncfs msync ftruncate truncate lseek stat fstat lstat access unlink
        mkdir rmdir opendir readdir closedir syslog vsyslog openlog popen pclose getaddrinfo gethostbyname
        getenv_s localtime mktime strftime tzset __printf_chk __fprintf_chk""",
    "system-call": """
        syscall fork vfork clone posix_spawn posix_spawnp system execv execve execvp execl execlp exit abort
        _exit quick_exit getpid getppid gettid getuid geteuid kill tgkill raise pthread_kill sigqueue sigaction
        signal sigprocmask pthread_sigmask pthread_create thrd_create pthread_cancel pthread_setschedparam
        pthread_setaffinity_np sched_setscheduler sched_setparam sched_setaffinity sched_getaffinity
        sched_setattr setpriority nice mlock mlock2 munlock mlockall munlockall madvise mprotect mincore prctl
        ptrace socket bind listen shutdown setsockopt getsockopt pipe pipe2 eventfd timerfd_create
        timerfd_settime epoll_create1 epoll_ctl fcntl dup dup2 getrusage getrlimit setrlimit times sysconf uname
        getrandom getentropy setitimer timer_create timer_settime alarm clock_settime clock_getres settimeofday
        sched_getscheduler pthread_getaffinity_np""",
}
_DENY = {name: kind for kind, names in _DENIED.items() for name in names.split()}

_MATH = """
    acos asin atan atan2 cos sin tan sincos acosh asinh atanh cosh sinh tanh exp exp2 expm1 log log2 log10 log1p logb
    ilogb modf frexp ldexp scalbn scalbln pow sqrt cbrt hypot fabs fmod remainder remquo fma fmax fmin fdim ceil floor
    trunc round lround llround rint lrint llrint nearbyint copysign nextafter nexttoward nan erf erfc tgamma lgamma_r"""
# Functions of complex numbers, integers, memory and characters, and calls that never wait.
_PLAIN = """
    cabs carg cexp clog conj cpow creal cimag csin ccos ctan csqrt cproj
    isnan isinf isfinite isnormal signbit fpclassify isgreater isless isunordered
    abs labs llabs imaxabs div ldiv lldiv bsearch
    memcpy memmove memset memcmp memchr mempcpy memccpy strlen strnlen strcmp strncmp strcpy strncpy stpcpy strcat
    strncat strchr strrchr strstr strspn strcspn bzero ffs ffsl ffsll htonl htons ntohl ntohs
    isdigit isalpha isalnum isspace isupper islower isxdigit toupper tolower
    clock_gettime __errno_location pthread_self pthread_equal pthread_mutex_unlock pthread_mutex_trylock
    pthread_spin_unlock pthread_spin_trylock sem_post sem_trywait sched_getcpu
    va_start va_end va_arg va_copy assert static_assert _Static_assert offsetof
    UINT8_C UINT16_C UINT32_C UINT64_C INT8_C INT16_C INT32_C INT64_C"""
_HARMLESS = {name + suffix for name in _MATH.split() for suffix in ("", "f", "l")} | set(_PLAIN.split())
_HARMLESS_START = re.compile(
    r"__builtin_|__atomic_|__sync_|atomic_(?:load|store|exchange|compare|fetch|thread_fence|signal_fence|flag)|_mm\d*_|"
    r"__pyx_PyFloat_AsDouble$|__PYX_NAN$|__Pyx_sizeof"
)
#: Macros of Cython that expand to nothing, or to an assignment, outside of its own debugging.
_INERT = re.compile(
    r"""(?:(?:un)?likely|__builtin_expect|CYTHON_\w+|__Pyx_RefNanny\w+|__Pyx_Trace\w+|__Pyx_X?GOTREF|__Pyx_X?GIVEREF
    |__Pyx_FastGIL_\w+|__PYX_MARK_ERR_POS|__Pyx_(?:PyMonitoring|Coverage|Py_UNREACHABLE)\w*|Py_UNUSED
    |__Pyx_UNARY_NEG_WOULD_OVERFLOW|(?:__Pyx_)?PyGILState_Release|__pyx_assertions_enabled
    |__Pyx_pretend_to_initialize|__Pyx_fits_\w+)$""",
    re.VERBOSE,
)
_RULES = [
    (kind, re.compile(rf"(?:{pattern})$", re.VERBOSE))
    for kind, pattern in [
        (
            "gil",
            r"""(?:__Pyx_)?PyGILState_Ensure|PyThreadState_Ensure|PyEval_(?:RestoreThread|AcquireThread|AcquireLock)
            |Py_(?:BLOCK|UNBLOCK)_THREADS|Py_(?:BEGIN|END)_ALLOW_THREADS""",
        ),
        (
            "reference",
            r"""(?:__Pyx_|Py_)X?(?:INC|DEC)REF(?:_\w+)?|(?:__Pyx_|Py_)X?CLEAR|Py_X?SETREF|(?:__Pyx_)?Py_X?NewRef
            |__P(?:YX|yx)_X?(?:INC|CLEAR|DEC)_MEMVIEW""",
        ),
        (
            "bounds-check",
            r"""__Pyx_Raise(?:Buffer)?IndexError(?:Nogil)?|__Pyx_Raise\w*TooManyValues\w*
            |__Pyx_RaiseNeedMoreValues\w*""",
        ),
        ("init-check", r"__Pyx_RaiseUnbound\w+|__Pyx_RaiseNoneError\w*|__Pyx_RaiseNoneIndexing\w*"),
        ("exception-check", r"__Pyx_ErrOccurred\w*|PyErr_Occurred|__Pyx_WriteUnraisable|__Pyx_AddTraceback"),
        (
            "raise",
            r"""__Pyx_Raise(?:[A-Z]\w+)?|PyErr_(?:NoMemory|BadArgument\w*|Set\w+|Format|Restore)
            |__Pyx_ErrRestore\w*""",
        ),
        ("thread-pool", r"__pyx_f_5scipy_6linalg_1[13]cython_(?:blas|lapack)_\w+|cblas_\w+|LAPACKE_\w+|GOMP_\w+"),
        ("division", r"__Pyx_(?:div|mod)_\w+"),
        (
            "python",
            r"""_?Py[A-Z][A-Za-z]*_\w+|_Py_\w+|Py_[A-Z][a-z]\w*|__Pyx_PyObject_\w+
            |__Pyx_Py(?:List|Dict|Tuple|Unicode|Bytes)_\w+""",
        ),
    ]
]


def judge(name: str) -> str | None:
    """Return the kind of finding that calling a function of this name is; None if it is not known."""
    if name in _DENY:
        return _DENY[name]
    return next((kind for kind, pattern in _RULES if pattern.match(name)), None)


def judge_error(text: str) -> str:
    """Return the kind of finding of an exception, from the C that sets it."""
    if "ZeroDivisionError" in text or "to perform division" in text:
        return "division"
    if "IndexError" in text or "out of bounds" in text:
        return "bounds-check"
    if "not initialized" in text or "NoneType" in text or "UnboundLocal" in text:
        return "init-check"
    return "raise"


def is_harmless(name: str) -> bool:
    """Return whether a function is known to be bounded, without locks, allocation or system calls."""
    return name in _HARMLESS or bool(_HARMLESS_START.match(name)) or bool(_INERT.match(name))


def is_cython_macro(name: str) -> bool:
    """Return whether a name is a macro that Cython's C uses for its own bookkeeping."""
    return bool(_INERT.match(name))

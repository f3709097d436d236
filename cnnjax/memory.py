"""Keeping what was freed: host memory that training on a CPU asks for again at every step."""

import ctypes
import os
import sys

# From <malloc.h> of the GNU C library.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Has the C library keep freed memory for the next request, instead of giving it back to the system.

    XLA's CPU backend takes the memory of a step's intermediate results, hundreds of megabytes, at its beginning and
    frees it at its end. The GNU C library returns blocks of that size to the system at once and gets fresh pages, which
    the system clears, the next time: a quarter of a training step of ResNet-20. A process that trains has no other use
    for it; it then holds its largest need so far.

    To be called before anything starts a thread (NumPy does, when it is imported): threads that have asked for memory
    before go on as they were. Nothing is done where the C library is another one, where LD_PRELOAD names another
    allocator, or where variables such as MALLOC_ARENA_MAX or GLIBC_TUNABLES say what to do.

    Returns:
      Whether it was done.
    """
    settings = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    another = "malloc" in os.environ.get("LD_PRELOAD", "")  # jemalloc, tcmalloc, mimalloc
    if settings or another or not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has none
        return False
    options = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    return all(set_option(option, value) == 1 for option, value in options)

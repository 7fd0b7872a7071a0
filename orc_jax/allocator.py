"""How the process keeps memory: what a step has freed is there for the next.

XLA:CPU asks for the memory of a step's temporaries, up to gigabytes, in every call, and frees it after that. glibc
gives pieces that large back to the system at once, so that in every call all pages are mapped and zeroed anew.
"""

import ctypes
import os
import platform

# Options of glibc's `mallopt`, by their numbers in its malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
OPTIONS = {
    ARENA_MAX: 1,  # one heap for all threads: those of further threads are too small for such pieces
    MMAP_MAX: 0,  # no piece is mapped for itself
    TRIM_THRESHOLD: -1,  # the end of the heap, where such pieces come to lie, is not given back
}


def keep_pages() -> bool:
    """Lets the process keep the memory that it frees. Returns whether it will.

    To be called before JAX starts its threads. Does nothing without glibc, or where the environment has options for its
    `malloc` already.
    """
    options = ("MALLOC_", "glibc.malloc.")  # of variables of the environment, and of GLIBC_TUNABLES
    given = [*os.environ, os.environ.get("GLIBC_TUNABLES", "")]
    if platform.libc_ver()[0] != "glibc" or any(text.startswith(options[0]) or options[1] in text for text in given):
        return False
    libc = ctypes.CDLL(None)
    return all([libc.mallopt(option, value) for option, value in OPTIONS.items()])

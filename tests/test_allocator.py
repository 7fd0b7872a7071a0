"""The memory that a step frees is kept where glibc allocates, and nothing is touched elsewhere."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from orc_jax import allocator, main

# A step's temporaries: 256 MiB, again and again, from a thread as JAX has them.
FAULTS = """
import ctypes, resource, sys, threading
from orc_jax import allocator
assert allocator.keep_pages() == (sys.argv[1] == "kept")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
faults = []
def steps():
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        piece = libc.malloc(2**28)
        ctypes.memset(piece, 1, 2**28)
        libc.free(piece)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=steps)
thread.start()
thread.join()
print(*faults)
"""
glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def faults(expected, **variables):
    """Pages that are mapped in each of three steps, in a process of its own."""
    clean = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES" and "MALLOC_" not in key}
    command = [sys.executable, "-c", FAULTS, expected]
    done = subprocess.run(command, env=clean | variables, capture_output=True, text=True, check=True)
    return [int(count) for count in done.stdout.split()]


@glibc_only
def test_pages_are_mapped_once():
    first, *others = faults("kept")
    assert first > 1000 and max(others) < 100, "2**16 small pages, or 128 large ones that the kernel may choose"


@glibc_only
@pytest.mark.parametrize("variable", ["MALLOC_TOP_PAD_=0", "GLIBC_TUNABLES=glibc.malloc.check=0"])
def test_a_persons_own_options_are_left_alone(variable):
    assert min(faults("left", **dict([variable.split("=", 1)]))) > 1000


def test_without_glibc_nothing_is_done(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not allocator.keep_pages()


def test_the_command_begins_with_it(monkeypatch):
    calls = []
    monkeypatch.setattr(allocator, "keep_pages", lambda: calls.append(1))
    monkeypatch.setattr(sys, "argv", ["main", "--version"])
    with pytest.raises(SystemExit):
        main.main()
    assert calls

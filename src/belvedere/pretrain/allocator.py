"""Freed memory stays with the process while it trains, instead of going back to the system and being asked for again.

glibc gives every large block back when it is freed. The next step's is then made of pages that the system clears one by
one when they are first touched: of a small network's step on a CPU that is a tenth. Other allocators (musl, macOS,
Windows, jemalloc or tcmalloc put before glibc's) are left as they are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_NEVER_TRIM = -1
_LARGEST = 2**30
_MOST_BY_ITSELF = 32 * 2**20
"""As far as glibc would have raised its own threshold, had nobody set it; that of trimming is twice as much."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed for what is asked for next; at the end all goes back to the system."""
    if sys.platform != "linux" or not hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER_TRIM)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _MOST_BY_ITSELF)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _MOST_BY_ITSELF)
        libc.malloc_trim(0)

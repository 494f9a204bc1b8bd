"""Memory that was freed is kept by the process for the next step.

The allocator of glibc gives large arrays back to the system as soon as they are freed, and takes
their pages anew, zeroed, in the next step: at trials of some 26 MB a step waits longer for pages
than for arithmetic.  Kept, they cost the peak of the memory, which the process needs anyway.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

from biograd.process.switches import KEEP_MEMORY, allowed

OWN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Beginnings of variables by which a user has chosen how memory is allocated."""
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # malloc.h
PAD_BYTES = 64 << 20


def may_keep_memory() -> bool:
    """Return whether the allocator is glibc's and nobody has set it otherwise."""
    chosen = any(name.startswith(OWN) and value for name, value in os.environ.items())
    return sys.platform == "linux" and allowed(KEEP_MEMORY) and not chosen


@cache
def keep_memory() -> bool:
    """Let the allocator keep freed memory, for all of the process; return whether it does."""
    if not may_keep_memory():
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = {MMAP_MAX: 0, TRIM_THRESHOLD: -1, TOP_PAD: PAD_BYTES}  # -1: the largest size
    return all(library.mallopt(name, value) == 1 for name, value in settings.items())

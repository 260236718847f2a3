"""Memory of tensors on CPU: kept by the process instead of given back after every operation."""

from __future__ import annotations

import ctypes

MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD = -3, -1, -2
"""Numbers of glibc's `mallopt`."""


def keep_memory() -> bool:
    """Let glibc keep freed memory for the next tensor; False: this is another C library.

    By default every tensor above 128 KiB to 32 MiB is a mapping of its own: the kernel clears its
    pages when they are first touched, and takes them back when the tensor is gone. A training step
    makes thousands of such tensors.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, 1 << 30) and mallopt(TRIM_THRESHOLD, (1 << 31) - 1))

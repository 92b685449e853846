"""How XLA comes by its working memory on a processor: a sixth of a step's time."""

import ctypes
import sys

import jax

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's `mallopt` (malloc.h)."""
TOP_PAD = 64 << 20
"""Bytes by which an arena grows beyond what is asked of it."""


def keep_memory() -> None:
    """Have the C library keep memory that was freed, for the next step; to be called before JAX touches a
    device.

    XLA on the CPU takes its working memory anew for each call, in one piece, and gives it back. glibc hands
    so large a piece back to the kernel, which zeroes every page of the next one: 160 GB of pages in a demo
    run. Pieces of any size it can keep for the main thread only, so JAX is told to run a program in the
    thread that calls it. XLA's own threads, which take small pieces by the thousand, have arenas of their
    own: in a common one they wait for each other.

    Without effect where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD)):
            mallopt(parameter, value)
        jax.config.update("jax_cpu_enable_async_dispatch", False)

"""Keep glibc from returning XLA's CPU buffers to the kernel, which saves a sixth of a step's time."""

import ctypes
import sys

import jax

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's `mallopt` (malloc.h)."""
TOP_PAD = 64 << 20
"""Bytes by which an arena grows beyond each request."""


def keep_memory() -> None:
    """Let the C library keep freed memory for the next step; call it before JAX touches a device.

    XLA on the CPU allocates one buffer of working memory per call and frees it. glibc returns so large a
    buffer to the kernel, which zeroes every page of the next one: 160 GB of pages in a demo run. glibc can
    keep buffers of any size for the main thread only, so JAX is told to run programs in the calling thread.
    XLA's own threads, which allocate thousands of small buffers, keep arenas of their own: in a common arena
    they wait for each other.

    No effect if the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD)):
            mallopt(parameter, value)
        jax.config.update("jax_cpu_enable_async_dispatch", False)

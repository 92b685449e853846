"""What fits a device: how many films it handles at once, and whether it holds all of them.

Nothing is tried out: the compiler says how many bytes a step of a given size needs (`memory_analysis`) before
anything is allocated. The choice depends on device, configuration and data only, and a run keeps the one it
began with (`run.json`).
"""

from collections.abc import Callable
from typing import Any

STEP_SHARE = 0.9
"""Part of a device's memory that step, films, parameters and optimiser may take: the rest is for what the
compiler does not count.
"""
FILMS_SHARE = 0.7
"""Largest part of a device's memory that films kept on it may take."""
MOST = 256
"""Units in a microbatch at most: beyond, a larger one is not faster."""
CPU_PIXELS, CPU_MOST = 2**19, 32
"""On a processor, whose memory says little, a microbatch has at most so many pixels and so many units: a few
hundred megabytes with the paper's network.
"""


def device_bytes(device: Any) -> int | None:
    """Memory of an accelerator in bytes, or None for a processor."""
    stats = None if device.platform == "cpu" else device.memory_stats()
    return None if stats is None else int(stats["bytes_limit"])


def choose_microbatch(bytes_of: Callable[[int], int], available: int | None, needed: int, pixels: int) -> int:
    """Units in a microbatch of one device: a power of two.

    Args:
        bytes_of: units -> bytes that the compiled step needs; it is compiled for each number asked for.
        available: bytes for it; None for a processor, on which nothing is compiled.
        needed: units that a step has at most to expect; more than the next power of two would be padding.
        pixels: of a unit, all films and views of it together.

    Returns:
        About the largest that fits: it does, or is 1, for the device to refuse.
    """
    most = min(MOST, 1 << max(needed - 1, 0).bit_length())
    if available is None:
        return min(most, CPU_MOST, _power_of_two(CPU_PIXELS // pixels))
    if most <= 4:
        guess = most
    else:  # bytes grow about linearly: two small steps tell where to begin
        small, large = bytes_of(2), bytes_of(4)
        each = max((large - small) / 2, 1)
        guess = min(most, _power_of_two(int((available - small) / each) + 2))
    while guess > 1 and bytes_of(guess) > available:
        guess //= 2
    return guess


def _power_of_two(number: int) -> int:
    """The largest one up to `number`, at least 1."""
    return 1 << (max(number, 1).bit_length() - 1)

"""What fits a device: how many units it handles at once, and whether it can hold all images.

Nothing is run to find out: the compiler reports how many bytes a step needs (`memory_analysis`) before
anything is allocated. The choice depends only on device, configuration and data, and a run keeps the one with
which it began (`run.json`).
"""

from collections.abc import Callable
from typing import Any

STEP_SHARE = 0.9
"""Share of a device's memory for step, images, parameters and optimiser; the rest is for what is not counted.
"""
IMAGES_SHARE = 0.7
"""Largest share of a device's memory for images kept on it."""
MOST = 256
"""Largest microbatch in units; throughput is flat beyond it."""
CPU_PIXELS, CPU_MOST = 2**19, 32
"""Largest microbatch on a CPU, in pixels and in units: a few hundred megabytes with the paper's network."""


def device_bytes(device: Any) -> int | None:
    """Memory of an accelerator in bytes; None for a CPU."""
    stats = None if device.platform == "cpu" else device.memory_stats()
    return None if stats is None else int(stats["bytes_limit"])


def choose_microbatch(bytes_of: Callable[[int], int], available: int | None, needed: int, pixels: int) -> int:
    """Number of units in a microbatch of one device: a power of two.

    Args:
        bytes_of: units -> bytes that the compiled step needs; it is compiled for each number asked for.
        available: bytes available; None for a CPU, for which nothing is compiled.
        needed: largest expected number of units in a step; beyond the next power of two all would be padding.
        pixels: number of pixels of a unit, all its images and views together.

    Returns:
        About the largest that fits; 1 if none fits, for the device to refuse.
    """
    most = min(MOST, 1 << max(needed - 1, 0).bit_length())
    if available is None:
        return min(most, CPU_MOST, _power_of_two(CPU_PIXELS // pixels))
    if most <= 4:
        guess = most
    else:  # memory grows about linearly: two small steps give a starting point
        small, large = bytes_of(2), bytes_of(4)
        each = max((large - small) / 2, 1)
        guess = min(most, _power_of_two(int((available - small) / each) + 2))
    while guess > 1 and bytes_of(guess) > available:
        guess //= 2
    return guess


def _power_of_two(number: int) -> int:
    """The largest power of two up to `number`, at least 1."""
    return 1 << (max(number, 1).bit_length() - 1)

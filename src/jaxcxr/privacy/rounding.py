"""What is kept free of the clip norm for the rounding of sums within a microbatch (`mechanism` says when).

The unit is 2^-24 x (expected units in a batch) x (clip norm): one rounding of a sum to which so many units
contribute their most, all in one direction.
"""

from jaxcxr.errors import InputError

FACTOR = 32.0
"""Units kept free."""
FOUND = 4.4
"""The most that was found, if every microbatch of a batch changes as the worst one did, on a CPU
(`tests/privacy/rounding.py search`: the paper's network, 64 pixels, microbatches of 32, 150 changes of films
that were alike).
"""


def rounding_allowance(expected_batch_size: int) -> float:
    """Part of the clip norm that is kept free.

    Raises:
        InputError: little would be left of it.
    """
    allowance = FACTOR * 2.0**-24 * expected_batch_size
    if allowance > 0.5:
        raise InputError(
            f"training.expected_batch_size: float32 sums are too coarse for {expected_batch_size} units; "
            "expected a smaller one, or privacy.noise 'discrete', whose sums are exact"
        )
    return allowance

"""Bounds in few digits that stay bounds: upper bounds are rounded up, lower bounds down."""

import math

DIGITS = 6
"""Significant digits of a bound in a file; a page shows fewer."""


def round_up(value: float, digits: int = DIGITS) -> float | None:
    """An upper bound in so many significant digits; None if it is infinite, as JSON has no infinity."""
    return _rounded(value, digits, up=True)


def round_down(value: float, digits: int = DIGITS) -> float | None:
    """A lower bound in so many significant digits; None if it is infinite."""
    return _rounded(value, digits, up=False)


def upper_text(value: float | None, digits: int = 4) -> str:
    """An upper bound for a reader; None and infinity are 'without limit'."""
    return _text(None if value is None else round_up(value, digits), digits)


def lower_text(value: float | None, digits: int = 4) -> str:
    """A lower bound for a reader; None and infinity are 'without limit'."""
    return _text(None if value is None else round_down(value, digits), digits)


def _text(rounded: float | None, digits: int) -> str:
    return "without limit" if rounded is None else f"{rounded:.{digits}g}"


def _rounded(value: float, digits: int, *, up: bool) -> float | None:
    if math.isinf(value):
        return None
    if value == 0:
        return 0.0
    scale = 10.0 ** (digits - 1 - math.floor(math.log10(abs(value))))
    exact = value * scale
    near = round(exact)
    if math.isclose(exact, near, rel_tol=1e-12):
        return near / scale  # 0.3 is 0.3, not 0.300001
    return (math.ceil(exact) if up else math.floor(exact)) / scale

"""Numbers, intervals and names as a reader of a page or of the screen sees them."""

from collections.abc import Iterable

from jaxcxr.report.paper.supplementary_tables import title


def number(value: float, digits: int = 3) -> str:
    """A number with a proper minus sign, and never a minus zero."""
    return f"{round(float(value), digits) + 0.0:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, plus included."""
    return f"{round(float(value), digits) + 0.0:+.{digits}f}".replace("-", "−")


def between(low: float, high: float, digits: int = 3) -> str:
    """An interval in words: '0.010 to 0.070'."""
    return f"{number(low, digits)} to {number(high, digits)}"


def leaves_out_zero(low: float, high: float) -> bool:
    """True if an interval is known and on one side of zero; an interval that touches zero is not."""
    return bool(low > 0 or high < 0)


def p_text(p: float, smallest: float = 0.0) -> str:
    """A p-value in words.

    Args:
        p: the p-value.
        smallest: the least p-value that the bootstrap replicates can show; at it, p is an upper bound only.
    """
    if p <= smallest * (1 + 1e-9):
        return f"p ≤ {max(smallest, 0.001):.3f}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def counted(count: int, noun: str) -> str:
    """A number with its noun: '1 finding', '8 findings'."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def listed(findings: Iterable[object]) -> str:
    """Names of findings as they stand in a table: 'Heart, Lung and Rib'."""
    names = [title(str(finding)) for finding in findings]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""The privacy profile as a small drawing (SVG) that takes its colours from the page."""

import math
from collections.abc import Sequence

from jaxcxr.report.bounds import upper_text
from jaxcxr.report.card.card_schema import Claim, ProfileRow

_WIDTH, _HEIGHT = 360.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 352.0, 12.0, 158.0


def profile_figure(profile: Sequence[ProfileRow], claim: Claim) -> str:
    """delta, downwards on a logarithmic axis, against the epsilon that it goes with; empty if there are fewer
    than two points to draw.
    """
    points = [(row.epsilon_upper, row.delta) for row in profile if row.epsilon_upper is not None]
    if len(points) < 2:
        return ""
    widest = _nice(max(epsilon for epsilon, _ in points))
    deepest = math.ceil(-math.log10(min(delta for _, delta in points)))

    def at(epsilon: float, delta: float) -> tuple[str, str]:
        x = _LEFT + (_RIGHT - _LEFT) * epsilon / widest
        y = _TOP + (_BOTTOM - _TOP) * (-math.log10(delta) / deepest)
        return f"{x:.1f}", f"{y:.1f}"

    placed = [at(*point) for point in points]
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="{5 if delta == claim.delta else 3}"/>'
        for (x, y), (_, delta) in zip(placed, points, strict=True)
    )
    said = "; ".join(f"delta {delta:.3g}: epsilon {upper_text(epsilon)}" for epsilon, delta in points)
    return (
        f'<svg class="profile" viewBox="0 0 {_WIDTH:.0f} {_HEIGHT:.0f}" role="img" '
        f'aria-label="Privacy profile: {said}">'
        f'<path class="axis" d="M{_LEFT:.0f} {_TOP:.0f}V{_BOTTOM:.0f}H{_RIGHT:.0f}"/>'
        f"{_ticks(widest, deepest)}"
        f'<polyline points="{" ".join(f"{x},{y}" for x, y in placed)}"/>{dots}'
        f'<text x="{(_LEFT + _RIGHT) / 2:.0f}" y="{_HEIGHT - 6:.0f}" text-anchor="middle">epsilon</text>'
        f'<text x="{_LEFT + 6:.0f}" y="{_TOP + 6:.0f}">delta</text></svg>'
    )


def _ticks(widest: float, deepest: int) -> str:
    below = f'y="{_BOTTOM + 16:.0f}" text-anchor="middle"'
    found = [
        f'<text x="{_LEFT + (_RIGHT - _LEFT) * part:.0f}" {below}>{widest * part:.3g}</text>'
        for part in (0.0, 0.5, 1.0)
    ]
    for power in range(0, deepest + 1, max(1, deepest // 4)):
        y = _TOP + (_BOTTOM - _TOP) * power / deepest + 4
        label = "1" if power == 0 else f"1e-{power}"
        found.append(f'<text x="{_LEFT - 5:.0f}" y="{y:.0f}" text-anchor="end">{label}</text>')
    return "".join(found)


def _nice(value: float) -> float:
    """A round number of at least `value`, and above 0."""
    if value <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 1.5, 2, 3, 4, 5, 7.5, 10) if step * unit >= value)

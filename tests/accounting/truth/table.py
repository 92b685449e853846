"""The accountant's bounds beside the true epsilons of `true_epsilon.csv`. Run by hand:

python -m tests.accounting.truth.table                 a line per case, then a summary; exit status 1 if a bound is on the wrong side
python -m tests.accounting.truth.table --recompute     the truths themselves, computed again and compared with the file
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxcxr.accounting import Spending, epsilon_bounds
from jaxcxr.accounting.group_privacy import patient_bounds
from tests.accounting.truth.cases import Known, read, written
from tests.accounting.truth.composition import truth
from tests.accounting.truth.mechanism import Case

ORDINARY_DELTA = 1e-9


class Answer(NamedTuple):
    """What the accountant says; `refusal` is its sentence where it gives no bounds."""

    lower: float
    upper: float
    refusal: str = ""


class Verdict(NamedTuple):
    """`violation` says which bound is on the wrong side of the truth. Loosenesses are relative to the truth, NaN where it is 0."""

    violation: str
    looseness: float
    looseness_below: float


def answer(case: Case) -> Answer:
    spendings = [Spending(*r) for r in case.releases]
    try:
        if case.images == 1:
            bounds = epsilon_bounds(spendings, case.delta, case.adjacency)
        else:
            bounds = patient_bounds(spendings, case.delta, case.images)
    except (ValueError, ArithmeticError, MemoryError) as error:
        return Answer(0.0, math.inf, f"{type(error).__name__}: {error}")
    return Answer(bounds.lower, bounds.upper)


def judge(known: Known, found: Answer) -> Verdict:
    true, error = known.truth
    wrong = []
    if not found.upper >= true - error:
        wrong.append("UPPER BELOW THE TRUTH")
    if not found.lower <= true + error:
        wrong.append("LOWER ABOVE THE TRUTH")
    if true == 0:
        return Verdict(", ".join(wrong), math.nan, math.nan)
    return Verdict(", ".join(wrong), found.upper / true - 1, 1 - found.lower / true)


def judged() -> int:
    """Prints the table; returns the number of cases with a violation."""
    rows = []
    for known in read():
        began = time.perf_counter()
        found = answer(known.case)
        seconds = time.perf_counter() - began
        verdict = judge(known, found)
        rows.append((known, found, verdict, seconds))
        print(
            f"{_named(known)} lower {found.lower:<11.7g} true {known.truth.epsilon:<11.7g} upper {found.upper:<11.7g} "
            f"{verdict.looseness:+9.2e} {-verdict.looseness_below:+9.2e} {seconds:6.2f} s {found.refusal} {verdict.violation}",
            flush=True,
        )
    violations = [row for row in rows if row[2].violation]
    for known, found, verdict, _ in violations:
        print(
            f"{_named(known)} [{found.lower!r}, {found.upper!r}] for {known.truth.epsilon!r} +- {known.truth.error:.1e}: {verdict.violation}"
        )
    print(
        f"\n{len(rows)} cases, {len(violations)} with a violation, {sum(bool(r[1].refusal) for r in rows)} refused"
    )
    kept: dict[str, Callable[[Case], bool]] = {
        f"delta >= {ORDINARY_DELTA:g}": lambda case: case.delta >= ORDINARY_DELTA,
        "all": lambda case: case.delta > 0,
    }
    for name, keep in kept.items():
        _summary(
            name, [(f, v) for k, f, v, _ in rows if keep(k.case) and k.truth.epsilon > 0 and not v.violation]
        )
    nothing = [f.upper for k, f, _, _ in rows if k.truth.epsilon == 0]
    print(
        f"truth 0: {len(nothing)} cases, {sum(u == 0 for u in nothing)} answered with 0, largest upper bound {max(nothing):.3g}"
    )
    seconds = [s for *_, s in rows]
    print(
        f"time: {sum(seconds):.0f} s, median {statistics.median(seconds):.2f} s, most {max(seconds):.1f} s a case"
    )
    return len(violations)


def _summary(name: str, rows: Sequence[tuple[Answer, Verdict]]) -> None:
    above = [v.looseness for f, v in rows if math.isfinite(f.upper)]
    below = [v.looseness_below for f, v in rows if math.isfinite(f.upper)]
    print(
        f"{name}: {len(rows)} cases, {sum(math.isinf(f.upper) for f, _ in rows)} without an upper bound; upper bound above the truth by "
        f"{max(above):.3%} at worst, {statistics.median(above):.4%} in the median, {sum(a > 1e-3 for a in above)} by more than 0.1 %; "
        f"lower bound below by {max(below):.3%} and {statistics.median(below):.4%}"
    )


def recomputed() -> int:
    """Compares the file with truths computed again; returns how many differ by more than both errors."""
    differing = 0
    began = time.perf_counter()
    for known in read():
        again = truth(known.case)
        if abs(again.epsilon - known.truth.epsilon) > again.error + known.truth.error + 1e-12 * again.epsilon:
            differing += 1
            print(f"{_named(known)} {known.truth} in the file, {again} computed again", flush=True)
    print(f"{len(read())} truths computed again in {time.perf_counter() - began:.0f} s, {differing} differ")
    return differing


def _named(known: Known) -> str:
    case = known.case
    return f"{known.kind:16} {written(case):44} delta {case.delta:<8g} images {case.images:<2} {case.adjacency:11}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recompute", action="store_true")
    sys.exit(1 if (recomputed() if parser.parse_args().recompute else judged()) else 0)

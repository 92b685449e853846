"""The cases on which the accountant is judged, and the file that keeps their true epsilons. Run by hand, it takes minutes:

python -m tests.accounting.truth.cases          choose the cases anew, compute their truths, write true_epsilon.csv
"""

import csv
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from scipy.optimize import brentq

from tests.accounting.truth.composition import SETTINGS, Loss, Truth, truth
from tests.accounting.truth.mechanism import Adjacency, Case, Releases

FILE = Path(__file__).with_name("true_epsilon.csv")
PAPER_RATE, PAPER_DELTA = 128 / 153502, 6e-6
DEMO_RATE = 512 / 8000


class Known(NamedTuple):
    """A case and its truth. `kind` says why the case was chosen."""

    kind: str
    case: Case
    truth: Truth


def read() -> list[Known]:
    with FILE.open(newline="") as file:
        return [
            Known(
                row["kind"],
                Case(
                    _releases(row["releases"]),
                    float(row["delta"]),
                    int(row["films"]),
                    cast(Adjacency, row["adjacency"]),
                ),
                Truth(float(row["epsilon"]), float(row["error"])),
            )
            for row in csv.DictReader(file)
        ]


def write(known: list[Known]) -> None:
    with FILE.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("kind", "releases", "delta", "films", "adjacency", "epsilon", "error"))
        for kind, case, (epsilon, error) in known:
            rows.writerow(
                (
                    kind,
                    written(case),
                    repr(case.delta),
                    case.images,
                    case.adjacency,
                    repr(epsilon),
                    f"{error:.1e}",
                )
            )


def written(case: Case) -> str:
    """Sample rate / noise multiplier / steps, joined by a plus."""
    return " + ".join(f"{r.sample_rate!r}/{r.noise_multiplier!r}/{r.steps}" for r in case.releases)


def _releases(text: str) -> tuple[Releases, ...]:
    parts = (part.split("/") for part in text.split(" + "))
    return tuple(Releases(float(q), float(sigma), int(steps)) for q, sigma, steps in parts)


def one(
    q: float, sigma: float, steps: int, delta: float, images: int = 1, adjacency: Adjacency = "add_remove"
) -> Case:
    return Case((Releases(float(q), float(sigma), steps),), delta, images, adjacency)


def small_delta() -> Iterator[Case]:
    """Where an accountant that composes by Fourier transforms without tilting answers with its own rounding."""
    for delta in (1e-8, 1e-9, 1e-10, 1e-11, 1e-12, 1e-13, 1e-15):
        yield one(PAPER_RATE, 1, 179885, delta)
        yield one(0.001, 1, 10**6, delta)
        yield one(1, 1500, 10**6, delta)
        yield one(1, 100, 10**4, delta)
        yield one(0.01, 2, 1000, delta)
    for delta in (1e-9, 1e-12, 1e-14):
        yield one(1, 1000, 10**5, delta)
        yield one(1, 2000, 10**6, delta, 2)
        yield one(1, 2000, 10**6, delta, adjacency="replace_one")


def paper() -> Iterator[Case]:
    """The paper's run in 150 and 100 epochs with the noise of its six budgets; one image, patients of several, replacement."""
    for sigma in (4.311, 2.5, 1.462, 0.9636, 0.6743, 0.5816):
        yield one(PAPER_RATE, sigma, 179885, PAPER_DELTA)
    for sigma in (3.5474, 2.0812, 1.2533, 0.8603, 0.63166, 0.55271):
        yield one(PAPER_RATE, sigma, 119923, PAPER_DELTA)
    for images in (2, 4, 10):
        for sigma in (4.311, 1.462, 0.9636):
            yield one(PAPER_RATE, sigma, 179885, PAPER_DELTA, images)
    for sigma in (4.311, 1.462, 0.5816):
        yield one(PAPER_RATE, sigma, 179885, PAPER_DELTA, adjacency="replace_one")
        yield one(PAPER_RATE, sigma, 179885, 1e-12)


def demo() -> Iterator[Case]:
    for sigma in (4.349, 1.641, 0.6161):
        yield one(DEMO_RATE, sigma, 45, 1e-4)
        yield one(DEMO_RATE, sigma, 45, 1e-10)
        yield one(DEMO_RATE, sigma, 45, 1e-4, 2)
        yield one(DEMO_RATE, sigma, 45, 1e-4, adjacency="replace_one")


def with_statistics() -> Iterator[Case]:
    """A training run beside a statistic of everybody, or beside another run."""
    for delta in (1e-4, PAPER_DELTA, 1e-10, 1e-14):
        yield Case((Releases(1.0, 20.0, 1), Releases(PAPER_RATE, 1.462, 179885)), delta)
        yield Case((Releases(1.0, 4.0, 1), Releases(DEMO_RATE, 1.641, 45)), delta)
        yield Case((Releases(0.01, 1.1, 500), Releases(0.001, 0.7, 20000)), delta)
    yield Case((Releases(1.0, 20.0, 1), Releases(PAPER_RATE, 1.462, 179885)), PAPER_DELTA, 4)
    yield Case((Releases(1.0, 4.0, 1), Releases(DEMO_RATE, 1.641, 45)), 1e-4, adjacency="replace_one")


def always_drawn() -> Iterator[Case]:
    """No sampling, from one release to ten million."""
    deltas = (1e-1, 1e-3, 1e-5, 1e-7, 1e-9, 1e-11, 1e-13, 1e-15)
    plans = ((1, 0.5), (1, 3.0), (1, 100.0), (100, 10.0), (10**4, 300.0), (10**6, 700.0), (10**7, 9000.0))
    for i, (steps, sigma) in enumerate(plans):
        for delta in deltas[i % 2 :: 2]:
            yield one(1, sigma, steps, delta)
        yield one(1, sigma * 4, steps, deltas[i], 4)
        yield one(1, sigma * 2, steps, deltas[-1 - i], adjacency="replace_one")


def one_release() -> Iterator[Case]:
    """Sampled once."""
    plans = (
        (1e-9, 0.3),
        (1e-6, 0.3),
        (1e-4, 0.3),
        (0.001, 0.5),
        (0.01, 0.4),
        (0.1, 0.7),
        (0.3, 2.0),
        (0.7, 1.0),
        (0.999, 1.0),
        (0.5, 300.0),
    )
    for i, (q, sigma) in enumerate(plans):
        for delta in (1e-3, 1e-6, 1e-9, 1e-12, 1e-15)[i % 2 :: 2]:
            yield one(q, sigma, 1, delta)
        yield one(q, sigma, 1, 1e-10, (2, 4, 10)[i % 3])
        yield one(q, sigma, 1, 1e-7, adjacency="replace_one")


def nothing() -> Iterator[Case]:
    """Epsilon is 0: delta covers all that could be told."""
    yield one(1e-6, 0.2, 1, 1e-5)
    yield one(1e-9, 0.3, 10**6, 2e-3)
    yield one(1e-9, 1e4, 10**7, 1e-9)
    yield one(1e-6, 1, 1000, 1e-4)
    yield one(1e-6, 1, 1000, 1e-5, 10)
    yield one(1e-6, 1, 1000, 1e-4, adjacency="replace_one")
    yield one(0.001, 1000, 1, 1e-6)
    yield one(0.01, 1e4, 10**4, 1e-4)
    yield one(0.5, 1e4, 1, 1e-4)
    yield one(1, 1e4, 1, 1e-4)
    yield one(1, 1e4, 100, 1e-3, 2)
    yield one(PAPER_RATE, 50, 100, 1e-3)
    yield one(DEMO_RATE, 20, 45, 0.1)


def drawn(count: int = 200) -> Iterator[Case]:
    """Plans of all sizes, their noise such that epsilon comes out near a value drawn between 1e-3 and 100."""
    rng = np.random.default_rng(20261130)
    while count:
        steps = round(
            10
            ** rng.choice(
                [rng.uniform(0.31, 2), rng.uniform(2, 5.3), rng.uniform(5.3, 7), 7.0], p=[0.2, 0.5, 0.2, 0.1]
            )
        )
        q = float(f"{10 ** rng.choice([rng.uniform(-9, -4), rng.uniform(-4, -0.01)], p=[0.15, 0.85]):.3g}")
        delta = float(f"{10 ** rng.uniform(-15, -1):.2g}")
        images = int(rng.choice([1, 2, 4, 10], p=[0.7, 0.1, 0.1, 0.1]))
        adjacency: Adjacency = "replace_one" if images == 1 and rng.random() < 0.2 else "add_remove"
        wanted = 10 ** rng.uniform(-3, 2)

        def excess(log_sigma: float) -> float:
            case = one(q, math.exp(log_sigma), steps, delta, images, adjacency)  # noqa: B023
            loss = Loss(case, False, SETTINGS[0])
            return loss.saddle(lambda saddle: wanted - saddle.epsilon).log_delta - math.log(delta)  # noqa: B023

        # About right by the central limit theorem; then a bracket about it.
        reach = math.sqrt(-2 * math.log(delta))
        mu = math.sqrt(reach**2 + 2 * wanted) - reach
        guess = 1 / math.sqrt(math.log1p((mu / (images * q)) ** 2 / steps))
        low = high = math.log(min(max(guess, 0.3), 1e4))
        while excess(low) < 0 and low > math.log(0.3):
            low -= 0.3
        while excess(high) > 0 and high < math.log(1e4):
            high += 0.3
        root: Any = brentq(excess, low, high, xtol=1e-3) if excess(low) > 0 > excess(high) else -math.inf
        sigma = float(f"{math.exp(root):.3g}")
        if 0.3 <= sigma <= 1e4:
            yield one(q, sigma, steps, delta, images, adjacency)
            count -= 1


def chosen() -> Iterator[tuple[str, Case]]:
    for part in (small_delta, paper, demo, with_statistics, always_drawn, one_release, nothing, drawn):
        for case in part():
            yield part.__name__.replace("_", " "), case


def main() -> None:
    known = []
    for kind, case in chosen():
        began = time.process_time()
        try:
            known.append(Known(kind, case, truth(case)))
        except ArithmeticError as error:
            print(f"left out: {error}")
            continue
        print(
            f"{kind:16} {written(case):45} delta {case.delta:g} {case.images} {case.adjacency} {known[-1].truth} {time.process_time() - began:.2f} s",
            flush=True,
        )
    write(known)


if __name__ == "__main__":
    main()

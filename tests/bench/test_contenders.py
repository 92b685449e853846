"""Every contender computes the same sum; peers are skipped where they are not installed."""

import numpy as np
import pytest

from jaxcxr.bench.case import Case, GradientSums
from jaxcxr.bench.measure import OURS, PEERS, distance
from jaxcxr.bench.worker import build

pytestmark = pytest.mark.thorough
CASE = Case(32, 2, width=32, n_findings=3)


def sums(name: str) -> GradientSums:
    contender = build(name, CASE)
    contender.step()
    return contender.on_host(contender.step())  # a second step must not add to the first


@pytest.fixture(scope="module")
def references() -> dict[bool, GradientSums]:
    return {False: sums("jaxcxr nonprivate"), True: sums("jaxcxr vmap")}


@pytest.mark.parametrize("name", [*OURS, *PEERS["opacus"], *PEERS["jax_privacy"]])
def test_sums_agree(name: str, references: dict[bool, GradientSums]) -> None:
    if name.startswith(("torch", "opacus")):
        pytest.importorskip("torch")
    if name.startswith("opacus"):
        pytest.importorskip("opacus")
    private = not name.endswith("nonprivate")
    found = sums(name)
    assert list(found) == list(references[private])
    assert distance(found, references[private]) < 1e-4


def test_clipping_changes_the_sum(references: dict[bool, GradientSums]) -> None:
    assert distance(references[False], references[True]) > 0.05
    assert all(np.any(array) for array in references[True].values())

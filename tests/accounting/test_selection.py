import math

import pytest
from dp_accounting import SelfComposedDpEvent
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, RepeatAndSelectDpEvent
from dp_accounting.rdp import RdpAccountant

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.accounting.selection import choose_best, publish_all

CHEAP, EXPENSIVE = [Spending(0.05, 2.0, 50)], [Spending(0.05, 1.2, 50)]
DELTA = 1e-5


def test_publishing_all_is_composition() -> None:
    together = publish_all([CHEAP, EXPENSIVE], DELTA)
    assert together.upper == accounting.epsilon_pld([*CHEAP, *EXPENSIVE], DELTA)
    assert together.lower > accounting.epsilon_pld(EXPENSIVE, DELTA)


@pytest.mark.parametrize(("repetitions", "shape"), [("poisson", math.inf), ("geometric", 1.0)])
@pytest.mark.parametrize("mean", [1.5, 7.0])
def test_choosing_the_best_is_papernot_and_steinkes_bound(
    repetitions: str, shape: float, mean: float
) -> None:
    run = SelfComposedDpEvent(PoissonSampledDpEvent(0.05, GaussianDpEvent(1.2)), 50)
    accountant = RdpAccountant()
    accountant.compose(RepeatAndSelectDpEvent(run, mean, shape))
    expected = accountant.get_epsilon(DELTA)
    found = choose_best([EXPENSIVE], DELTA, mean, repetitions)  # type: ignore[arg-type]
    assert found == pytest.approx(expected, rel=0.01)


def test_the_most_expensive_candidate_decides_and_repeating_costs() -> None:
    assert (
        choose_best([CHEAP, EXPENSIVE], DELTA, 2.0)
        == choose_best([EXPENSIVE], DELTA, 2.0)
        > choose_best([CHEAP], DELTA, 2.0)
    )
    assert choose_best([EXPENSIVE], DELTA, 1.0) >= accounting.epsilon_rdp(EXPENSIVE, DELTA)
    assert choose_best([EXPENSIVE], DELTA, 20.0) > choose_best([EXPENSIVE], DELTA, 2.0)
    assert choose_best([[Spending(0.1, 0.0, 1)]], DELTA, 2.0) == math.inf
    with pytest.raises(ValueError, match="mean_runs"):
        choose_best([EXPENSIVE], DELTA, 0.5)


def test_many_runs_cost_less_to_choose_from_than_to_publish() -> None:
    runs = [CHEAP] * 40
    assert choose_best(runs, DELTA) < publish_all(runs, DELTA).lower

"""Every planted fault is seen by the check that should see it; right code passes. The whole table, through the
loop and with many right runs: `python -m tests.audit.planted`.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from jaxcxr.audit.audit import lengths_alone, noise_of_nothing
from jaxcxr.audit.checks import LEVEL, Check, sharing
from jaxcxr.audit.implementation_checks import implementation_checks, long_draws
from jaxcxr.audit.noise_checks import noise_checks
from jaxcxr.audit.recording import Own, Recorder
from jaxcxr.audit.reference import leaves_of
from jaxcxr.audit.sampling_checks import sampling_checks
from jaxcxr.training import parameters
from jaxcxr.training.plan import RunPlan
from tests.audit import planted, small
from tests.audit.plantings import ALL
from tests.training.tiny import MAKE_NETWORK, tiny_network

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 8
SECRETS = bytes(range(32)), bytes(range(1, 33))
NOISE = (
    "no noise on a bias", "one finding's classifier without noise", "half of each leaf's noise repeats the other",
    "one noise for leaves of one shape", "deviation taken for variance", "noise times the learning rate",
    "tails cut at 2.8", "no noise on the head", "noise in every second update", "noise in 16 bits",
    "Laplace noise of the right deviation", "noise added on each of two devices", "keys without the secret",
    "one key for all steps", "noise that repeats after 60 steps",
)  # fmt: skip
DRAWS = (
    "batches from a public seed", "units drawn in pairs", "shuffled epochs", "the last microbatch dropped",
    "batches cut at the expected size", "batches of one size", "no unit twice running",
    "three neighbours together seldom",
)  # fmt: skip
LOOP = {
    "contributions 5 % too long": "no unit contributes more than the clip norm",
    "each coordinate clipped (L-infinity)": "no unit contributes more than the clip norm",
    "the head left out of the norm": "no unit contributes more than the clip norm",
    "microbatches clipped instead of units": "sums are those of units clipped by definition",
    "the optimiser sees the sum without noise, too": "weights and optimiser follow from what is released",
    "divided by what was drawn": "weights and optimiser follow from what is released",
    "ledger written at the end": "the ledger has every release, before it is made",
    "another noise in the ledger": "the ledger has every release, before it is made",
    "padding repeats images": "the devices are given units of the data, each once",
    "images normalised by their batch": "the devices are given units of the data, each once",
    "empty batches skipped": "the ledger has every release, before it is made",
    "every second ledger line left out": "the ledger has every release, before it is made",
    "keys of 16 bits": "every bit of a noise key is drawn",
    "keys that forget high bits of the step": "no noise key is used twice, by this secret or another",
}


@pytest.fixture(scope="module")
def right() -> Iterator[Recorder]:
    """A recorder that has compiled the tiny network, for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAKE_NETWORK, tiny_network)
        yield planted.base(STEPS)


@pytest.fixture
def plan(right: Recorder, monkeypatch: pytest.MonkeyPatch) -> RunPlan:
    monkeypatch.setattr(MAKE_NETWORK, tiny_network)
    return planted.subject_of(STEPS).plan(np.ones(small.SIZE.canaries, bool))


@pytest.fixture(scope="module")
def params(right: Recorder) -> object:
    return parameters.random_params(planted.subject_of(STEPS).config, bytes(32))


def failed(checks: list[Check]) -> list[Check]:
    return [check for check in sharing(checks * 2)[: len(checks)] if check.failed]


def of_noise(recorder: Recorder, plan: RunPlan, params: object) -> list[Check]:
    """What the checks of the noise find in releases of nothing, with two secrets."""
    rows = [noise_of_nothing(recorder, plan, secret, params, range(64)) for secret in SECRETS]
    noise, rng = np.concatenate(rows), np.random.default_rng(0)
    return failed(noise_checks(noise, 0 * noise, leaves_of(params), continuous=True, rng=rng))


def of_draws(plan: RunPlan) -> list[Check]:
    runs = [long_draws(plan, secret, 64) for secret in SECRETS]
    assert plan.mechanism is not None
    return failed(sampling_checks(runs, long_draws(plan, SECRETS[0], 2000), plan.mechanism.sample_rate))


def test_every_planting_is_tested() -> None:
    assert sorted((*NOISE, *DRAWS, *LOOP)) == sorted(ALL)


def test_right_noise_and_draws_pass(right: Recorder, plan: RunPlan, params: object) -> None:
    assert of_noise(right, plan, params) == []
    assert of_draws(plan) == []


@pytest.mark.parametrize("fault", NOISE)
def test_wrong_noise_is_seen(
    right: Recorder, plan: RunPlan, params: object, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, plant = ALL[fault]
    plant(monkeypatch)
    own = right.own if kind == "called" else Own(plan, right.own.reference)
    assert of_noise(Recorder(small.subject().canaries, right.compiled, own), plan, params)


@pytest.mark.parametrize("fault", DRAWS)
def test_wrong_draws_are_seen(plan: RunPlan, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ALL[fault][1](monkeypatch)
    assert of_draws(plan)


@pytest.mark.parametrize("fault", LOOP)
def test_what_the_loop_does_wrong_is_seen(
    right: Recorder, plan: RunPlan, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, plant = ALL[fault]
    plant(monkeypatch)
    recorder = planted.planted_recorder(kind, right, STEPS)
    runs = planted.record(recorder, STEPS, runs=1)
    lengths = lengths_alone(recorder, runs[0], np.random.default_rng(0))
    assert LOOP[fault] in {check.name for check in failed(implementation_checks(runs, lengths))}


def test_right_runs_pass_every_check(right: Recorder, plan: RunPlan) -> None:
    checks = planted.checks(right, STEPS)
    assert [check for check in checks if check.failed] == []
    assert len(checks) == 25
    assert sum(check.level for check in checks) == pytest.approx(LEVEL)

"""An audit of correlated noise: right code passes, its own planted faults are seen, and scores reach over steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxcxr.audit import attacks
from jaxcxr.audit.audit import Audit, checks_of
from jaxcxr.audit.recording import Own, Recorder
from jaxcxr.audit.subject import Subject, subject_of
from jaxcxr.errors import InputError
from jaxcxr.privacy import correlated, sampling
from jaxcxr.privacy.mechanism import Mechanism
from jaxcxr.training import batches, build
from tests.audit import small
from tests.conftest import changed

pytestmark = pytest.mark.usefixtures("quick_compilation")
BANDS = 4
SIZE = dataclasses.replace(small.SIZE, model="logistic", side=16, steps=32)
NEXT, DRAW = correlated.Correlation.next, Mechanism.draw


@pytest.fixture(scope="module")
def subject() -> Subject:
    config = changed(small.CONFIG, "privacy", noise_bands=BANDS)
    return subject_of(config, small.split(), SIZE, np.random.default_rng(0))


@pytest.fixture(scope="module")
def recorder(subject: Subject) -> Recorder:
    plan = subject.plan(np.zeros(len(subject.canaries), bool))
    return Recorder(subject.canaries, build.step_of(plan), Own(plan))


@pytest.fixture(scope="module")
def right(subject: Subject, recorder: Recorder) -> Audit:
    return small.audited(of=subject, recorder=recorder)


def test_a_right_run_is_not_accused(right: Audit, subject: Subject) -> None:
    assert [check for check in right.checks if check.failed] == []
    assert not right.refuted
    assert 0 < right.epsilon_lower < right.epsilon_claimed <= 4.0
    card = right.describe("", "")["card"]
    assert (card["bands"], card["steps"], card["noise"]) == (BANDS, 32, "gaussian")
    assert right.claim.steps == 32 // BANDS
    assert right.claim.sample_rate == pytest.approx(BANDS * 0.1)


def test_scores_are_those_of_the_best_test(subject: Subject, recorder: Recorder, tmp_path: Any) -> None:
    """Of a contribution that reaches over several steps: the noise that is left along it has deviation 1."""
    included = np.zeros(len(subject.canaries), bool)
    run = recorder.run(subject.plan(included), tmp_path / "run", included)
    scores = np.stack([step.alignments for step in run.steps[: -BANDS + 1]])  # later ones are cut by the end
    assert scores.std() == pytest.approx(1.0, abs=0.05)
    assert np.corrcoef(scores[:-1].ravel(), scores[1:].ravel())[0, 1] == pytest.approx(
        float(np.dot(run_column(run)[1:], run_column(run)[:-1])), abs=0.2
    )


def run_column(run: Any) -> np.ndarray:
    column = np.asarray(run.mechanism.correlation.column)
    return column / np.linalg.norm(column)


def _column_without_norm(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(correlated.Correlation, "norm", 1.0)


def _past_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(correlated.Correlation, "next", lambda self, z, past, step: NEXT(self, z, 0 * past, step))


def _next_row_instead_of_last(patch: pytest.MonkeyPatch) -> None:
    def rotated(self: Any, z: Any, past: Any, step: Any) -> Any:
        return NEXT(self, z, past, step + 1 - (step % 2))

    patch.setattr(correlated.Correlation, "next", rotated)


def _everybody_in_every_step(patch: pytest.MonkeyPatch) -> None:
    def draw(self: Any, secret: bytes, step: int, n: int, groups: Any = None) -> Any:
        return sampling.poisson_batch(secret, step, n, self.sample_rate)

    patch.setattr(Mechanism, "draw", draw)


def _groups_of_blocks_of_steps(patch: pytest.MonkeyPatch) -> None:
    """The same group for several steps running, whose columns overlap."""

    def draw(self: Any, secret: bytes, step: int, n: int, groups: Any = None) -> Any:
        drawn = sampling.poisson_batch(secret, step, n, self.sample_rate)
        return drawn[groups[drawn] == step // 2 % self.bands]

    patch.setattr(Mechanism, "draw", draw)


def _one_draw_for_all_groups(patch: pytest.MonkeyPatch) -> None:
    def draw(self: Any, secret: bytes, step: int, n: int, groups: Any = None) -> Any:
        return DRAW(self, secret, step - step % self.bands if step % 3 else step, n, groups)

    patch.setattr(Mechanism, "draw", draw)


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str]] = {
    "columns longer than 1": (_column_without_norm, "noise has the claimed deviation in every step"),
    "past noise forgotten": (_past_forgotten, "noise has the claimed deviation in every step"),
    "rows of the past mixed up": (_next_row_instead_of_last, "noise of one step tells nothing of another's"),
    "groups ignored": (_everybody_in_every_step, "units are drawn in the steps of their group alone"),
    "a group twice running": (
        _groups_of_blocks_of_steps,
        "units are drawn in the steps of their group alone",
    ),
    "draws of another step": (_one_draw_for_all_groups, "units are drawn in the steps of their group alone"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(
    subject: Subject, recorder: Recorder, fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    plant, name = FAULTS[fault]
    plant(monkeypatch)
    nobody = np.zeros(len(subject.canaries), bool)
    runs = [
        recorder.run(subject.plan(nobody, units), tmp_path / str(i), nobody, attacked=False)
        for i, units in enumerate((None, None, 3))
    ]
    found = checks_of(recorder, runs, subject.plan(~nobody), np.random.default_rng(0))
    assert name in {check.name for check in found if check.failed}


def test_the_network_is_not_audited_so() -> None:
    config = changed(small.CONFIG, "privacy", noise_bands=BANDS)
    with pytest.raises(InputError, match=r"privacy\.noise_bands: an audit of the network"):
        subject_of(config, small.split(), small.SIZE, np.random.default_rng(0))


def test_auto_is_settled_for_the_audited_run() -> None:
    config = changed(small.CONFIG, "privacy", noise_bands="auto")
    audited = subject_of(config, small.split(), SIZE, np.random.default_rng(0)).config
    assert audited.privacy is not None
    assert isinstance(audited.privacy.noise_bands, int)
    assert audited.privacy.noise_bands > 1


def test_groups_are_those_of_the_feed(subject: Subject, recorder: Recorder, tmp_path: Any) -> None:
    included = np.ones(len(subject.canaries), bool)
    run = recorder.run(subject.plan(included), tmp_path / "run", included, attacked=False)
    groups = batches.groups_of(run.plan, run.bound)
    assert groups is not None
    own = run.canaries_own
    assert (run.canaries_drawn & ~own).sum() == 0
    assert own.sum(axis=0).tolist() == [32 // BANDS] * len(included)
    assert (run.turns.own(np.arange(32))[:, -len(included) :] == own).all()


def test_each_canary_is_scored_in_its_own_groups_steps() -> None:
    """Of five steps of two groups, a canary of the second one has two, and the first step of the other beside."""
    scores = np.arange(10.0).reshape(5, 2)
    own = np.array([[True, False], [False, True]] * 3)[:5]
    assert attacks._in_turn(scores, own, 3).tolist() == [[0, 3], [4, 7], [8, 1]]
    assert attacks._in_turn(scores, np.ones((5, 2), bool), 5).tolist() == scores.tolist()

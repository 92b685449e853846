"""The audit of a private training: record runs of the real code, check every part, attack, and report.

Two runs with secrets and coins of their own are attacked; a third one has three units, so that most of its
batches are empty. The claim is refuted if an attack proves a larger epsilon, or a check fails.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, PyTree

from jaxcxr import accounting
from jaxcxr.accounting import Spending
from jaxcxr.audit.attacks import CONFIDENCE, Attack, attacks
from jaxcxr.audit.checks import LEVEL, Check, sharing
from jaxcxr.audit.implementation_checks import (
    implementation_checks,
    long_draws,
    long_steps,
    single_lengths,
)
from jaxcxr.audit.lower_bounds import MembershipCurve, membership_curve
from jaxcxr.audit.noise_checks import noise_checks
from jaxcxr.audit.recording import Recorder, Recording, deviation_of
from jaxcxr.audit.reference import flat
from jaxcxr.audit.sampling_checks import sampling_checks
from jaxcxr.audit.subject import Subject, folder_of
from jaxcxr.audit.turns import Turns, turns_check, whitened
from jaxcxr.records.provenance import training_code_fingerprint
from jaxcxr.training import batches
from jaxcxr.training.plan import RunPlan

METHOD = "two runs of the training's own loop; white-box and final-weights attacks; every part checked"
FEW_UNITS = 3
_FAR_RELEASES, _ALONE, _LONG_DRAWS = 64, 24, 2000


@dataclasses.dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        subject: what was audited.
        epsilon_claimed: epsilon of the audited run at `delta`, by its plan; its digits reveal the number of
            images.
        attacks: each with what it proves.
        curves: membership curve of the attacks with scores of their own.
        checks: of the implementation.
        claim: what each attacked run cost a unit.
        delta: of the claimed guarantee.
        noise: how it was sampled, `gaussian` or `discrete`.
        runs: that were attacked.
        steps: of each.
        bands: over how many its noise was correlated.
    """

    subject: Subject
    epsilon_claimed: float
    attacks: tuple[Attack, ...]
    curves: Mapping[str, MembershipCurve]
    checks: tuple[Check, ...]
    claim: Spending
    delta: float
    noise: str
    runs: int
    steps: int
    bands: int

    @property
    def budget(self) -> float:
        """Epsilon that the audited run was meant to have; the card shows it instead of `epsilon_claimed`."""
        assert self.subject.config.privacy is not None
        return self.subject.config.privacy.epsilon

    @property
    def epsilon_lower(self) -> float:
        """What the attacks prove, at `CONFIDENCE` for all of them together."""
        return max(attack.epsilon_lower for attack in self.attacks)

    @property
    def refuted(self) -> bool:
        """Whether the claim is refuted."""
        return self.epsilon_lower > self.epsilon_claimed or any(check.failed for check in self.checks)

    def describe(self, data: str, code: str) -> dict[str, Any]:
        """The audit as values that JSON can hold; `card` is the part that the privacy card shows.

        Args:
            data: fingerprint of the cohort's store.
            code: fingerprint of the audited code.
        """
        privacy = self.subject.config.privacy
        assert privacy is not None
        rates = (0.001, 0.01, 0.1)
        return {
            "card": {
                "method": METHOD,
                "model": self.subject.model,
                "unit": privacy.unit,
                "clipping": privacy.clipping,
                "released": "noised gradient" + (" and clip count" if privacy.clipping == "adaptive" else ""),
                "noise": self.noise,
                "bands": self.bands,
                "steps": self.steps,
                "runs": self.runs,
                "canaries": self.runs * len(self.subject.canaries),
                "confidence": CONFIDENCE,
                "epsilon_lower": self.epsilon_lower,
                "epsilon_claimed": self.budget,
                "attacks": [
                    {"attack": attack.name, "epsilon_lower": attack.epsilon_lower} for attack in self.attacks
                ],
                "checks": len(self.checks),
                "checks_failed": sum(check.failed for check in self.checks),
                "checks_level": LEVEL,
                "accused": self.refuted,
                "code": code,
                "training_code": training_code_fingerprint(),
            },
            "data": data,
            "delta": self.delta,
            "attacks": [
                {"attack": attack.name, "epsilon_lower": attack.epsilon_lower}
                | (self._curve(attack.name, rates) if attack.name in self.curves else {})
                for attack in self.attacks
            ],
            "checks": [dataclasses.asdict(check) | {"failed": check.failed} for check in self.checks],
        }

    def _curve(self, name: str, rates: tuple[float, ...]) -> dict[str, float]:
        curve = self.curves[name]
        found = {"auroc": curve.auroc}
        pairs = zip(rates, curve.at(rates), strict=True)
        return found | {f"true_positive_rate_at_{rate:g}": value for rate, value in pairs}


def audit(
    subject: Subject,
    base: Path,
    rng: np.random.Generator,
    progress: Callable[[int], object] = lambda _: None,
    recorder: Recorder | None = None,
) -> Audit:
    """Audit a training.

    Args:
        subject: what is trained.
        base: an empty folder for the recorded runs, which hold secrets and private logs; delete it.
        rng: of the coins, and of what is compared; the training's randomness is its own.
        progress: told 1 after each of `steps_of(subject)` steps.
        recorder: that has compiled the same training before.

    Raises:
        InputError: training diverged, or cannot begin.
    """
    recorder = Recorder(subject.canaries) if recorder is None else recorder
    runs = []
    for number in range(2):
        included = rng.random(len(subject.canaries)) < 0.5
        folder = folder_of(base, number)
        runs.append(recorder.run(subject.plan(included), folder, included, progress=progress))
    nobody = np.zeros(len(subject.canaries), bool)
    few = recorder.run(
        subject.plan(nobody, FEW_UNITS), folder_of(base, 2), nobody, attacked=False, progress=progress
    )
    found, included = attacks(runs, subject.canaries)
    m = runs[0].mechanism
    claim = m.spending(runs[0].plan.steps)
    scored = {attack.name: attack.scores for attack in found[1:]}
    return Audit(
        subject,
        accounting.epsilon_pld([claim], m.delta),
        tuple(found),
        {name: membership_curve(scores, included) for name, scores in scored.items()},
        checks_of(recorder, [*runs, few], subject.plan(~nobody), rng),
        claim,
        m.delta,
        noise="gaussian" if m.grid is None else "discrete",
        runs=len(runs),
        steps=runs[0].plan.steps,
        bands=m.bands,
    )


def steps_of(subject: Subject) -> int:
    """Steps of the recorded runs together."""
    assert subject.config.training.steps is not None
    return 3 * subject.config.training.steps


def checks_of(
    recorder: Recorder, runs: Sequence[Recording], whole: RunPlan, rng: np.random.Generator
) -> tuple[Check, ...]:
    """All checks of recorded runs.

    Args:
        recorder: that ran them.
        runs: with secrets of their own; the last one of few units.
        whole: a plan with every canary, of which batches are drawn at many steps.
        rng: chooses what is looked at where not everything can be.
    """
    first, m = runs[0], runs[0].mechanism
    if not all(run.steps for run in runs):  # nothing was released
        return sharing(implementation_checks(runs, np.zeros(0)))
    far = _far_noise(recorder, first)
    noise = np.concatenate([*(run.noise for run in runs), far])
    sums = np.concatenate([*(step.sums[None] for run in runs for step in run.steps), np.zeros_like(far)])
    drawn, far_steps = long_draws(whole, first.bound, _LONG_DRAWS), long_steps(_LONG_DRAWS)
    far_turns = Turns(m.bands, batches.groups_of(whole, first.bound))
    own_steps = np.arange(first.plan.steps)
    turns = [*((run.turns, run.drawn, own_steps) for run in runs[:-1]), (far_turns, drawn, far_steps)]
    *in_runs, in_long = (own.rounds(mask, steps) for own, mask, steps in turns)
    return sharing(
        [
            *noise_checks(noise, sums, first.leaves, continuous=m.grid is None, rng=rng),
            *sampling_checks(in_runs, in_long, m.sample_rate),
            *([turns_check(turns)] if m.bands > 1 else []),
            *implementation_checks(runs, lengths_alone(recorder, first, rng)),
        ]
    )


def lengths_alone(recorder: Recorder, run: Recording, rng: np.random.Generator) -> np.ndarray:
    """Lengths of the contributions of some units, of the cohort and canaries, each alone in a batch."""
    units = rng.permutation(len(run.plan.units))[:_ALONE].tolist()
    return single_lengths(run.plan, recorder, run.final, units)


def _far_noise(recorder: Recorder, run: Recording) -> np.ndarray:
    """The noise that a release of nothing would have at steps far beyond the run."""
    steps = [run.plan.steps + 2**k for k in range(40)] + [10**6 + k for k in range(_FAR_RELEASES - 40)]
    if run.mechanism.bands > 1:  # which follows from all steps before: the next ones
        whole = range(run.plan.steps + _FAR_RELEASES)
        rows = noise_of_nothing(recorder, run.plan, run.bound, run.initial, whole)
        return whitened(run.mechanism.correlation.column, rows)[run.plan.steps :]
    return noise_of_nothing(recorder, run.plan, run.bound, run.initial, steps)


def noise_of_nothing(
    recorder: Recorder, plan: RunPlan, bound: bytes, params: PyTree, steps: Sequence[int]
) -> Float[np.ndarray, "steps d"]:
    """What a release of nothing has at some steps, in claimed deviations of the noise.

    Args:
        recorder: with the compiled functions.
        plan: of the run.
        bound: its secret, bound to what it trains.
        params: of the network.
        steps: of the run, or beyond.
    """
    m, nothing = plan.mechanism, recorder.empty_sum(params)
    assert m is not None
    stream = m.stream(bound)
    released = [flat(recorder.own.release(nothing, stream.at(step, nothing.high))) for step in steps]
    return (np.stack(released) * (m.expected_batch_size / deviation_of(m))).astype(np.float32)

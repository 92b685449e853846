"""Tune inside the budget: a random number of runs with settings drawn from a grid, of which the best is kept.

The model that comes out, and the choice of its settings with it, cost the training units at most the budget
(`accounting.selection`). What the theorem asks for is done here and in `records.tuning`: the number of runs
and each run's settings are drawn before any run, from a secret that is bound to the terms, so that a tuning
that is stopped goes on as the same; every run has a secret of its own; the score that decides is computed
from noised counts of the validation images, whose patients the choice costs at most the same budget; runs
that are not chosen lose their weights, and no gate lets them through.
"""

import dataclasses
import decimal
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from jaxcxr import accounting
from jaxcxr.accounting.selection import Repetitions, number_of_runs
from jaxcxr.accounting.tuning import PlannedRun, calibrated_choice, calibrated_score
from jaxcxr.atomic import BusyError, exclusive_lock, writing
from jaxcxr.config import STRICT, Experiment
from jaxcxr.config_files import validate
from jaxcxr.data.store import Store, open_store
from jaxcxr.digests import digest_of
from jaxcxr.errors import InputError
from jaxcxr.eval.noised_metrics import pooled_auroc
from jaxcxr.eval.noised_record import design_of
from jaxcxr.eval.predictions import read_predictions
from jaxcxr.launch.jobs import claimed
from jaxcxr.privacy import noise
from jaxcxr.privacy.score_counts import noised_counts, strategy
from jaxcxr.records.binding import bound_secret
from jaxcxr.records.ledger import run_name
from jaxcxr.records.spent import spent_of
from jaxcxr.records.tuning import Chosen, Cost, Scored, TuningLedger, TuningTerms
from jaxcxr.report.bounds import upper_text
from jaxcxr.report.run_report import report_run
from jaxcxr.run_folder import CHECKPOINTS, CONFIG, PATHS, PREDICTIONS, SECRET
from jaxcxr.training.plan import RunPlan, make_plan
from jaxcxr.training.secret import make_secret, read_secret
from jaxcxr.workflows.experiment import run_experiment, store_of
from jaxcxr.workflows.noised_evaluation import held_out_of
from jaxcxr.workflows.rehearsal import rehearse

Say = Callable[[str], None]
NO_SCORE = -1.0
"""Score of a run whose predictions are no numbers: below every other."""
_FIXED = ("data.", "evaluation.", "privacy.epsilon", "privacy.delta", "privacy.unit", "privacy.dataset_size",
          "privacy.noise_multiplier", "privacy.allow_large_delta", "training.seed")  # fmt: skip
"""Fields, or sections, that candidates share: whom the promise is made to, and how large it is."""
_MOST_CANDIDATES = 10_000
_LOCK, _PATIENCE = ".tuning.lock", 60.0


@dataclasses.dataclass(frozen=True)
class Grid:
    """Settings to draw from, and how often.

    Attributes:
        vary: field of the configuration -> its values; every combination is a candidate, equally likely.
        mean_runs: mean of the random number of runs.
        repetitions: its distribution: `geometric` or `logarithmic` (at least one run), or `poisson` (perhaps
            none).
        images_per_patient: the most that the validation images of one patient weigh together in the score.
    """

    __pydantic_config__ = STRICT
    vary: dict[str, list[Any]]
    mean_runs: Annotated[float, Field(ge=1, le=100)] = 4.0
    repetitions: Repetitions = "geometric"
    images_per_patient: Annotated[int, Field(ge=1)] = 1

    def candidates(self) -> list[dict[str, Any]]:
        """The fields of each candidate that replace those of the configuration.

        Raises:
            InputError: there is none, or a field may not be varied.
        """
        if not self.vary or not all(self.vary.values()):
            raise InputError("vary: expected fields with one value or more each, found none")
        for name, values in self.vary.items():
            if any(name == fixed or (fixed.endswith(".") and name.startswith(fixed)) for fixed in _FIXED):
                raise InputError(f"vary: {name}: is the same for all candidates; set it in the configuration")
            if len(values) != len({str(value) for value in values}):
                raise InputError(f"vary: {name}: holds a value twice")
        found = [
            dict(zip(self.vary, values, strict=True)) for values in itertools.product(*self.vary.values())
        ]
        if len(found) > _MOST_CANDIDATES:
            raise InputError(f"vary: makes {len(found):,} candidates, expected at most {_MOST_CANDIDATES:,}")
        return found


def tune(base: Experiment, grid: Grid, budget: float, out: Path, say: Say = print) -> Path | None:
    """Run a tuning, or go on with it, and keep the best run.

    Args:
        base: private experiment, of which the grid's fields are replaced.
        grid: what to draw from.
        budget: epsilon of the chosen model, choice included, at the base's delta.
        out: folder of the tuning.
        say: where progress goes.

    Returns:
        The folder of the chosen run; None if none was chosen: no run was to be made, or other processes are
        still at work on some.

    Raises:
        InputError: the grid, a candidate or the budget is refused, or the folder holds another tuning.
        StoppedError: a signal ended a run; the same call goes on.
    """
    configs, ledger, secret = _begun(base, grid, budget, out, say)
    drawn = draws(bound_secret(secret, ledger.head_of_terms), grid, len(configs))
    busy = False
    for number, candidate in enumerate(drawn):
        name = f"run_{number:03d}"
        if name not in ledger.scored:
            say(f"{name}: {_said(ledger, candidate)}")
            try:
                with claimed(out, name):
                    _run(configs[candidate], out / name, ledger, say)
                    _record(out, _scored(out / name, candidate, ledger, (secret, number)))
            except BusyError as error:
                busy = True
                say(f"{error}; whoever finishes last chooses")
    with exclusive_lock(out / _LOCK, f"{out}: another process is choosing", _PATIENCE):
        ledger = TuningLedger(out)
        if busy and len(ledger.scored) < len(drawn):
            return None
        if ledger.end is None:
            ledger.record(Chosen(chosen=_best(ledger)))
    chosen = _finished(out, ledger, say)
    if chosen is not None:
        _report(chosen, base)
    return chosen


def draws(secret: bytes, grid: Grid, candidates: int) -> list[int]:
    """The candidate of each run that will be made: their number, and each, drawn before the first.

    Args:
        secret: of the tuning, bound to its terms: the same again when the tuning goes on.
        grid: whose law of the number of runs is used.
        candidates: how many there are.
    """
    with decimal.localcontext(prec=50):
        uniform = decimal.Decimal(_word(secret, "number of runs", 0)) / 2**128
        number = number_of_runs(uniform, grid.mean_runs, grid.repetitions)
    return [_word(secret, "candidate", run) * candidates >> 128 for run in range(number)]


def _word(secret: bytes, purpose: str, place: int) -> int:
    """A whole number of 128 random bits."""
    return int.from_bytes(noise.derive_key(secret, f"tuning {purpose}", place).tobytes(), "little")


def candidate_configs(
    base: Experiment, grid: Grid, budget: float
) -> tuple[list[dict[str, Any]], list[Experiment]]:
    """The settings and the configuration of each candidate; the noise is not settled yet.

    Raises:
        InputError: there is no candidate, one is no valid configuration, or the base settles what is to be
            found.
    """
    if base.privacy is None:
        raise InputError("privacy: expected a private configuration to tune, found null")
    if base.training.seed is not None:
        raise InputError(
            "training.seed: expected null: every run of a tuning needs randomness of its own, or their noise "
            "would cancel"
        )
    if base.privacy.noise_multiplier is not None:
        raise InputError("privacy.noise_multiplier: expected null: a tuning calibrates it to --budget")
    base = dataclasses.replace(base, privacy=dataclasses.replace(base.privacy, epsilon=budget))
    settings = grid.candidates()
    return settings, [_replaced(base, found) for found in settings]


def _replaced(base: Experiment, fields: dict[str, Any]) -> Experiment:
    values = dataclasses.asdict(base)
    told = ", ".join(f"{place} {value!r}" for place, value in fields.items())
    for place, value in fields.items():
        section, _, key = place.partition(".")
        if not isinstance(values.get(section), dict) or key not in values[section]:
            raise InputError(f"vary: no such field {place!r}")
        values[section][key] = value
    return validate(Experiment, values, f"vary: the candidate with {told}")


def _begun(
    base: Experiment, grid: Grid, budget: float, out: Path, say: Say
) -> tuple[list[Experiment], TuningLedger, bytes]:
    """The candidates with their noise, the tuning's ledger, and its secret; both are made if need be."""
    settings, configs = candidate_configs(base, grid, budget)
    store = store_of(base, say)
    asked = _asked(base, grid, budget, settings, store)
    if TuningLedger(out).terms is None:
        _require_validation(store)
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
    # Of several processes that begin at once, one makes the secret and the terms.
    with exclusive_lock(out / _LOCK, f"{out}: another process is beginning", _PATIENCE):
        ledger, secret = TuningLedger(out), read_secret(out)
        if ledger.terms is None:
            known = (SECRET, f"{SECRET}.part", _LOCK, f"{_LOCK}.held")
            if any(file.name not in known for file in out.iterdir()):
                raise InputError(
                    f"{out}: the folder holds files but no tuning; expected a new or empty folder"
                )
            secret = secret or make_secret(out, None)
            ledger.begin(_terms(asked, grid, configs, store, secret))
    ledger.require(asked)
    assert ledger.terms is not None
    if secret is None or run_name(secret) != ledger.terms.tuning:
        raise InputError(
            f"{out / SECRET}: the tuning has begun, but its secret is gone or another's: how many runs there "
            "are would be drawn anew, after results"
        )
    settled = zip(configs, ledger.terms.noise_multipliers, strict=True)
    return [_with_noise(config, sigma) for config, sigma in settled], ledger, secret


def _with_noise(config: Experiment, noise_multiplier: float) -> Experiment:
    assert config.privacy is not None
    privacy = dataclasses.replace(config.privacy, noise_multiplier=noise_multiplier)
    return dataclasses.replace(config, privacy=privacy)


def _asked(
    base: Experiment, grid: Grid, budget: float, settings: list[dict[str, Any]], store: Store
) -> dict[str, Any]:
    """The terms that do not depend on the accountant or the secret."""
    assert base.privacy is not None
    fields = {
        name: value
        for name, value in base.digest_fields().items()
        if name not in (*PATHS, "privacy.epsilon", "training.microbatch_size")
    }
    return {
        "store": store.fingerprint,
        "base": digest_of(fields),
        "settings": settings,
        "epsilon": budget,
        "delta": base.privacy.delta,
        "repetitions": grid.repetitions,
        "mean_runs": grid.mean_runs,
        "score_images_per_patient": grid.images_per_patient,
    }


def _terms(
    asked: dict[str, Any], grid: Grid, configs: list[Experiment], store: Store, secret: bytes
) -> TuningTerms:
    planned = planned_runs(configs, store)
    budget, delta = asked["epsilon"], asked["delta"]
    choice, sigmas = calibrated_choice(budget, delta, planned, grid.mean_runs, grid.repetitions)
    (score,) = calibrated_score(budget, delta, grid.mean_runs, grid.repetitions).candidates
    return TuningTerms(
        tuning=run_name(secret),
        noise_multipliers=[sigmas[run] for run in planned],
        costs=[[Cost(**dataclasses.asdict(part)) for part in run] for run in choice.candidates],
        score_noise_multiplier=score[-1].noise_multiplier,
        **asked,
    )


def planned_runs(configs: list[Experiment], store: Store) -> list[PlannedRun]:
    """What each candidate releases, but for its noise.

    Raises:
        InputError: a candidate does not go with the store.
    """
    plans = (make_plan(_with_noise(config, 1.0), store) for config in configs)  # nothing to calibrate yet
    return [_planned(plan) for plan in plans]


def _planned(plan: RunPlan) -> PlannedRun:
    assert plan.mechanism is not None
    cost = plan.mechanism.spending(plan.steps)
    return PlannedRun(cost.sample_rate, cost.steps, tuple(plan.already()))


def _require_validation(store: Store) -> None:
    if not len(store.split("valid")):
        raise InputError(
            f"{store.path}: has no validation images, by which the best run would be chosen; prepare it with "
            "some"
        )


def _said(ledger: TuningLedger, candidate: int) -> str:
    assert ledger.terms is not None
    return ", ".join(f"{name} {value}" for name, value in ledger.terms.settings[candidate].items())


def _run(config: Experiment, folder: Path, ledger: TuningLedger, say: Say) -> None:
    resume = (folder / CONFIG).exists()
    run_experiment(config, folder, resume, say, beside=False, tuning={"terms": ledger.head_of_terms})


def _scored(folder: Path, candidate: int, ledger: TuningLedger, source: tuple[bytes, int]) -> Scored:
    """A finished run's line. `source` of the score's noise: the tuning's secret and the run's number."""
    terms, spent = ledger.terms, spent_of(folder)
    assert terms is not None
    assert spent is not None
    secret = bound_secret(source[0], ledger.head_of_terms)
    return Scored(
        run=folder.name,
        candidate=candidate,
        score=score_of(folder / PREDICTIONS, terms, noise.derive_key(secret, "tuning score", source[1])),
        name=spent.terms.run,
        ledger=spent.head,
    )


def score_of(predictions: Path, terms: TuningTerms, key: Any) -> float:
    """The figure by which the best run is chosen: the pooled AUROC of noised counts of validation images.

    Guarantee: one release of the Gaussian mechanism with the terms' noise multiplier about the validation
    patients (`privacy.score_counts`); the training images enter through the run's weights alone.

    Args:
        predictions: of the run.
        terms: of the tuning.
        key: 128 bits, of this score and no other.
    """
    table, findings = read_predictions(predictions)
    held_out = held_out_of(table, findings, (), "valid")
    if not np.isfinite(held_out.scores).all():
        return NO_SCORE
    design = design_of(
        [None] * len(findings), (), terms.score_images_per_patient, terms.score_noise_multiplier
    )
    return pooled_auroc(noised_counts(held_out, design, key), design)


def _record(out: Path, line: Scored) -> None:
    with exclusive_lock(out / _LOCK, f"{out}: another process writes to its ledger", _PATIENCE):
        TuningLedger(out).record(line)


def _best(ledger: TuningLedger) -> str | None:
    """The run with the highest score, the first of equal ones."""
    runs = sorted(ledger.scored)
    return max(runs, key=lambda run: ledger.scored[run].score) if runs else None


def _finished(out: Path, ledger: TuningLedger, say: Say) -> Path | None:
    """Delete the weights of the runs that were not chosen, and say what came out."""
    assert ledger.end is not None
    chosen = ledger.end.chosen
    for run in ledger.scored:
        if run != chosen:
            shutil.rmtree(out / run / CHECKPOINTS, ignore_errors=True)
    if chosen is None:
        say(
            f"{out}: the number of runs that was drawn is 0 (repetitions poisson): there is no model, and "
            "none may be made with this budget by drawing again until a run comes"
        )
        return None
    folder, terms, spent = out / chosen, ledger.terms, spent_of(out / chosen)
    assert terms is not None
    assert spent is not None
    say(
        f"{folder}: chosen, with {_said(ledger, ledger.scored[chosen].candidate)}; epsilon "
        f"{upper_text(spent.bounds().upper)} at delta {spent.delta:g}, the choice included. The weights of "
        "the other runs are deleted; how many there were, and their scores, must stay in the hospital. "
        f"jaxcxr release {folder} builds what may leave"
    )
    return folder


def _report(folder: Path, config: Experiment) -> None:
    """Write the chosen run's page again: when it was first written, nothing was chosen."""
    report_run(folder, config.evaluation, open_store(Path(config.data.store)).manifest, beside=False)


def rehearse_tuning(base: Experiment, grid: Grid, budget: float, say: Say) -> Iterator[str]:
    """What a tuning would do and cost, line by line; nothing is trained, and nothing is drawn."""
    settings, configs = candidate_configs(base, grid, budget)
    store = store_of(base, say)
    _require_validation(store)
    planned = planned_runs(configs, store)
    assert base.privacy is not None
    delta = base.privacy.delta
    choice, sigmas = calibrated_choice(budget, delta, planned, grid.mean_runs, grid.repetitions)
    (score,) = calibrated_score(budget, delta, grid.mean_runs, grid.repetitions).candidates
    many = number_of_runs(decimal.Decimal("0.95"), grid.mean_runs, grid.repetitions)
    yield (
        f"runs:      {grid.mean_runs:g} on average ({grid.repetitions}), each with one of {len(settings)} "
        f"candidates; one tuning in twenty makes {many} or more"
    )
    yield (
        f"privacy:   the chosen model, choice included: epsilon {upper_text(choice.epsilon(delta))} of "
        f"{budget:g} at delta {delta:g}"
    )
    for run, sigma in sigmas.items():
        own = accounting.epsilon_pld(run.spent(sigma), delta)
        yield (
            f"one run:   costs what {run.steps:,} steps at sample rate {run.sample_rate:.4g} cost: noise "
            f"multiplier {sigma:g}; epsilon {upper_text(own)} is left for it"
        )
    deviation = count_noise(score[-1].noise_multiplier, len(base.data.findings), grid.images_per_patient)
    patients = store.split("valid").frame["patient_id"].nunique()
    yield (
        f"score:     by {patients:,} validation patients; noise of {deviation:.3g} images (one standard "
        "deviation) on the number of positives of a finding"
    )
    longest = max(range(len(configs)), key=lambda i: planned[i].steps * planned[i].sample_rate)
    config = _with_noise(configs[longest], sigmas[planned[longest]])
    yield "the longest of the candidates:"
    yield from (f"  {line}" for line in rehearse(config, say).lines())


def count_noise(noise_multiplier: float, findings: int, images_per_patient: int) -> float:
    """Standard deviation of the noise on the number of a finding's positives, in images."""
    design = design_of([None] * findings, (), images_per_patient, noise_multiplier)
    whole = np.linalg.inv(strategy(design.splits[0])).sum(axis=0)
    return design.grid.deviation * design.grid.step * float(np.linalg.norm(whole))
